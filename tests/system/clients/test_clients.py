"""Both clients against a gateway that is also killed and restarted: by WebSocket, by ticket and by polling."""

import asyncio
import base64
import json
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from standardwebhooks import Webhook

from app.accounts.api_keys import create_key
from app.accounts.credentials import sign_token
from app.accounts.users import create_user
from app.points import ledger
from app.points.audit.checks import audit
from app.runtime import open_runtime
from app.settings import Settings
from tests.support.clients.programs import CLIENTS, LANGUAGES, Call, Client
from tests.support.clients.proxy import Between, scripted
from tests.support.makers import TEXT_MODEL
from tests.support.ports import free_port
from tests.support.processes.process import Process, Processes
from tests.support.processes.proxy import proxied
from tests.support.sandbox_server import KEY, Server, directive
from tests.support.waiting import wait_until

POINTS = 1000
PRICE = 30
SUBMITTED = {"taskNo": "TASK-1", "status": "created", "progress": 0}


@dataclass
class User:
    token: str
    api_key: str


class Gateway:
    """`gateway up`, with a SEE2AI that keeps running when the gateway is killed."""

    def __init__(self, folder: Path, sandbox: Server) -> None:
        self.port, self.metrics_port, self.receiver_port = free_port(), free_port(), free_port()
        database_url = f"sqlite+aiosqlite:///{folder}/var/gateway.db"
        env = {
            "port": self.port,
            "metrics_port": self.metrics_port,
            "lease_seconds": 10,
            "see2ai_base_url": sandbox.origin,
            "see2ai_api_key": KEY,
            "egress_allow": f"{sandbox.origin.removeprefix('http://')},127.0.0.1:{self.receiver_port}",
            "read_rate_per_minute": 100_000,
        }
        self.processes = Processes(folder, env)
        self._settings = Settings(_env_file=None, database_url=database_url, storage_url=folder.as_uri())
        self._up = self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Process:
        self._up = self.processes.gateway("up").says("Stop with Ctrl-C").answers(f"{self.url}/healthz")
        return self._up

    def kill(self) -> None:
        self._up.kill()

    def user(self, points: int = POINTS) -> User:
        async def make() -> User:
            async with open_runtime(self._settings) as runtime:
                user_id = await create_user(runtime.database)
                if points:
                    await ledger.grant(runtime.database, user_id=user_id, points=points, ref=f"clients:{user_id}")
                api_key = await create_key(runtime.database, user_id)
                return User(sign_token(self._settings, user_id), api_key)

        return asyncio.run(make())

    def grant(self, user_id: int, points: int) -> None:
        async def give() -> None:
            async with open_runtime(self._settings) as runtime:
                await ledger.grant(runtime.database, user_id=user_id, points=points, ref=f"clients:{user_id}")

        asyncio.run(give())

    def call(self, client: Client, user: User, call: str, *args: Any, url: str = "", **options: Any) -> Call:
        return Call(client, url or self.url, [user.api_key], call, *args, **options)

    def get(self, user: User, path: str) -> Any:
        answer = httpx.get(self.url + path, headers={"X-API-Key": user.api_key}, timeout=30, trust_env=False)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def cancels(self, user: User, task_no: str) -> bool:
        """Whether the cancel succeeded. It fails while SEE2AI is called."""
        path, headers = f"/user/ai/tasks/{task_no}/cancel", {"X-API-Key": user.api_key}
        answer = httpx.post(self.url + path, headers=headers, timeout=30, trust_env=False)
        assert answer.status_code in {200, 409}, answer.text
        return answer.status_code == 200

    def pushed(self) -> float:
        """The number of task changes that were sent by WebSocket so far."""
        text = httpx.get(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=30, trust_env=False).text
        found = re.search(r'gateway_stream_events_total\{kind="websocket"\} (\S+)', text)
        return float(found[1]) if found else 0.0

    def audit(self) -> None:
        async def poll() -> None:
            async with open_runtime(self._settings) as runtime:
                assert await audit(runtime.database) == []

        asyncio.run(poll())


@pytest.fixture(scope="module")
def gateway(sandbox_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    running = Gateway(tmp_path_factory.mktemp("clients"), sandbox_server)
    with running.processes:
        yield running
        running.audit()


@contextmanager
def between(gateway: Gateway) -> Iterator[tuple[Between, str]]:
    with proxied("127.0.0.1", gateway.port, Between) as proxy:
        assert isinstance(proxy, Between)
        yield proxy, f"http://127.0.0.1:{proxy.port}"


every_client = pytest.mark.parametrize("client", CLIENTS, ids=str)
one_client_in_smoke = pytest.mark.parametrize(
    "client", [pytest.param(CLIENTS[0], marks=pytest.mark.smoke), *CLIENTS[1:]], ids=str
)
every_language = pytest.mark.parametrize("client", LANGUAGES, ids=str)
every_socket = pytest.mark.parametrize("client", [one for one in CLIENTS if one.by != "polling"], ids=str)


# ------------------------------------------------------------------ submit and wait


@one_client_in_smoke
def test_run_submits_waits_and_reports_progress(gateway: Gateway, client: Client) -> None:
    user, pushed = gateway.user(), gateway.pushed()
    run = gateway.call(client, user, "run", TEXT_MODEL, '[[sandbox: {"progress": [20, 60, 90], "take_seconds": 2.5}]]')
    task = run.result()
    assert (task["status"], task["progress"], task["estimatedSecondsLeft"]) == ("completed", 100, None)
    assert httpx.get(task["resultUrl"], timeout=30, trust_env=False).content[:2] == b"\xff\xd8"
    figures = [one["progress"] for one in run.progress]
    assert figures == sorted(figures)
    assert run.progress[-1] == task == gateway.get(user, f"/user/ai/tasks/{task['taskNo']}")
    assert {one["taskNo"] for one in run.progress} == {task["taskNo"]}
    assert (gateway.pushed() > pushed) == (client.by != "polling"), "it waited in the requested way"
    assert gateway.call(client, user, "wait", task["taskNo"]).result() == task, "nothing is left to wait for"


@every_client
def test_a_failed_task_is_a_normal_result(gateway: Gateway, client: Client) -> None:
    user = gateway.user()
    task = gateway.call(client, user, "run", TEXT_MODEL, '[[sandbox: {"end": "failed", "take_seconds": 0.5}]]').result()
    assert (task["status"], task["errorCode"], task["pointsRefunded"]) == ("failed", "UPSTREAM_FAILED", PRICE)
    assert "积分已退还" in task["errorMessage"]
    assert gateway.call(client, user, "balance").result()["balance"] == POINTS


@every_client
def test_waiting_ends_at_its_timeout_and_can_be_cancelled(gateway: Gateway, client: Client) -> None:
    user = gateway.user()
    task_no = gateway.call(client, user, "submit", TEXT_MODEL, '[[sandbox: {"end": "never"}]]').result()["taskNo"]
    calls = [
        gateway.call(client, user, "wait", task_no, timeout=1.5),
        gateway.call(client, user, "wait", task_no, abort_after=1.5),
    ]
    expired, aborted = [call.error() for call in calls]
    assert (expired["code"], expired["errorCode"]) == (0, "TIMEOUT")
    assert aborted["errorCode"] == "ABORTED"


@every_client
def test_a_refused_credential_is_reported_at_once(gateway: Gateway, client: Client) -> None:
    user, stranger = gateway.user(), gateway.user()
    task_no = gateway.call(client, user, "submit", TEXT_MODEL, '[[sandbox: {"take_seconds": 0}]]').result()["taskNo"]
    unknown = gateway.call(client, stranger, "wait", task_no).error()
    assert (unknown["code"], unknown["errorCode"]) == (404, "NOT_FOUND")
    nobody = Call(client, gateway.url, ["sk-nobody"], "wait", task_no).error()
    assert (nobody["code"], nobody["errorCode"], "未登录" in nobody["message"]) == (401, "UNAUTHENTICATED", True)


# ------------------------------------------------------------------ faults on the way


def test_clients_wait_for_a_gateway_that_is_killed_during_a_wait(gateway: Gateway) -> None:
    """All clients at once, because the gateway is killed only once. A client without a WebSocket polls."""
    user = gateway.user()
    able = [client for client in CLIENTS if _is_here(client)]
    # no task ends before the last program runs
    prompt = directive({"progress": [10, 20, 30, 40, 50, 60, 70, 80, 90], "take_seconds": 20})
    runs = {str(client): gateway.call(client, user, "run", TEXT_MODEL, prompt) for client in able}
    wait_until("all wait for SEE2AI", lambda: _processing(gateway, user) == len(runs))
    time.sleep(1)  # and their sockets are open
    gateway.kill()
    time.sleep(3)
    gateway.start()
    ends = {name: run.result()["status"] for name, run in runs.items()}
    assert ends == dict.fromkeys(runs, "completed")
    for run in runs.values():
        figures = [task["progress"] for task in run.progress]
        assert figures == sorted(figures)
    assert gateway.get(user, "/user/points/consumption/balance")["balance"] == POINTS - PRICE * len(runs)


def _processing(gateway: Gateway, user: User) -> int:
    return int(gateway.get(user, "/user/ai/tasks/list?status=processing")["total"])


def _is_here(client: Client) -> bool:
    try:
        client.command()
    except pytest.skip.Exception:
        return False
    return True


@every_language
def test_a_submit_whose_answer_was_lost_is_one_task(gateway: Gateway, client: Client) -> None:
    user = gateway.user()
    with between(gateway) as (proxy, url):
        proxy.lose = [b"POST /user/ai/tasks/submit"]
        task = gateway.call(client, user, "run", TEXT_MODEL, '[[sandbox: {"take_seconds": 0}]]', url=url).result()
        assert proxy.lost == [b"POST /user/ai/tasks/submit"]
    assert task["status"] == "completed"
    assert gateway.get(user, "/user/ai/tasks/list")["total"] == 1
    assert gateway.get(user, "/user/points/consumption/balance")["balance"] == POINTS - PRICE


@pytest.mark.parametrize("manners", ["refuse", "break"])
def test_clients_poll_if_sockets_are_refused_or_break(gateway: Gateway, manners: str) -> None:
    user, able = gateway.user(), [client for client in CLIENTS if client.by != "polling" and _is_here(client)]
    with ExitStack() as opened:
        ways = {str(client): opened.enter_context(between(gateway)) for client in able}
        for proxy, _ in ways.values():
            proxy.sockets = manners
        runs = {
            str(client): gateway.call(
                client, user, "run", TEXT_MODEL, '[[sandbox: {"take_seconds": 20}]]', url=ways[str(client)][1]
            )
            for client in able
        }
        ends = {name: run.result()["status"] for name, run in runs.items()}
        seen = {name: proxy.seen for name, (proxy, _) in ways.items()}
    assert ends == dict.fromkeys(runs, "completed")
    assert seen == dict.fromkeys(runs, [manners] * 3), "three attempts and no more"


@every_socket
def test_an_end_while_the_socket_is_being_opened_is_not_missed(gateway: Gateway, client: Client) -> None:
    user = gateway.user()
    with between(gateway) as (proxy, url):
        proxy.sockets = "hold"
        waiting = '[[sandbox: {"where": "submit", "fail": 429, "retry_after": 60}]]'  # it ends by the cancel below
        run = gateway.call(client, user, "run", TEXT_MODEL, waiting, url=url)
        task_no = run.next_progress()["taskNo"]
        wait_until("the socket is held", lambda: proxy.seen)
        pushed = gateway.pushed()
        wait_until("the task is cancelled", lambda: gateway.cancels(user, task_no))
        assert proxy.seen == ["hold"], "the end came while the first socket was held"
        began = time.monotonic()
        proxy.sockets = "pass"
        assert run.result()["errorCode"] == "CANCELLED"
        assert proxy.seen == ["hold"], "the same connection reported it"
        assert gateway.pushed() == pushed, "nothing may be pushed"
        assert time.monotonic() - began < 60  # a client that did not poll would have waited for 75 s of silence


# ------------------------------------------------------------------ what is retried, and what is not


def _answer(status: int, data: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
    body = {"code": status, "message": "success", "data": data}
    if status != 200:
        body |= {"message": "稍后", "errorCode": "UNAVAILABLE", "requestId": "r1"}
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, json.dumps(body).encode()


@every_language
def test_temporary_errors_are_retried_with_one_key_after_retry_after(client: Client) -> None:
    began = time.monotonic()
    with scripted(
        _answer(503, Retry_After="2"), None, _answer(429), (502, {}, b"<html>"), _answer(200, SUBMITTED)
    ) as far:
        assert Call(client, far.url, ["k"], "submit", "m", "p").result() == SUBMITTED
        keys = {request["idempotency-key"] for request in far.requests}
        assert (len(far.requests), len(keys)) == (5, 1)
        assert Call(client, far.url, ["k"], "submit", "m", "p").result() == SUBMITTED
        assert far.requests[-1]["idempotency-key"] not in keys
        assert Call(client, far.url, ["k"], "submit", "m", "p", idempotencyKey="own").result() == SUBMITTED
        assert far.requests[-1]["idempotency-key"] == "own"
    assert time.monotonic() - began > 2


@every_language
def test_lasting_errors_are_reported(gateway: Gateway, client: Client) -> None:
    with scripted(_answer(503, Retry_After="3600")) as far:
        error = Call(client, far.url, ["k"], "submit", "m", "p").error()
        assert len(far.requests) == 1, "the client must not sleep for an hour"
    assert (error["code"], error["errorCode"], error["retryAfter"]) == (503, "UNAVAILABLE", 3600)
    assert (error["message"], error["requestId"]) == ("稍后", "r1")
    with scripted((502, {}, b"<html>bad gateway")) as far:
        error = Call(client, far.url, ["k"], "submit", "m", "p").error()
        assert len(far.requests) == 5
    assert (error["code"], error["errorCode"], error["message"]) == (502, "HTTP_502", "<html>bad gateway")
    nowhere = Call(client, f"http://127.0.0.1:{free_port()}", ["k"], "submit", "m", "p").error()
    assert (nowhere["code"], nowhere["errorCode"]) == (0, "NETWORK")
    poor = gateway.call(client, gateway.user(points=10), "submit", TEXT_MODEL, "p").error()
    assert (poor["code"], poor["errorCode"], poor["retryAfter"]) == (402, "INSUFFICIENT_POINTS", None)
    assert poor["message"] == "积分不足，当前余额 10，本次需要 30"
    assert poor["requestId"]


@every_language
def test_a_wait_never_exceeds_its_timeout(client: Client) -> None:
    with scripted(_answer(503, Retry_After="120")) as far:
        error = Call(client, far.url, ["k"], "wait", "TASK-1", timeout=6).error()
        assert len(far.requests) == 1
    assert (error["code"], error["errorCode"]) == (0, "TIMEOUT")


@every_language
@pytest.mark.parametrize("body", [b"null", b'"Bad"', b"[]", b"7"])
def test_an_answer_in_an_unknown_form_is_retried(client: Client, body: bytes) -> None:
    with scripted((502, {}, body), _answer(200, SUBMITTED)) as far:
        assert Call(client, far.url, ["k"], "submit", "m", "p").result() == SUBMITTED
        assert len(far.requests) == 2


def test_an_answer_with_invalid_compression_is_retried() -> None:
    with scripted((200, {"Content-Encoding": "gzip"}, b"xx"), _answer(200, SUBMITTED)) as far:
        assert Call(LANGUAGES[0], far.url, ["k"], "submit", "m", "p").result() == SUBMITTED


@every_client
def test_a_credential_may_be_a_function_that_is_called_before_each_use(gateway: Gateway, client: Client) -> None:
    user = gateway.user()
    credentials = [user.token, *[user.api_key, user.token] * 20]
    run = Call(client, gateway.url, credentials, "run", TEXT_MODEL, '[[sandbox: {"take_seconds": 0}]]')
    assert run.result()["status"] == "completed"


# ------------------------------------------------------------------ log-in


@every_client
def test_a_credential_may_be_a_log_in(gateway: Gateway, client: Client) -> None:
    login = {"username": f"name-{client}", "password": "a-long-password-of-tests"}
    body = httpx.post(f"{gateway.url}/user/auth/register", json=login, timeout=30, trust_env=False).json()
    user_id = body["data"]["user"]["userId"]
    gateway.grant(user_id, POINTS)
    run = Call(client, gateway.url, [""], "run", TEXT_MODEL, '[[sandbox: {"take_seconds": 0}]]', login=login)
    assert run.result()["status"] == "completed"
    wrong = Call(client, gateway.url, [""], "balance", login=login | {"password": "another-long-password"}).error()
    assert (wrong["code"], wrong["errorCode"]) == (401, "UNAUTHENTICATED")
    assert wrong["message"] == "未登录: 用户名或密码错误"


@every_language
def test_keys_are_made_changed_rotated_and_revoked(gateway: Gateway, client: Client) -> None:
    login = {"username": f"keys-{client}", "password": "a-long-password-of-tests"}
    httpx.post(f"{gateway.url}/user/auth/register", json=login, timeout=30, trust_env=False).raise_for_status()

    def call(method: str, *args: Any, **options: Any) -> Any:
        return Call(client, gateway.url, [""], f"keys.{method}", *args, login=login, **options).result()

    made = call("create", name="shop", scopes=["points:read"], caps={"daily": 100})
    assert (made["apiKey"][:10], made["caps"]["daily"]) == (made["prefix"], 100)
    assert Call(client, gateway.url, [made["apiKey"]], "balance").result()["balance"] == 0
    assert call("change", made["id"], caps={"daily": None})["caps"]["daily"] is None
    new = call("rotate", made["id"], overlapHours=0)
    assert new["previous"]["id"] == made["id"]
    assert Call(client, gateway.url, [made["apiKey"]], "balance").error()["code"] == 401
    assert Call(client, gateway.url, [new["apiKey"]], "balance").result()["balance"] == 0
    assert call("revoke", new["id"])["status"] == "revoked"
    assert call("list")["total"] == 0
    assert {one["id"] for one in call("list", withRevoked=True)["records"]} == {made["id"], new["id"]}


@every_language
def test_a_key_is_not_made_twice_after_a_lost_answer(client: Client) -> None:
    with scripted(_answer(503), _answer(200, {"apiKey": "sk-second"})) as far:
        assert Call(client, far.url, ["jwt"], "keys.create").error()["code"] == 503
        assert len(far.requests) == 1


@every_language
def test_a_refused_access_token_is_refreshed_once(client: Client) -> None:
    def session(number: int) -> tuple[int, dict[str, str], bytes]:
        return _answer(200, {"accessToken": f"a{number}", "refreshToken": f"r{number}", "expiresIn": 1800})

    login = {"username": "alice", "password": "secret-of-tests"}
    with scripted(session(1), _answer(401), session(2), _answer(200, {"balance": 5})) as far:
        assert Call(client, far.url, [""], "balance", login=login).result() == {"balance": 5}
        assert [json.loads(body or "null") for body in far.bodies] == [login, None, {"refreshToken": "r1"}, None]
        assert [far.requests[place]["authorization"] for place in (1, 3)] == ["Bearer a1", "Bearer a2"]
    with scripted(session(1), _answer(401), _answer(401), session(3), _answer(401)) as far:
        assert Call(client, far.url, [""], "balance", login=login).error()["code"] == 401
        assert len(far.requests) == 5, "the session has ended: one new log-in, and no third try"


# ------------------------------------------------------------------ the other calls


@every_language
def test_upload_quote_models_balance_and_cancel(gateway: Gateway, client: Client, tmp_path: Path) -> None:
    user = gateway.user()

    def result(call: str, *args: Any, **options: Any) -> Any:
        return gateway.call(client, user, call, *args, **options).result()

    Image.new("RGB", (64, 48), "teal").save(tmp_path / "a.png")
    stored = result("upload", str(tmp_path / "a.png"))
    assert (stored["kind"], stored["type"], stored["width"]) == ("image", "image/png", 64)
    models = {model["modelName"]: model for model in result("models")}
    assert models[TEXT_MODEL]["pointsCost"] == PRICE
    video, params = "sc_video_img2video_fast", {"duration": 8}
    quote = result("quote", video, "海浪", imageUrl=stored["url"], params=params)
    assert quote == {"modelName": video, "pointsCost": 512, "balance": POINTS}
    waiting = result(
        "submit",
        "sc_soraimg_img2img_1x1",
        '[[sandbox: {"where": "submit", "fail": 429, "retry_after": 60}]]',
        imageUrl=[stored["url"]],
    )
    assert (waiting["imageUrl"], waiting["balance"]) == ([stored["url"]], POINTS - 35)
    assert result("balance")["held"] == 35
    assert result("cancel", waiting["taskNo"])["errorCode"] == "CANCELLED"
    assert result("task", waiting["taskNo"])["status"] == "failed"
    done = result("run", TEXT_MODEL, '[[sandbox: {"take_seconds": 0}]]', params={"resolution": "2K"})
    assert done["params"] == {"resolution": "2K"}
    late = gateway.call(client, user, "cancel", done["taskNo"]).error()
    assert (late["code"], late["errorCode"]) == (409, "NOT_CANCELLABLE")
    assert result("balance") == gateway.get(user, "/user/points/consumption/balance")


# ------------------------------------------------------------------ webhooks

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BODY = '{"test": 2432232314}'
NOW = 1614265330
GOOD = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
BAD = "v1," + base64.b64encode(bytes(32)).decode()


def _headers(signature: str = GOOD, *, at: int = NOW, **changes: str) -> dict[str, str]:
    payload = {
        "Webhook-Id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": str(at),
        "webhook-signature": signature,
    }
    return {name: value for name, value in (payload | changes).items() if value}


WEBHOOKS = {
    "the one of the standard": (_headers(), BODY, NOW, True),
    "one of several": (_headers(f"{BAD} v1a,{GOOD[3:]} v1,short nonsense {GOOD}"), BODY, NOW, True),
    "as late as may be": (_headers(), BODY, NOW + 300, True),
    "as early as may be": (_headers(), BODY, NOW - 300, True),
    "too late": (_headers(), BODY, NOW + 301, False),
    "too early": (_headers(), BODY, NOW - 301, False),
    "another body": (_headers(), BODY + " ", NOW, False),
    "another id": (_headers(**{"Webhook-Id": "msg_2"}), BODY, NOW, False),
    "another time": (_headers(at=NOW + 1), BODY, NOW, False),
    "another version": (_headers(GOOD.replace("v1,", "v2,")), BODY, NOW, False),
    "a wrong signature": (_headers(BAD), BODY, NOW, False),
    "no base64": (_headers("v1,é"), BODY, NOW, False),
    "no signature": (_headers(""), BODY, NOW, False),
    "no id": (_headers(**{"Webhook-Id": ""}), BODY, NOW, False),
    "no number of seconds": (_headers(**{"webhook-timestamp": "soon"}), BODY, NOW, False),
}


@every_language
def test_webhooks_are_accepted_by_their_signature_only(client: Client) -> None:
    calls = {
        name: (Call(client, "", [""], "verify", SECRET, headers, body, now=now), is_good)
        for name, (headers, body, now, is_good) in WEBHOOKS.items()
    }
    for name, (call, is_good) in calls.items():
        ended = call.end()
        if is_good:
            assert ended == {"result": {"test": 2432232314}}, name
        else:
            assert (ended.get("error") or {}).get("errorCode") == "WEBHOOK_INVALID", (name, ended)


@every_language
def test_a_webhook_of_the_gateway_is_accepted(gateway: Gateway, client: Client) -> None:
    user = gateway.user()
    secret = gateway.get(user, "/user/webhooks/secret")["secret"]
    with scripted((200, {}, b""), port=gateway.receiver_port) as receiver:
        run = gateway.call(
            client, user, "run", TEXT_MODEL, '橘猫 [[sandbox: {"take_seconds": 0}]]', callbackUrl=receiver.url
        )
        task = run.result()
        wait_until("the webhook has arrived", lambda: receiver.bodies, 60)
    headers, body = receiver.requests[0], receiver.bodies[0]
    payload = Call(client, "", [""], "verify", secret, headers, body).result()
    assert (payload["type"], payload["data"]) == ("task.completed", task)
    stranger = gateway.get(gateway.user(), "/user/webhooks/secret")["secret"]
    refused = Call(client, "", [""], "verify", stranger, headers, body).error()
    assert refused["errorCode"] == "WEBHOOK_INVALID"


@every_language
def test_a_current_webhook_needs_no_explicit_time(client: Client) -> None:
    from datetime import UTC, datetime

    body = json.dumps({"type": "task.completed", "timestamp": "x", "data": {"prompt": "橘猫"}}, ensure_ascii=False)
    moment = datetime.now(UTC)
    headers = _headers(
        Webhook(SECRET).sign("msg_1", moment, body), at=int(moment.timestamp()), **{"Webhook-Id": "msg_1"}
    )
    assert Call(client, "", [""], "verify", SECRET, headers, body).result() == json.loads(body)
