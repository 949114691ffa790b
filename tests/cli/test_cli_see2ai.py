"""`gateway see2ai check`: against the sandbox over HTTP, against a dead port, and against other servers."""

import http.server
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import pytest
from typer.testing import Result

from app.upstreams.see2ai import client
from app.upstreams.see2ai.account import AccountStatus, parse_account
from app.upstreams.see2ai.responses import HttpResponse
from tests.support.sandbox_server import KEY, Server

Run = Callable[..., Result]
pytestmark = pytest.mark.worlds("embedded")


@pytest.fixture
def check(gateway: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    def run(base_url: str, *words: str, key: str = KEY) -> Result:
        monkeypatch.setenv("SEE2AI_BASE_URL", base_url)
        monkeypatch.setenv("SEE2AI_API_KEY", key)
        return gateway("see2ai", "check", *words)

    return run


@contextmanager
def answering(status: int, body: bytes, **headers: str) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_good_key_and_a_full_balance(check: Any, upstream: Server) -> None:
    result = check(upstream.origin)
    assert result.exit_code == 0, result.output
    payload = dict(line.split(": ", 1) for line in result.stdout.splitlines())
    assert (payload["reachable"], payload["key"], payload["tenant"]) == ("yes", "accepted", "SANDBOX")
    tokens, rmb = payload["balance"].split(" tokens (RMB ")
    assert Decimal(tokens) / 50_000 == pytest.approx(Decimal(rmb.removesuffix(")")), abs=Decimal("0.01"))
    requested = [entry for entry in upstream.journal() if entry["path"] == "/api/v1/me"]
    assert [(entry["method"], entry["status"]) for entry in requested] == [("GET", 200)]
    data = json.loads(check(upstream.origin, "--json").stdout)
    assert (data["usable"], data["reachable"], data["keyAccepted"], data["tenant"]) == (True, True, True, "SANDBOX")
    assert Decimal(data["balanceRmb"]) == round(Decimal(data["balanceTokens"]) / 50_000, 2)


def test_an_empty_balance(check: Any, upstream: Server) -> None:
    upstream.control({"balance": "empty"})
    result = check(upstream.origin)
    assert (result.exit_code, result.stderr) == (1, "our balance at SEE2AI is empty: balance 0\n")
    assert "balance: 0 tokens (RMB 0.00)" in result.stdout
    data = json.loads(check(upstream.origin, "--json").stdout)
    assert (data["usable"], data["keyAccepted"], data["balanceTokens"]) == (False, True, 0)


def test_a_wrong_key(check: Any, upstream: Server) -> None:
    result = check(upstream.origin, key="sk-wrong")
    assert (result.exit_code, result.stderr) == (1, "SEE2AI refuses our key: HTTP 401: Invalid API key\n")
    assert "key: refused" in result.stdout
    assert "sk-wrong" not in result.output


def test_without_a_key_no_request_is_sent(check: Any, upstream: Server) -> None:
    result = check(upstream.origin, key="")
    assert (result.exit_code, result.stderr) == (1, "SEE2AI_API_KEY is not set\n")
    assert upstream.journal() == []


@pytest.mark.parametrize("base_url", ["http://", "https://127.0.0.1:99999", "https://see2ai.com/?key=1", "see2ai.com"])
def test_an_address_that_is_none(check: Any, base_url: str) -> None:
    result = check(base_url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("bad settings:\nSEE2AI_BASE_URL: ")
    assert result.stderr.count("\n") == 2


def test_a_key_that_cannot_be_sent_is_named_and_not_shown(check: Any, upstream: Server) -> None:
    for key in ("sk-secret\nx", "sk-密钥", "sk-secret x"):
        result = check(upstream.origin, key=key)
        assert result.exit_code == 1
        assert result.stderr.startswith("bad settings:\nSEE2AI_API_KEY: holds a ")
        assert not any(part in result.output for part in ("secret", "密"))
    assert upstream.journal() == []


@pytest.mark.parametrize("around", ["{}\n", "\ufeff{}\r\n", ' "{}" ', "'{}'\n", "\u200b\u3000{}\xa0", "\"'{}'\n\""])
def test_what_a_secret_store_puts_around_a_key_is_cut(check: Any, upstream: Server, around: str) -> None:
    assert check(around.format(upstream.origin), key=around.format(KEY)).exit_code == 0


@pytest.mark.parametrize("broken", [RuntimeError("x"), OSError(28, "No space"), ssl.SSLError("no certificates")])
def test_an_error_of_our_own_is_one_line(
    check: Any, upstream: Server, broken: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise broken

    monkeypatch.setattr(client, "_trusted_certificates", fail)
    result = check(upstream.origin)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith(f"SEE2AI cannot be reached: {type(broken).__name__}")


def test_a_dead_port(check: Any) -> None:
    result = check("http://127.0.0.1:1", "--json")
    assert result.exit_code == 1
    assert result.stderr.startswith("SEE2AI cannot be reached: ")
    assert result.stderr.count("\n") == 1
    data = json.loads(result.stdout)
    assert (data["reachable"], data["keyAccepted"], data["balanceTokens"]) == (False, None, None)


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (200, b"<html>welcome</html>", "the response has no account of SEE2AI"),
        (200, b"[1]", "the response has no account of SEE2AI"),
        (200, b"", "the response has no account of SEE2AI"),
        (200, b'{"balance": ' + b"9" * 5000 + b"}", "the response has no account of SEE2AI"),
        (200, b"[" * 100_000, "the response has no account of SEE2AI"),
        (200, b"\xff" * 2_000_000, "SEE2AI cannot be reached"),
        (401, '{"detail":"余额不足，请充值"}'.encode(), "our balance at SEE2AI is empty"),
        (402, b"", "our balance at SEE2AI is empty"),
        (403, b'{"detail":"insufficient permissions"}', "SEE2AI refuses our key"),
        (429, b"{}", "SEE2AI limits our requests"),
        (502, b"<html>\nBad\nGateway</html>", "SEE2AI answers with an error"),
        (301, b"", "SEE2AI answers with an error"),
        (404, b'{"detail":"Not Found"}', "SEE2AI answers with an error"),
    ],
    ids=range(13),
)
def test_any_answer_gives_one_line(check: Any, status: int, body: bytes, reason: str) -> None:
    with answering(status, body, Location="http://127.0.0.1:1/") as origin:
        result = check(origin)
    assert result.exit_code == 1
    assert result.stderr.startswith(reason), result.stderr
    assert result.stderr.count("\n") == 1


EASY: list[tuple[Any, str | None, Any]] = [
    ({"tenant_name": "A", "balance": 50_000}, "A", 50_000),
    ({"data": {"tenant_name": "A", "balance": "75000.5"}}, "A", Decimal("75000.5")),
    ({"success": True, "data": {"tenant": {"name": "A"}, "wallet": {"balance_tokens": 7}}}, "A", 7),
    ({"id": 1, "name": "B", "account": {"balance": {"available_balance": 3.5}}}, "B", Decimal("3.5")),
    ({"tenant_name": "", "balance": None}, None, None),
    ({"tenant_name": ["A"], "balance": True}, None, None),
    ({"balance": "viel"}, None, None),
    ({"balance": "1e999"}, None, None),
    ({"balance": [5]}, None, None),
    ({"data": None}, None, None),
    ({}, None, None),
]


@pytest.mark.parametrize(("payload", "name", "balance"), EASY, ids=range(len(EASY)))
def test_field_names_are_read_in_several_spellings(payload: Any, name: str | None, balance: Any, world: Any) -> None:
    account = parse_account(HttpResponse(200, json.dumps(payload).encode()))
    assert (account.status, account.name, account.balance_tokens) == (AccountStatus.USABLE, name, balance)


@pytest.mark.parametrize(
    "odd", ["NaN", "Infinity", "1e99999999999999999999", "1e-99999999999999999999", "-0.0", "1e17"]
)
def test_unusual_numbers_raise_no_error(odd: str, world: Any) -> None:
    account = parse_account(HttpResponse(200, b'{"balance": ' + odd.encode() + b"}"))
    assert account.status in {AccountStatus.USABLE, AccountStatus.UNREADABLE, AccountStatus.INSUFFICIENT_BALANCE}
    assert account.balance_rmb is None or f"{account.balance_rmb:.2f}"


def test_an_unknown_balance_is_shown_as_unknown(check: Any) -> None:
    with answering(200, b'{"tenant_name": "A"}') as origin:
        result = check(origin)
        assert json.loads(check(origin, "--json").stdout)["balanceTokens"] is None
    assert result.exit_code == 0
    assert "balance: unknown" in result.stdout
