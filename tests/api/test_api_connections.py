"""Every phase of a connection has a bound in bytes and in time, and what ends a connection leaves one line."""

import asyncio
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.api.push import connections as streams
from app.api.server import http_protocol, open_connections, refusals, websocket_protocol
from app.api.server.http_protocol import MAX_HEADERS, MAX_LINE_BYTES, MAX_PIPELINED
from app.api.server.open_connections import OpenConnections
from app.runtime import Runtime
from app.telemetry import metrics
from tests.support.makers import Maker
from tests.support.raw_connections import HANDSHAKE, talk
from tests.support.responses import BALANCE, SUBMIT, data, refusal
from tests.support.streams import Door, open_door
from tests.support.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.worlds("embedded")]

GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
POST = b"POST " + SUBMIT.encode() + b" HTTP/1.1\r\nHost: x\r\n"
CLOSE = b"Connection: close\r\n\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
PIECE = b"a" * 16_384
TOO_LARGE = (431, "HEADERS_TOO_LARGE", "请求行或请求头过大")
TOO_SLOW = (408, "REQUEST_TIMEOUT", "请求未在时限内发送完毕")
NOT_HTTP = (400, "INVALID_PARAMETER", "参数错误: 请求 不是有效的 HTTP 请求")
BODY_TOO_LARGE = (413, "PAYLOAD_TOO_LARGE", "请求内容过大")


@pytest.fixture(autouse=True)
def fresh_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line is left out because of an earlier test."""
    monkeypatch.setattr(refusals, "_windows", {})


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds in time shrunk to a test's patience."""
    for name in ("HEAD_SECONDS", "BODY_SECONDS", "LATE_BODY_SECONDS", "UNREAD_SECONDS"):
        monkeypatch.setattr(http_protocol, name, 0.4)
    monkeypatch.setattr(http_protocol, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(http_protocol, "MIN_RATE", 1_000_000)


@pytest.fixture
async def headers(make: Maker) -> bytes:
    """The header lines of a caller whom the API knows: it reads no other body."""
    user = await make.user()
    return b"Host: x\r\nX-API-Key: %s\r\nContent-Type: application/json\r\n" % user.api_key.encode()


def known(parts: list[bytes], headers: bytes) -> list[bytes]:
    return [part.replace(b"Host: x\r\n", headers) if part.startswith(POST) else part for part in parts]


def lines(log: io.StringIO) -> Counter[str]:
    """The lines about ended connections, by reason. No other line may be there."""
    found: Counter[str] = Counter()
    for line in log.getvalue().splitlines():
        if "file_limit" not in line:
            event = json.loads(line)
            assert event["event"] == "connection_refused", line
            assert event["client"] == "127.0.0.1"
            found[event["reason"]] += 1
    return found


json_logs = pytest.mark.settings(log_format="json")


@json_logs
@pytest.mark.parametrize(
    ("parts", "reason", "wanted"),
    [
        ([GET, *[b"X-%d: " % number + b"a" * 1000 + b"\r\n" for number in range(90)]], "head_too_large", TOO_LARGE),
        ([GET + b"X: ", *[PIECE] * 400], "head_too_large", TOO_LARGE),
        ([b"GET /" + b"a" * MAX_LINE_BYTES + b" HTTP/1.1\r\n" + CLOSE], "head_too_large", TOO_LARGE),
        ([b"GET /", *[PIECE] * 400], "head_too_large", TOO_LARGE),
        ([GET, *[b"a: b\r\n"] * (MAX_HEADERS + 1), CLOSE], "head_too_large", TOO_LARGE),
        ([GET + b"X: " + b"a" * MAX_LINE_BYTES + b"\r\n" + CLOSE], "head_too_large", TOO_LARGE),
        ([b"\r\n" * 1000] * 40, "head_too_large", TOO_LARGE),
        ([GET + b"X:", *[b" " * 16_384] * 4], "head_too_large", TOO_LARGE),
        ([CHUNKED + b"1;a=", *[PIECE] * 400], "body_too_large", BODY_TOO_LARGE),
        ([CHUNKED + b"1\r\n{\r\n0\r\nX: ", *[PIECE] * 400], "body_too_large", BODY_TOO_LARGE),
        ([CHUNKED + b"1\r\n{\r\n0\r\n", *[b"X: y\r\n" * 1000] * 40], "body_too_large", BODY_TOO_LARGE),
        ([CHUNKED + b"nonsense\r\n\r\n"], "malformed", NOT_HTTP),
        ([b"\x16\x03\x01\x02\x00\x01\x00"], "malformed", NOT_HTTP),
        ([b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"], "malformed", NOT_HTTP),
        ([HANDSHAKE.replace(b"GET", b"POST") + b"\r\n"], "malformed", NOT_HTTP),
        ([HANDSHAKE.replace(b"/ws", b"/ws?\xff") + b"\r\n"], "malformed", NOT_HTTP),
        ([HANDSHAKE + b"Content-Length: 1\r\n\r\na"], "malformed", NOT_HTTP),
        ([HANDSHAKE + b"X: " + b"a" * MAX_LINE_BYTES + b"\r\n\r\n"], "head_too_large", TOO_LARGE),
    ],
)
async def test_too_much_is_refused_with_one_line(
    log: io.StringIO, door: Door, headers: bytes, parts: list[bytes], reason: str, wanted: tuple[int, str, str]
) -> None:
    answer = await talk(door.port, *known(parts, headers))
    response = httpx.Response(answer.statuses[0], headers=answer.headers, json=answer.body)
    assert refusal(response) == wanted
    assert len(answer.statuses) == 1
    assert answer.headers["connection"] == "close"
    assert lines(log) == {reason: 1}
    assert answer.headers["x-request-id"] in log.getvalue()


@json_logs
@pytest.mark.parametrize(
    ("parts", "reason", "status"),
    [
        ([], "silent", None),
        ([b"\r\n"] * 20, "silent", None),
        ([GET], "head_too_slow", 408),
        ([b"G", b"E", b"T", b" ", b"/", b"a", b"b", b"c", b"d", b"e", b"f", b"g", b"h"], "head_too_slow", 408),
        ([POST + b"Content-Length: 100\r\n\r\n{"], "body_too_slow", 408),
        ([POST + b"Content-Length: 100\r\n\r\n", *[b" "] * 20], "body_too_slow", 408),
        ([CHUNKED, *[b"1\r\n \r\n"] * 20], "body_too_slow", 408),
        ([CHUNKED + b"1\r\n \r\n0\r\n", *[b"X: y\r\n"] * 20], "body_too_slow", 408),
        # The response is complete at once. What the client still sends is dropped for a while.
        ([POST.replace(b"POST", b"PUT") + b"Content-Length: 100000\r\n\r\n", *[b" " * 999] * 20], "body_too_slow", 405),
    ],
)
async def test_too_slow_is_refused_with_one_line(
    log: io.StringIO, impatient: None, door: Door, headers: bytes, parts: list[bytes], reason: str, status: int | None
) -> None:
    answer = await talk(door.port, *known(parts, headers), pause=0.05)
    assert answer.statuses == ([] if status is None else [status])
    assert lines(log) == {reason: 1}


@json_logs
async def test_an_idle_connection_ends_without_a_line(log: io.StringIO, door: Door) -> None:
    door.server.config.timeout_keep_alive = 0.3
    assert (await talk(door.port, GET + b"\r\n")).statuses == [200]
    assert (await talk(door.port, GET + b"\r\n", b"\r\n", pause=0.1)).statuses == [200]
    assert lines(log) == {}


async def test_what_honest_clients_send_is_served(impatient: None, door: Door, make: Maker) -> None:
    user = await make.user(points=60)
    big = b"X: " + b"a" * (MAX_LINE_BYTES - 10) + b"\r\n"
    many = b"".join(b"X-%d: y\r\n" % number for number in range(MAX_HEADERS - 2))
    for head in (big * 4, many):
        assert (await talk(door.port, GET + head + CLOSE)).statuses == [200]
    key = b"X-API-Key: " + user.api_key.encode() + b"\r\nContent-Type: application/json\r\n"
    body = json.dumps({"modelName": "sc_soraimg_text_1x1", "prompt": "猫"}).encode()
    chunks = [b"%x;ext=1\r\n" % len(body[at : at + 7]) + body[at : at + 7] + b"\r\n" for at in range(0, len(body), 7)]
    head = POST + key + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = await talk(door.port, head, *chunks, b"0\r\nX-Trailer: y\r\nAuthorization: z\r\n\r\n")
    assert answer.statuses == [200]
    assert (await talk(door.port, (GET + b"\r\n") * MAX_PIPELINED + GET + CLOSE)).statuses == [200] * (
        MAX_PIPELINED + 1
    )
    upgrade = GET + b"Connection: Upgrade, close\r\nUpgrade: h2c\r\n\r\n"
    assert (await talk(door.port, upgrade)).statuses == [200]


async def test_a_body_that_the_application_does_not_read_yet_is_not_late(
    impatient: None, door: Door, make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await make.user()
    check = door.state.rate_limiter.check

    async def slow_check(*arguments: Any) -> None:
        await asyncio.sleep(1)
        await check(*arguments)

    monkeypatch.setattr(door.state.rate_limiter, "check", slow_check)
    head = POST + b"X-API-Key: %s\r\nContent-Type: application/json\r\n" % user.api_key.encode()
    head += b"Connection: close\r\nContent-Length: 200000\r\n"
    for parts in ([head + b"\r\n" + b" " * 200_000], [head + b"Expect: 100-continue\r\n\r\n"]):
        answer = await talk(door.port, *parts)
        assert answer.statuses[-1] in {400, 408}, answer.raw
        assert answer.statuses != [408]


@json_logs
async def test_pipelined_requests_are_bounded(log: io.StringIO, door: Door) -> None:
    answer = await talk(door.port, *[(GET + b"\r\n") * 1000] * 20)
    assert set(answer.statuses) <= {200}
    assert lines(log) == {"too_many_pipelined": 1}


@json_logs
async def test_a_client_that_does_not_read_is_let_go(
    log: io.StringIO, impatient: None, runtime: Runtime, door: Door, tmp_path: Path
) -> None:
    large = tmp_path / "large"
    large.write_bytes(bytes(20_000_000))
    await runtime.store.put_file("results/large.mp4", large, "video/mp4")
    _, writer = await asyncio.open_connection("127.0.0.1", door.port, limit=4096)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(b"GET /files/results/large.mp4 HTTP/1.1\r\nHost: x\r\n\r\n")
    await until("a line", lambda: lines(log) == {"not_read": 1})
    await until("it is closed", lambda: not door.server.server_state.connections)
    writer.transport.abort()


@json_logs
async def test_a_flood_of_refusals_is_no_flood_of_lines(log: io.StringIO, door: Door) -> None:
    counted = metrics.CONNECTIONS_REFUSED.labels("malformed")._value
    before = counted.get()
    for _ in range(30):
        assert (await talk(door.port, b"\0\r\n\r\n")).statuses == [400]
    assert counted.get() == before + 30
    assert lines(log) == {"malformed": refusals.MAX_LINES}
    refusals._windows[refusals.Reason.MALFORMED].began -= refusals.WINDOW_SECONDS
    await talk(door.port, b"\0\r\n\r\n")
    assert json.loads(log.getvalue().splitlines()[-1])["more"] == 30 - refusals.MAX_LINES


# ------------------------------------------------------------------ WebSockets


def frame(opcode: int, payload: bytes = b"", *, is_last: bool = True) -> bytes:
    """Of a client; the mask is zero."""
    return bytes([opcode | (0x80 if is_last else 0), 0x80 | len(payload)]) + bytes(4) + payload


@json_logs
@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        (frame(9), "too_many_frames"),
        (frame(10), "too_many_frames"),
        (frame(0, is_last=False), "too_many_frames"),
        (frame(1, b"{}"), "too_many_frames"),
    ],
)
async def test_frames_in_a_flood_end_a_websocket(
    log: io.StringIO, door: Door, make: Maker, frames: bytes, reason: str
) -> None:
    user = await make.user()
    auth = json.dumps({"type": "auth", "token": user.api_key}).encode()
    async with door.payload(user.token) as socket:
        begin = frame(1, auth[:0], is_last=False) if frames[0] == 0 else b""
        socket.connection.transport.write(begin + frames * 5000)
        assert await socket.code() == 1006
    assert lines(log) == {reason: 1}


@json_logs
async def test_a_message_that_is_no_utf8_leaves_one_line(log: io.StringIO, door: Door) -> None:
    async with door.socket() as socket:
        socket.connection.transport.write(frame(1, b"\xff\xff"))
        assert await socket.code() == 1007
    assert lines(log) == {"malformed": 1}


@json_logs
async def test_a_handshake_has_its_time(log: io.StringIO, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket_protocol, "HANDSHAKE_SECONDS", 0.2)
    async with open_door(runtime) as door:

        async def never(*_: Any) -> None:
            await asyncio.sleep(3600)

        door.server.config.loaded_app = never
        assert (await talk(door.port, HANDSHAKE + b"\r\n")).raw == b""
        assert lines(log) == {"malformed": 1}
        for task in door.server.server_state.tasks:
            task.cancel()


# ------------------------------------------------------------------ how many


class Connected:
    """A connection that notes its end."""

    is_replaced = False

    def replace(self) -> None:
        self.is_replaced = True


def test_who_waits_longest_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_connections, "max_connections", lambda: 3)
    opened, (busy, silent, slow, new, newer) = OpenConnections(), [Connected() for _ in range(5)]
    for connection in (busy, silent, slow):
        assert opened.add(connection, 0)
        opened.begin_wait(connection)
    opened.end_wait(busy)
    opened.begin_wait(silent)
    assert opened.add(new, 0)
    assert [one.is_replaced for one in (busy, silent, slow)] == [False, False, True]
    assert opened.add(newer, 3), "another file than a connection took the last place"
    assert silent.is_replaced
    opened.discard(newer)
    assert opened.add(newer, 0)
    last = Connected()
    assert not opened.add(last, 0), "all are in use"
    assert not any(one.is_replaced for one in (busy, new, newer))


@json_logs
async def test_a_process_without_a_place_says_so_at_once(
    log: io.StringIO, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_connections, "max_connections", lambda: 0)
    answer = await talk(door.port, GET + b"\r\n")
    assert answer.statuses == [503]
    assert answer.body["errorCode"] == "UNAVAILABLE"
    assert int(answer.headers["retry-after"]) > 0
    assert lines(log) == {"full": 1}


async def test_waiting_requests_of_a_user_are_counted(door: Door, make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_WAITS", 3)
    user, other = await make.user(points=30), await make.user(points=30)
    task_no, foreign = await make.task_no(user), await make.task_no(other)
    wait = f"/user/ai/tasks/{task_no}?wait=60"
    waiting = door.state.connection_limiter._waiting
    async with httpx.AsyncClient(base_url=door.origin, timeout=60, trust_env=False) as client:
        waits = [asyncio.create_task(client.get(wait, headers=user.headers)) for _ in range(3)]
        await until("three wait", lambda: waiting == {user.id: 3})
        refused = await client.get(wait, headers=user.headers)
        assert refusal(refused) == (429, "RATE_LIMITED", "同时等待的请求过多，最多 3 个")
        assert refused.headers["retry-after"] == "5"
        assert data(await client.get(f"/user/ai/tasks/{task_no}", headers=user.headers))["status"] == "created"
        assert data(await client.get(f"/user/ai/tasks/{foreign}?wait=1", headers=other.headers))
        assert data(await client.get(BALANCE, headers=user.headers))
        for one in waits:
            one.cancel()
        await until("who hangs up waits no longer", lambda: not waiting)
