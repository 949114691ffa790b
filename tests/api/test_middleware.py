"""What surrounds every request: the headers of each answer, bounds, and errors before and after the first byte."""

import json
from typing import Any, cast

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.accounts.authentication import Caller
from app.api import middleware
from app.api.access.callers import CONTEXT, RequestContext
from app.api.middleware import PIECE_BYTES, RequestMiddleware
from app.errors import NotFound
from app.runtime import Runtime
from tests.support.makers import Maker
from tests.support.responses import BALANCE, LIST, SUBMIT, door, envelope

pytestmark = [pytest.mark.anyio, pytest.mark.worlds("embedded")]
ORIGIN = {"Origin": "https://app.example.com"}
MAX_BYTES = 10
BEGIN: Message = {"type": "http.response.start", "status": 200, "headers": []}


async def test_each_answer_has_its_headers_once(make: Maker, runtime: Runtime) -> None:
    """Of routes that FastAPI calls, of those that it does not, and of what is refused before either."""
    user = await make.user()
    preflight = ORIGIN | {"Access-Control-Request-Method": "GET"}
    calls: list[tuple[int, str, str, dict[str, Any]]] = [
        (200, "GET", BALANCE, {"headers": user.headers}),
        (200, "GET", BALANCE.replace("/", "//")[1:], {"headers": user.headers}),
        (200, "GET", "/healthz", {}),
        (200, "OPTIONS", BALANCE, {"headers": preflight}),
        (400, "GET", f"{LIST}?page=x", {"headers": user.headers}),
        (400, "OPTIONS", BALANCE, {"headers": preflight | {"Origin": "https://evil.example"}}),
        (401, "GET", BALANCE, {}),
        (404, "GET", "/nope", {}),
        (404, "GET", "/files/results/none.jpg", {}),
        (405, "PUT", SUBMIT, {}),
        (413, "POST", BALANCE, {"content": b"x" * 100_000}),
        (415, "POST", SUBMIT, {"headers": {"Content-Encoding": "gzip"}, "content": b"x"}),
        (415, "POST", SUBMIT, {"headers": user.headers, "content": b"x"}),
    ]
    async with door(runtime, cors_origins=ORIGIN["Origin"]) as api:
        for status, method, path, sent in calls:
            headers = ORIGIN | sent.pop("headers", {}) | {"X-Request-Id": "order-7"}
            answer = await api.request(method, path, headers=headers, **sent)
            assert answer.status_code == status, (method, path, answer.text)
            assert answer.headers.get_list("x-request-id") == ["order-7"], (method, path)
            assert answer.headers.get_list("x-content-type-options") == ["nosniff"], (method, path)
            if headers["Origin"] == ORIGIN["Origin"]:
                assert answer.headers.get_list("access-control-allow-origin") == [ORIGIN["Origin"]], (method, path)
            if method != "OPTIONS":
                envelope(answer)


def guarded(app: ASGIApp) -> RequestMiddleware:
    return RequestMiddleware(app, MAX_BYTES, {})


async def call(
    app: ASGIApp, *bodies: bytes, headers: Any = (), user_id: int | None = None, meanwhile: Any = None
) -> tuple[list[Message], Exception | None]:
    """What is sent for one request, and the error that is raised. `meanwhile` runs when the first bytes are sent."""
    scope: Scope = {"type": "http", "method": "POST", "path": "/", "raw_path": b"/", "headers": [*headers]}
    if user_id is not None:
        scope[CONTEXT] = RequestContext(cast(Runtime, None), Caller(user_id, "user"))
    waiting, sent, hooks = [*bodies], list[Message](), [meanwhile] if meanwhile else []

    async def receive() -> Message:
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    async def send(message: Message) -> None:
        sent.append(message)
        if message["type"] == "http.response.body" and hooks:
            await hooks.pop()()

    try:
        await app(scope, receive, send)
    except Exception as error:
        return sent, error
    return sent, None


def refused(sent: list[Message]) -> tuple[int, str]:
    """Status and error code of the one whole answer that was sent."""
    start, body = sent
    headers = dict(start["headers"])
    assert headers[b"x-content-type-options"] == b"nosniff"
    said = json.loads(body["body"])
    assert said["requestId"].encode() == headers[b"x-request-id"]
    return start["status"], said["errorCode"]


async def read_all(_: Scope, receive: Receive, send: Send) -> None:
    while (await receive())["more_body"]:
        pass
    await send(BEGIN | {"headers": []})
    await send({"type": "http.response.body", "body": b"read"})


async def test_a_body_is_bounded_whatever_its_headers_say() -> None:
    sent, raised = await call(guarded(read_all), b"12345", b"67890")
    assert (sent[0]["status"], sent[1]["body"], raised) == (200, b"read", None)
    for bodies, headers in (
        ((b"12345", b"678901"), ()),
        ((b"12345", b"678901"), ((b"content-length", b"9"),)),
        ((b"",), ((b"content-length", b"11"),)),
        ((b"",), ((b"content-length", b"9" * 5000),)),
    ):
        sent, raised = await call(guarded(read_all), *bodies, headers=headers)
        assert (refused(sent), raised) == ((413, "PAYLOAD_TOO_LARGE"), None), headers
    sent, raised = await call(guarded(read_all), b"", headers=((b"content-encoding", b"br"),))
    assert (refused(sent), raised) == ((415, "UNSUPPORTED_MEDIA"), None)


async def test_the_first_of_several_headers_counts() -> None:
    sent, _ = await call(guarded(read_all), b"", headers=[(b"x-request-id", b"one"), (b"x-request-id", b"two")])
    assert [value for name, value in sent[0]["headers"] if name == b"x-request-id"] == [b"one"]


async def test_an_error_before_the_first_byte_is_answered_and_a_later_one_is_raised() -> None:
    async def fail(_: Scope, __: Receive, send: Send) -> None:
        raise NotFound

    async def start_and_fail(_: Scope, __: Receive, send: Send) -> None:
        await send(BEGIN | {"headers": []})
        raise ValueError

    async def send_and_fail(_: Scope, __: Receive, send: Send) -> None:
        await send(BEGIN | {"headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise NotFound

    sent, raised = await call(guarded(fail), b"")
    assert (refused(sent), raised) == ((404, "NOT_FOUND"), None)
    sent, raised = await call(guarded(start_and_fail), b"")
    assert (refused(sent), raised) == ((500, "INTERNAL"), None)
    sent, raised = await call(guarded(send_and_fail), b"")
    assert ([one.get("body") for one in sent], type(raised)) == ([None, b"half"], NotFound)


async def test_an_answer_is_held_while_it_is_sent_and_the_next_of_its_user_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(middleware, "MAX_UNREAD_BYTES", 3 * PIECE_BYTES)
    body = b"x" * (2 * PIECE_BYTES + 1)
    others: list[list[Message]] = []

    async def answer(_: Scope, __: Receive, send: Send) -> None:
        await send(BEGIN | {"headers": []})
        await send({"type": "http.response.body", "body": body})

    async def small(_: Scope, __: Receive, send: Send) -> None:
        await send(BEGIN | {"headers": []})
        await send({"type": "http.response.body", "body": body[:PIECE_BYTES]})

    app = guarded(answer)

    async def request_more() -> None:
        others.extend([(await call(app, b"", user_id=user_id))[0] for user_id in (7, 8, None)])

    sent, raised = await call(app, b"", user_id=7, meanwhile=request_more)
    assert raised is None
    assert [len(one["body"]) for one in sent[1:]] == [PIECE_BYTES, PIECE_BYTES, 1]
    assert [one["more_body"] for one in sent[1:]] == [True, True, False]
    assert refused(others[0]) == (429, "RATE_LIMITED")
    assert [len(b"".join(one["body"] for one in other[1:])) for other in others[1:]] == [len(body)] * 2
    again, _ = await call(app, b"", user_id=7)
    assert len(again) == 4, "nothing is held once it is sent"
    assert len((await call(guarded(small), b"", user_id=7))[0]) == 2, "a short answer is one piece"
