"""Push: every user gets the changes of their own tasks at once, on each kind of stream, and of nobody else's."""

import asyncio
import base64
import contextlib
import io
import json
import socket as socket_module
import time
import tracemalloc
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus

from app.accounts.api_keys import create_key, revoke_named
from app.accounts.authentication import authenticate
from app.accounts.credentials import CLOCK_LEEWAY_SECONDS, sign_token
from app.accounts.tickets import make_ticket, redeem_ticket
from app.admin.actions import COMMAND_LINE
from app.admin.users import set_status
from app.api.push import connections, sse, websocket
from app.cli.run import server as listening
from app.errors import Unauthenticated
from app.runtime import Runtime, open_runtime
from app.settings import Settings
from app.tasks import stream as follow
from app.telemetry import metrics
from tests.support import streams
from tests.support.makers import Maker
from tests.support.responses import data, refusal
from tests.support.sandbox_server import directive
from tests.support.streams import DATABASE_NOW, EVENTS, TICKET, WS, Door, open_door, states
from tests.support.waiting import until
from tests.support.worlds import execute

pytestmark = pytest.mark.anyio
embedded = pytest.mark.worlds("embedded")
ORDER = ["created", "queued", "processing", "completed", "failed"]


@pytest.mark.usefixtures("working")
async def test_every_change_is_reported_in_order_and_as_get_reports_it(make: Maker, door: Door) -> None:
    user, other = await make.user(points=300), await make.user(points=300)
    async with (
        door.payload(user.token) as socket,
        door.payload(other.api_key) as stranger,
        door.events(Authorization=f"Bearer {user.api_key}") as events,
    ):
        # The task stays queued until SEE2AI has answered. The hang makes that long enough to be seen.
        good = await make.task_no(
            user,
            "好 "
            + directive(
                {"where": "submit", "fault": "hang", "seconds": 1, "times": 1},
                {"take_seconds": 1, "progress": [20, 60]},
            ),
        )
        bad = await make.task_no(user, '坏 [[sandbox: {"end": "failed"}]]')
        foreign = await make.task_no(other, "别人的")
        messages = await socket.until_ended(good, bad)
        events_seen = await events.until_ended(good, bad)
        theirs = await stranger.until_ended(foreign)
    for seen in (messages, events_seen):
        assert {m["data"]["taskNo"] for m in seen} == {good, bad}
        for task_no in (good, bad):
            payload = states(seen, task_no)
            assert payload == sorted(payload, key=lambda state: (ORDER.index(state[0]), state[1]))
            assert len(set(payload)) == len(payload)
    assert {m["data"]["taskNo"] for m in theirs} == {foreign}
    assert {"queued", "processing", "completed"} <= {status for status, _ in states(messages, good)}
    assert states(messages, bad)[-1][0] == "failed"
    for task_no in (good, bad):
        last = [m for m in messages if m["data"]["taskNo"] == task_no][-1]
        assert last["data"] == await make.task(user, task_no)
        assert last["id"].isdecimal()
        assert last in [{"type": "task"} | m for m in events_seen]


# ------------------------------------------------------------------ authentication


async def test_a_ticket_opens_one_stream_of_either_kind(make: Maker, runtime: Runtime, door: Door) -> None:
    user = await make.user(points=60)
    task_no = await make.task_no(user)
    for headers in (user.headers, user.key_headers):
        ticket = await door.ticket(headers)
        async with door.socket(f"?ticket={ticket}&since=2020-01-01") as socket:
            assert await socket.next() == {"type": "auth", "ok": True}
            assert (await socket.next())["data"]["taskNo"] == task_no
        async with door.socket(f"?ticket={ticket}") as again:
            assert await again.code() == 4401
        ticket = await door.ticket(headers)
        async with door.events(f"?ticket={ticket}&since=2020-01-01") as events:
            assert (await events.next_task())["data"]["taskNo"] == task_no
        for query in (f"?ticket={ticket}", "?ticket=", "?ticket=" + "x" * 5000, "?ticket=%F0%9F%98%80"):
            answer = await make.api.get(EVENTS + query, headers=user.headers)
            assert refusal(answer) == (401, "UNAUTHENTICATED", "未登录或Token过期")
    assert not [key async for key in runtime.redis.scan_iter("*ticket*")]


async def test_of_parallel_uses_of_a_ticket_one_succeeds(make: Maker, runtime: Runtime) -> None:
    user = await make.user()
    ticket = await make_ticket(runtime, await authenticate(runtime, user.token))
    kept = [key async for key in runtime.redis.scan_iter("*ticket*")]
    assert len(kept) == 1
    value = await runtime.redis.get(kept[0])
    assert 25 <= await runtime.redis.ttl(kept[0]) <= 30
    for secret in (ticket, user.token):
        assert secret not in str(kept) + str(value)
    tried = await asyncio.gather(*(redeem_ticket(runtime, ticket) for _ in range(20)), return_exceptions=True)
    assert [one.user_id for one in tried if not isinstance(one, BaseException)] == [user.id]
    assert sum(isinstance(one, Unauthenticated) for one in tried) == 19


async def test_a_ticket_ends_with_its_credential(make: Maker, runtime: Runtime) -> None:
    user = await make.user()
    key = await create_key(runtime.database, user.id, name="short", scopes=("tasks",))
    by_key = await make_ticket(runtime, await authenticate(runtime, key))
    by_token = await make_ticket(runtime, await authenticate(runtime, user.token))
    soon = sign_token(runtime.settings, (await make.user()).id, hours=2 / 3600)
    ended = await make_ticket(runtime, await authenticate(runtime, soon))
    await revoke_named(runtime.database, user.id, "short")
    await set_status(runtime.database, COMMAND_LINE, user.id, "banned")
    await asyncio.sleep(CLOCK_LEEWAY_SECONDS + 3.5)
    for ticket in (by_key, by_token, ended):
        with pytest.raises(Unauthenticated):
            await redeem_ticket(runtime, ticket)


@pytest.mark.worlds("real")
async def test_no_ticket_without_redis(make: Maker, runtime: Runtime) -> None:
    user = await make.user()
    deaf = runtime.settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"})
    async with open_runtime(deaf) as without, open_door(without) as door:
        async with httpx.AsyncClient(base_url=door.origin, timeout=60, trust_env=False) as client:
            answer = await client.post(TICKET, headers=user.headers)
            assert refusal(answer)[:2] == (503, "UNAVAILABLE")
            assert refusal(await client.get(EVENTS + "?ticket=x"))[:2] == (503, "UNAVAILABLE")
        async with door.socket("?ticket=x") as socket:
            assert await socket.code() == 1013
        async with door.payload(user.token):
            pass


@embedded
async def test_unauthenticated_callers_are_refused(make: Maker, runtime: Runtime, door: Door) -> None:
    user = await make.user()
    points_key = await create_key(runtime.database, user.id, scopes=("points",))
    banned = await make.user()
    await set_status(runtime.database, COMMAND_LINE, banned.id, "banned")
    expired = sign_token(runtime.settings, user.id, hours=-1)
    for token, code in {
        "": 4401,
        "x": 4401,
        "sk-" + "x" * 43: 4401,
        "x" * 5000: 4401,
        expired: 4401,
        banned.token: 4401,
        banned.api_key: 4401,
        points_key: 4403,
        "\ud800": 4401,
    }.items():
        async with door.socket() as socket:
            await socket.say(json.dumps({"type": "auth", "token": token}))
            assert await socket.code() == code, token
    for token in (None, 1, ["x"], {}):
        async with door.socket() as socket:
            await socket.say({"type": "auth", "token": token})
            assert await socket.code() == 4401
    for headers, status in (({}, 401), ({"X-API-Key": points_key}, 403), (banned.headers, 401)):
        for method, path in (("GET", EVENTS), ("POST", TICKET)):
            assert refusal(await make.api.request(method, path, headers=headers))[0] == status


@embedded
@pytest.mark.settings(cors_origins="https://app.example.com", public_url="https://api.example.com")
async def test_a_page_of_a_foreign_origin_is_refused(make: Maker, runtime: Runtime, door: Door) -> None:
    user = await make.user()
    for origin in ("https://app.example.com", "https://api.example.com", door.origin, None):
        async with door.payload(user.token, origin=origin):
            pass
    foreign = ("https://evil.example.com", "http://app.example.com", "null", "https://app.example.com.evil.com", "x://")
    foreign += ("http://[", "http://[x]")  # not URLs at all
    for origin in foreign:
        with pytest.raises(InvalidStatus) as refused:
            async with door.socket(origin=origin):
                pass
        assert refused.value.response.status_code == 403
        answer = await make.api.get(EVENTS, headers=user.headers | {"Origin": origin})
        assert refusal(answer) == (403, "FORBIDDEN", "来源不被允许")


# ------------------------------------------------------------------ messages of clients


@embedded
async def test_each_bad_message_has_its_code(
    make: Maker, runtime: Runtime, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await make.user()
    monkeypatch.setattr(websocket, "AUTH_SECONDS", 60)  # the error must be the bad message, not the timeout
    bad: dict[Any, int] = {
        "": 4400,
        "nonsense": 4400,
        "[]": 4400,
        "1": 4400,
        "[" * 10_000: 4400,
        "{}": 4400,
        '{"type":"ping"}': 4400,
        '{"type":["auth"]}': 4400,
        b"{}": 1003,
        b"\xff": 1003,
        "x" * (websocket.MAX_MESSAGE_BYTES + 1): 1009,
        "猫" * 17_000: 1009,
        json.dumps({"type": "auth", "token": user.token, "since": "nonsense"}): 4400,
        json.dumps({"type": "auth", "token": user.token, "since": True}): 4400,
        json.dumps({"type": "auth", "token": user.token, "since": [1]}): 4400,
        json.dumps({"type": "auth", "token": user.token, "since": 10**15}): 4400,
    }
    async with open_door(runtime) as door:
        for message, code in bad.items():
            async with door.socket() as socket:
                await socket.say(message)
                assert await socket.code() == code, message[:50]
        with monkeypatch.context() as patched:
            patched.setattr(websocket, "AUTH_SECONDS", 0.5)
            async with door.socket() as late:
                assert await late.code() == 4408
        after: dict[Any, int] = dict(list(bad.items())[:6]) | {
            '{"type":"task"}': 4400,
            b"{}": 1003,
            "x" * (websocket.MAX_MESSAGE_BYTES + 1): 1009,
            json.dumps({"type": "auth", "token": user.token}): 4400,
            json.dumps({"type": "auth", "token": user.token, "since": "2020-01-01"}): 4400,
        }
        for message, code in after.items():
            async with door.payload(user.token) as socket:
                await socket.say(message)
                assert await socket.code() == code, message[:50]
        async with door.payload(user.token) as socket:  # not UTF-8; the first byte of the frame is by hand
            socket.connection.transport.write(b"\x81\x82\0\0\0\0\xff\xff")
            assert await socket.code() == 1007
    assert "Traceback" not in log.getvalue()
    assert "stream_failed" not in log.getvalue()


@embedded
async def test_pings_are_answered_and_sent(make: Maker, door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "PING_SECONDS", 0.3)
    monkeypatch.setattr(websocket, "PONG_SECONDS", 0.01)
    user = await make.user()
    async with door.payload(user.token) as socket, door.events(**user.key_headers) as events:
        assert await socket.next() == {"type": "ping"}
        assert await socket.next() == {"type": "ping"}
        await socket.say({"type": "pong"})
        await socket.say({"type": "ping"})
        while await socket.next() != {"type": "pong"}:
            pass
        async with asyncio.timeout(30):
            async for line in events._lines:
                if line == ": ping":
                    break


# ------------------------------------------------------------------ ends of streams


@embedded
@pytest.mark.parametrize("how", ["banned", "revoked", "expired"])
async def test_a_stream_ends_with_its_credential(
    make: Maker, runtime: Runtime, door: Door, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "REAUTHENTICATE_SECONDS", 0.2)
    monkeypatch.setattr(follow, "PING_SECONDS", 0.2)
    user = await make.user()
    key = await create_key(runtime.database, user.id, name="short")
    soon = sign_token(runtime.settings, user.id, hours=5 / 3600)
    token = {"revoked": key, "expired": soon, "banned": user.token}[how]
    ticket = await door.ticket({"Authorization": f"Bearer {token}"})
    async with (
        door.payload(token) as socket,
        door.socket(f"?ticket={ticket}") as by_ticket,
        door.events(Authorization=f"Bearer {token}") as events,
    ):
        if how == "banned":
            await set_status(runtime.database, COMMAND_LINE, user.id, "banned")
        if how == "revoked":
            await revoke_named(runtime.database, user.id, "short")
        assert await socket.code() == 4401
        assert await by_ticket.code() == 4401
        assert await events.next_block() == {"event": "end", "data": '{"code":4401}'}
        assert await events.next_block() == {}


@embedded
async def test_twenty_streams_of_a_user_and_no_more(make: Maker, door: Door) -> None:
    user, other = await make.user(), await make.user()
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(10):
            await stack.enter_async_context(door.payload(user.token))
            await stack.enter_async_context(door.events(**user.headers))
        async with door.socket() as socket:
            await socket.say({"type": "auth", "token": user.token})
            assert await socket.code() == 4429
        assert refusal(await make.api.get(EVENTS, headers=other.headers | {"Origin": "x://"}))[0] == 403
        async with httpx.AsyncClient(base_url=door.origin, timeout=60, trust_env=False) as client:
            answer = await client.get(EVENTS, headers=user.headers)
        assert refusal(answer) == (429, "RATE_LIMITED", "同时打开的推送连接过多，最多 20 个")
        async with door.payload(other.token):
            pass
    await until("connections are free", lambda: not door.state.connection_limiter._open)
    async with door.payload(user.token):
        pass


@embedded
async def test_the_end_of_the_process_ends_streams_and_waits_at_once(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=30)
    task_no = await make.task_no(user)
    async with (
        open_door(runtime) as door,
        httpx.AsyncClient(base_url=door.origin, timeout=60, trust_env=False) as client,
    ):
        wait = client.get(f"/user/ai/tasks/{task_no}?wait=60", headers=user.headers)
        waiting = asyncio.create_task(wait)
        async with door.payload(user.token) as socket, door.events(**user.headers) as events:
            await asyncio.sleep(0.5)
            began = time.monotonic()
            runtime.pubsub.close_subscriptions()
            door.server.should_exit = True
            assert await socket.code() == 1012
            assert await events.next_block() == {"event": "end", "data": '{"code":1012}'}
            assert data(await waiting)["status"] == "created"
        assert time.monotonic() - began < 30


@embedded
async def test_a_waiting_request_holds_no_connection(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=30)
    task_no = await make.task_no(user)
    path = f"/user/ai/tasks/{task_no}?wait=6"
    waiting = [asyncio.create_task(make.api.get(path, headers=user.headers)) for _ in range(30)]
    await asyncio.sleep(1)
    pools = [engine.pool for engine in (runtime.database.readers, runtime.database.writers)]
    await until("no connection is held", lambda: not any(pool.checkedout() for pool in pools))
    assert not any(one.done() for one in waiting), "the waiting request held a database connection"
    assert {data(answer)["status"] for answer in await asyncio.gather(*waiting)} == {"created"}


# ------------------------------------------------------------------ consumers that do not read


@pytest.fixture
def short_kernel_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shortens the kernel's timeout for a peer that reads nothing. Request it before `door`.

    The kernel also takes few bytes, so that the gateway notices the peer long before the kernel's timeout.
    """
    monkeypatch.setattr(listening, "UNREAD_SECONDS", 15)

    def bind(*address: Any) -> socket_module.socket:
        sock = listening.bind_socket(*address)
        sock.setsockopt(socket_module.SOL_SOCKET, socket_module.SO_SNDBUF, 16_384)  # connections inherit it
        return sock

    monkeypatch.setattr(streams, "bind_socket", bind)


async def deaf_consumer(door: Door, request: bytes, first: bytes = b"") -> asyncio.StreamWriter:
    """A connection that subscribes and never reads. Its own buffers are small, so the kernel holds little data."""
    sock = socket_module.socket()
    sock.setsockopt(socket_module.SOL_SOCKET, socket_module.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", door.port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=4096)
    writer.write(request)
    await reader.readuntil(b"\r\n\r\n")
    writer.write(first)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    return writer


def masked(message: dict[str, Any]) -> bytes:
    """A client's text frame made by hand, with a mask of zeros."""
    payload = json.dumps(message).encode()
    return b"\x81\xfe" + len(payload).to_bytes(2, "big") + bytes(4) + payload


@embedded
@pytest.mark.parametrize("kind", ["websocket", "sse"])
async def test_a_consumer_that_never_reads_is_dropped(
    make: Maker,
    runtime: Runtime,
    short_kernel_timeout: None,
    door: Door,
    kind: str,
    log: io.StringIO,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another stream of the same user goes on, and memory does not grow."""
    monkeypatch.setattr(websocket, "SEND_TIMEOUT_SECONDS", 3.0)
    monkeypatch.setattr(sse, "SEND_TIMEOUT_SECONDS", 3.0)
    user = await make.user(points=30 * 100)
    numbers = [await make.task_no(user, "很长" * 2000) for _ in range(60)]
    key = base64.b64encode(bytes(16)).decode()
    head = {
        "websocket": f"GET {WS} HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n",
        "sse": f"GET {EVENTS}?since=2020-01-01 HTTP/1.1\r\nAuthorization: Bearer {user.token}\r\n",
    }
    dropped = metrics.SLOW_CONSUMERS.labels(kind)._value.get()
    first = masked({"type": "auth", "token": user.token, "since": "2020-01-01"}) if kind == "websocket" else b""
    request = head[kind] + f"Host: 127.0.0.1:{door.port}\r\n\r\n"
    writers = [await deaf_consumer(door, request.encode(), first) for _ in range(10)]
    async with door.payload(user.token, "2020-01-01") as reading:
        assert {m["data"]["taskNo"] for m in [await reading.next_task() for _ in numbers]} == set(numbers)
        tracemalloc.start()
        await asyncio.sleep(0.5)
        before = tracemalloc.get_traced_memory()[0]
        sql = f"UPDATE tasks SET progress = progress + 1, updated_at = {DATABASE_NOW[runtime.settings.is_sqlite]}"
        for _ in range(10):
            await execute(runtime, sql)
            for task_no in numbers:
                runtime.pubsub.publish(user.id, task_no)
            for _ in numbers:
                await reading.next_task()
        grown = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        # These rounds wrote 10 × 60 × 12 KB for each of ten consumers: 72 MB.
        assert grown < 10_000_000
        await until("dropped", lambda: metrics.SLOW_CONSUMERS.labels(kind)._value.get() == dropped + 10, 60)
        await until("connections are free", lambda: door.state.connection_limiter._open == {user.id: 1})
        again = await make.task_no(user)
        runtime.pubsub.publish(user.id, again)
        assert (await reading.next_task())["data"]["taskNo"] == again
        held = door.server.server_state.connections
        await until("their connections are gone", lambda: len(held) <= 1, 60)
    for writer in writers:
        writer.transport.abort()
    assert "Traceback" not in log.getvalue()


@embedded
async def test_a_ban_ends_streams_at_once_in_every_process(
    make: Maker, runtime: Runtime, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The streams do not wait for their check by the clock."""
    monkeypatch.setattr(connections, "REAUTHENTICATE_SECONDS", 1e6)
    user, other, admin = await make.user(), await make.user(), await make.user(admin=True)
    async with (
        open_runtime(settings) as second,
        open_door(second) as far,
        far.payload(user.token) as socket,
        far.events(**user.headers) as events,
        open_door(runtime) as near,
        near.payload(user.api_key) as at_home,
        far.payload(other.token) as stays,
    ):
        answer = await make.api.post(f"/admin/users/{user.id}/ban", json={}, headers=admin.headers)
        assert answer.status_code == 200
        assert await socket.code() == 4401
        assert await events.next_block() == {"event": "end", "data": '{"code":4401}'}
        assert await at_home.code() == 4401
        await stays.say({"type": "ping"})
        assert await stays.next() == {"type": "pong"}
