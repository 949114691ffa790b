"""`POST /user/webhooks/test`: sent at once and signed, answered with one word, and no way to probe our network."""

import asyncio
import io
import socket
import time
from types import SimpleNamespace
from typing import Any

import pytest

from app.accounts.api_keys import create_key
from app.api.access import rate_limits
from app.api.routes import webhooks as door
from app.telemetry import logs
from app.webhooks import sender as send_module
from tests.support.makers import Maker, User
from tests.support.responses import data, refusal
from tests.support.webhook_calls import drip, endpoint, post, secret_of
from tests.support.webhook_receivers import HANG, Receiver, ended_deliveries

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rate_limits.FIXED_RATES, "webhook-test", rate_limits.Rate(1000, rate_limits.MINUTE))


async def sent(make: Maker, user: User, **body: Any) -> dict[str, Any]:
    return dict(data(await post(make, user, "test", **body)))


async def test_it_is_sent_signed_at_once_to_an_endpoint_or_a_url(make: Maker, receiver: Receiver) -> None:
    user = await make.user()
    made = await endpoint(make, user, receiver.url)
    data(await post(make, user, f"endpoints/{made['id']}", enabled=False))  # tested before it is enabled again
    for body, secret in (
        ({"url": receiver.url}, await secret_of(make, user)),
        ({"endpointId": made["id"]}, made["secret"]),
    ):
        payload = await sent(make, user, **body)
        assert (payload["delivered"], payload["statusCode"], payload["outcome"]) == (True, 200, "delivered")
        assert payload["durationMs"] >= 0
        event = receiver.received[-1].verified(secret)
        assert (event["type"], event["data"]) == ("webhook.test", {"test": True})
    assert receiver.received[0].id != receiver.received[1].id
    assert len(receiver.received) == 2


async def test_the_outcome_is_reported(make: Maker, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    user = await make.user()

    async def close(request: Any) -> Any:
        request.transport.close()
        await asyncio.sleep(1)

    payload = []
    for answer in (302, 404, 410, 500, HANG, drip, close):
        monkeypatch.setattr(send_module, "TIMEOUT_SECONDS", 0.5 if answer in {HANG, drip} else 10)
        receiver.always = answer
        payload.append(await sent(make, user, url=receiver.url))
    assert [(one["outcome"], one["statusCode"]) for one in payload] == [
        ("redirect", 302),
        ("rejected", 404),
        ("gone", 410),
        ("error", 500),
        ("timeout", None),
        ("timeout", None),
        ("broken", None),
    ]
    assert not any(one["delivered"] for one in payload)


async def test_refused_and_unknown_names_have_the_same_answer_after_the_same_time(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name of our network, a private address, a name with public and private addresses, and an unknown name."""
    real = socket.getaddrinfo
    known = {"private": ["10.1.2.3"], "link": ["169.254.169.254"], "both": ["8.8.8.8", "127.0.0.1"], "six": ["::1"]}

    def resolve(host: Any, port: Any, *rest: Any, **options: Any) -> Any:
        name = str(host).partition(".")[0]
        if name in known:
            family = {True: socket.AF_INET6, False: socket.AF_INET}
            return [(family[":" in one], socket.SOCK_STREAM, 6, "", (one, port)) for one in known[name]]
        if name == "nowhere":
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return real(host, port, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(door, "MIN_FAILURE_SECONDS", 0.4)
    user = await make.user()
    for name in (*known, "nowhere"):
        began = time.monotonic()
        payload = await sent(make, user, url=f"http://{name}.example.com/")
        assert payload == {"delivered": False, "statusCode": None, "durationMs": None, "outcome": "unreachable"}, name
        assert time.monotonic() - began >= 0.39, name


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "url"),
        ({"url": "https://example.com/", "endpointId": 1}, "url"),
        ({"url": "http://localhost/"}, "url"),
        ({"url": "http://[::1]/"}, "url"),
        ({"url": "gopher://example.com/"}, "url"),
        ({"endpointId": "1"}, "endpointId"),
        ({"endpointId": 2**64}, "endpointId"),
        ({"uri": "https://example.com/"}, "uri"),
    ],
)
async def test_what_is_wrong_is_named(make: Maker, body: dict[str, Any], field: str) -> None:
    status, code, message = refusal(await post(make, await make.user(), "test", **body))
    assert (status, code) == (400, "INVALID_PARAMETER")
    assert message.startswith(f"参数错误: {field} ")


async def test_it_is_limited_to_ten_a_minute(
    make: Maker, receiver: Receiver, endless_minute: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(rate_limits.FIXED_RATES, "webhook-test", rate_limits.Rate(10, rate_limits.MINUTE))
    user, other = await make.user(), await make.user()
    answers = [await post(make, user, "test", url=receiver.url) for _ in range(12)]
    assert [answer.status_code for answer in answers] == [200] * 10 + [429] * 2
    assert refusal(answers[-1])[1] == "RATE_LIMITED"
    assert int(answers[-1].headers["retry-after"]) > 0
    assert (await sent(make, other, url=receiver.url))["delivered"]
    assert len(receiver.received) == 11


async def test_a_key_without_the_scope_is_forbidden(make: Maker) -> None:
    user = await make.user()
    key = {"X-API-Key": await create_key(make.runtime.database, user.id, scopes=("points",))}
    for method, path in (("GET", "secret"), ("POST", "test"), ("POST", "endpoints"), ("GET", "deliveries")):
        answer = await make.api.request(method, f"/user/webhooks/{path}", json={}, headers=key)
        assert refusal(answer)[0] in {400, 403}, path
    assert refusal(await make.api.get("/user/webhooks/secret", headers=key))[:2] == (403, "FORBIDDEN")


async def test_no_secret_is_ever_logged(
    make: Maker, receiver: Receiver, working: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(logs, "sys", SimpleNamespace(stderr=stream))
    logs.configure_logs(make.runtime.settings.model_copy(update={"log_level": "DEBUG"}))
    user = await make.user(points=100)
    made = await endpoint(make, user, receiver.url)
    secrets = [await secret_of(make, user), made["secret"], data(await post(make, user, "secret/rotate"))["secret"]]
    task_no = await make.task_no(user, '[[sandbox: {"take_seconds": 0}]]', callbackUrl=receiver.url + "?token=planted")
    await make.ended(user, task_no)
    await ended_deliveries(make.runtime, 2)  # it is recorded after it is logged
    await sent(make, user, url=receiver.url + "?token=planted")
    payload = stream.getvalue()
    assert "webhook_sent" in payload
    assert not [word for word in [*secrets, "planted", "whsec_"] if word in payload]
