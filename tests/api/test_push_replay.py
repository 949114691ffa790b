"""Push loses no change: changes before the stream began, late commits, lost hints and floods of hints."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy import text

from app.datetimes import format_local
from app.errors import Unavailable
from app.messaging import pubsub
from app.runtime import Runtime, open_runtime
from app.tasks import stream as follow
from tests.support.makers import Maker
from tests.support.processes.proxy import proxied
from tests.support.streams import DATABASE_NOW, Door, open_door, states
from tests.support.waiting import until
from tests.support.worlds import REAL, execute

pytestmark = [pytest.mark.anyio, pytest.mark.both_worlds(usually=REAL)]
embedded = pytest.mark.worlds("embedded")


# ------------------------------------------------------------------ replay


async def test_missed_changes_are_sent_first(make: Maker, runtime: Runtime, door: Door, working: None) -> None:
    user = await make.user(points=300)
    old = await make.task_no(user, "旧")
    await make.ended(user, old)
    moment = datetime.now(UTC) - timedelta(hours=1)
    await execute(runtime, "UPDATE tasks SET updated_at = :at", at=moment.strftime("%Y-%m-%d %H:%M:%S.000"))
    missed = [await make.task_no(user, f"{n}") for n in range(3)]
    for task_no in missed:
        await make.ended(user, task_no)
    since = format_local(datetime.now(UTC) - timedelta(minutes=5), runtime.settings.zone)
    async with door.payload(user.token, since) as socket:
        payload = await socket.until_ended(*missed)
        assert {m["data"]["taskNo"] for m in payload} == set(missed)
        assert [int(m["id"]) for m in payload] == sorted(int(m["id"]) for m in payload)
        assert [m["data"]["status"] for m in payload] == ["completed"] * 3
        assert await socket.silence(0.5) == []
        live = await make.task_no(user, "新")
        assert states(await socket.until_ended(live), live)[-1] == ("completed", 100)
    last = payload[-1]["id"]
    await execute(runtime, "UPDATE tasks SET updated_at = :at", at=moment.strftime("%Y-%m-%d %H:%M:%S.000"))
    await execute(
        runtime,
        "UPDATE tasks SET updated_at = :at WHERE task_no = :no",
        at=datetime.fromtimestamp(int(last) / 1000 + 1, UTC).strftime("%Y-%m-%d %H:%M:%S.000"),
        no=live,
    )
    async with door.payload(user.token, int(last)) as socket:
        assert (await socket.next())["data"]["taskNo"] == live
    async with door.events(**user.headers, **{"Last-Event-ID": last}) as events:
        assert (await events.next_task())["data"]["taskNo"] == live
    async with door.events("?since=2020-01-01", **user.headers) as events:
        assert len(await events.until_ended(old, live, *missed)) == 5
    async with door.payload(user.token) as socket:
        assert await socket.silence(0.5) == []
    ticket = await door.ticket(user.headers)
    async with door.socket(f"?ticket={ticket}") as socket:
        assert await socket.next() == {"type": "auth", "ok": True}
        await socket.say({"type": "auth", "since": "2020-01-01"})
        assert len(await socket.until_ended(old, live, *missed)) == 5
        await socket.say({"type": "auth", "since": "2020-01-01"})
        assert await socket.code() == 4400


@embedded
async def test_more_than_a_page_is_replayed_whole_and_in_order(
    make: Maker, runtime: Runtime, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many tasks changed at the same time, so a page ends in the middle of them."""
    monkeypatch.setattr(follow, "PAGE", 7)
    monkeypatch.setattr(follow, "_CHANGED_AFTER", follow._CHANGED_AFTER.limit(7))
    monkeypatch.setattr(follow, "_CHANGED_LATELY", follow._CHANGED_LATELY.limit(7))
    user, other = await make.user(points=3000), await make.user(points=30)
    numbers = [await make.task_no(user) for _ in range(30)]
    await make.task_no(other)
    await execute(runtime, "UPDATE tasks SET updated_at = '2026-01-01 00:00:00.000000' WHERE id > 4 AND id <= 22")
    async with door.payload(user.token, "2025-01-01") as socket:
        payload = [(await socket.next())["data"]["taskNo"] for _ in numbers]
        assert sorted(payload) == sorted(numbers)
        assert set(payload[:18]) == set(numbers[4:22])
        assert await socket.silence(0.3) == []


@embedded
async def test_since_may_be_the_year_1(make: Maker, door: Door) -> None:
    user, since = await make.user(points=60), "0001-01-01T00:00:00Z"
    await make.task_no(user)
    async with door.payload(user.token, since) as socket, door.events(f"?since={since}", **user.headers) as events:
        assert (await socket.next())["data"] == (await events.next_task())["data"]


async def _reported_by(changes: AsyncGenerator[dict[str, Any] | None, None], maximum: int) -> list[dict[str, Any]]:
    """That many rows, or fewer if no more come within a second."""
    rows: list[dict[str, Any]] = []
    with contextlib.suppress(TimeoutError):
        while len(rows) < maximum:
            async with asyncio.timeout(1):
                row = await anext(changes)
            rows += [row] if row else []
    return rows


@pytest.mark.parametrize("how", ["noticed", "passed", "queued", "requested"])
async def test_no_id_is_newer_than_a_change_not_sent_yet(make: Maker, runtime: Runtime, how: str) -> None:
    """A stream breaks after a new change and before older ones. `since` with its newest id finds the older ones."""
    user = await make.user(points=3000)
    numbers = [await make.task_no(user) for _ in range(45)]
    hour_ago = (datetime.now(UTC) - timedelta(hours=1)).strftime("%Y-%m-%d %H:%M:%S.000")
    await execute(runtime, "UPDATE tasks SET updated_at = :at", at=hour_ago)
    change = f"UPDATE tasks SET progress = 9, updated_at = {DATABASE_NOW[runtime.settings.is_sqlite]} WHERE task_no = "
    since = None if how in {"queued", "requested"} else datetime.now(UTC) - timedelta(hours=2)
    stream = follow.TaskStream(runtime, user.id, since)
    async with aclosing(stream.changes()) as changes:
        assert await anext(changes) is None
        if how == "noticed":  # before the replay began
            await execute(runtime, change + ":no", no=numbers[44])
            stream._subscription.push(numbers[44])
            rows = await _reported_by(changes, 1)
        elif how == "passed":  # the replay has begun and has not read everything
            rows = await _reported_by(changes, 1)
            await execute(runtime, change + ":no", no=numbers[25])
            rows += await _reported_by(changes, 39)
            assert numbers[25] in {row["task_no"] for row in rows}
        elif how == "queued":  # more than one query returns, newest first; the consumer took an hour for the others
            await execute(runtime, "UPDATE tasks SET progress = 8")
            stream._queried_at -= 7200
            await execute(runtime, change + ":no", no=numbers[44])
            for task_no in reversed(numbers):
                stream._subscription.push(task_no)
            rows = await _reported_by(changes, 20)
        else:  # while a hint was being handled, the caller requested older changes
            await execute(runtime, change + ":a OR task_no = :b", a=numbers[43], b=numbers[44])
            stream._subscription.push(numbers[43])
            stream._subscription.push(numbers[44])
            rows = await _reported_by(changes, 1)
            stream.replay(datetime.now(UTC) - timedelta(hours=2))
            rows = await _reported_by(changes, 1)
    payload = {row["task_no"] for row in rows}
    newest = follow.read_since(max((follow.event_id(row) for row in rows), key=int), runtime.settings.zone)
    async with aclosing(follow.TaskStream(runtime, user.id, newest).changes()) as changes:
        payload |= {row["task_no"] for row in await _reported_by(changes, 100)}
    assert payload == set(numbers)


@embedded
async def test_since_finds_changes_that_no_hint_and_no_query_found_yet(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=60)
    lost, noticed = await make.task_no(user), await make.task_no(user)
    now = datetime.now(UTC)
    earlier = (now - timedelta(seconds=60)).strftime("%Y-%m-%d %H:%M:%S.000")
    await execute(runtime, "UPDATE tasks SET updated_at = :at WHERE task_no = :no", at=earlier, no=lost)
    async with aclosing(follow.TaskStream(runtime, user.id, now).changes()) as changes:
        assert {row["task_no"] for row in await _reported_by(changes, 9)} == {lost, noticed}


@pytest.fixture
def short_poll_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shortens the intervals of the queries."""
    monkeypatch.setattr(pubsub, "POLL_SECONDS", 0.5)
    monkeypatch.setattr(pubsub, "DISCONNECTED_POLL_SECONDS", 0.2)
    monkeypatch.setattr(follow, "RETRY_SECONDS", 0.1)


@pytest.mark.usefixtures("short_poll_intervals")
async def test_a_change_committed_late_is_not_missed(make: Maker, runtime: Runtime, door: Door) -> None:
    """A change dated before the streams and before `since`, committed after both, and without a hint."""
    user = await make.user(points=60)
    numbers = [await make.task_no(user), await make.task_no(user)]
    since = str(int(time.time() * 1000))
    is_written, may_commit = asyncio.Event(), asyncio.Event()

    async def write_late() -> None:
        dated = (datetime.now(UTC) - timedelta(seconds=10)).strftime("%Y-%m-%d %H:%M:%S.000")
        change = "UPDATE tasks SET progress = 17, status = 'processing', updated_at = :at WHERE task_no = :no"
        async with runtime.database.begin() as connection:
            await connection.execute(text(change), {"at": dated, "no": numbers[0]})
            is_written.set()
            await may_commit.wait()

    writing = asyncio.create_task(write_late())
    await is_written.wait()
    async with door.payload(user.token) as live, door.payload(user.token, since) as replayed:
        assert {(await replayed.next())["data"]["taskNo"] for _ in numbers} == set(numbers)
        assert await live.silence(1.5) == await replayed.silence(0.1) == []
        may_commit.set()
        await writing
        for socket in (live, replayed):
            assert states([await socket.next()], numbers[0]) == [("processing", 17)]
            assert await socket.silence(0.3) == []


# ------------------------------------------------------------------ lost hints


@pytest.mark.usefixtures("short_poll_intervals", "working")
async def test_the_end_is_sent_although_every_hint_is_lost(
    make: Maker, runtime: Runtime, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await make.user(points=60)
    monkeypatch.setattr(runtime.pubsub, "publish", lambda *_: None)
    async with door.payload(user.token) as socket, door.events(**user.headers) as events:
        task_no = await make.task_no(user)
        for payload in (await socket.until_ended(task_no), await events.until_ended(task_no)):
            assert states(payload, task_no)[-1] == ("completed", 100)


@pytest.mark.worlds("real")
@pytest.mark.parametrize("how", ["cut", "frozen", "nowhere"])
async def test_streams_outlive_redis(
    make: Maker, runtime: Runtime, how: str, working: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The API's Redis is behind a proxy that refuses or swallows everything, and later forwards again."""
    monkeypatch.setattr(pubsub, "IDLE_TIMEOUT_SECONDS", 0.3)
    at = urlsplit(runtime.settings.redis_url)
    user = await make.user(points=300)
    with proxied(at.hostname or "", at.port or 6379) as proxy:
        through = runtime.settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{proxy.port}{at.path}"})
        if how == "nowhere":
            proxy.set("refuse")
        async with open_runtime(through) as deaf, open_door(deaf) as door, door.payload(user.token) as socket:
            if how != "nowhere":
                first = await make.task_no(user)
                await socket.until_ended(first)
                await until("connected", lambda: deaf.pubsub.poll_interval == pubsub.POLL_SECONDS)
                proxy.set({"cut": "refuse", "frozen": "blackhole"}[how])
            await until("disconnected", lambda: deaf.pubsub.poll_interval == pubsub.DISCONNECTED_POLL_SECONDS, 30)
            second = await make.task_no(user)
            assert states(await socket.until_ended(second), second)[-1] == ("completed", 100)
            proxy.set("pass")
            await until("connected", lambda: deaf.pubsub.poll_interval == pubsub.POLL_SECONDS, 30)
            third = await make.task_no(user)
            assert states(await socket.until_ended(third), third)[-1] == ("completed", 100)


@embedded
async def test_a_flood_of_hints_only_leads_to_one_query(make: Maker, runtime: Runtime) -> None:
    """A subscription queues a hundred task numbers. With more it drops them all; one query finds the changes."""
    user, other = await make.user(), await make.user()
    async with runtime.pubsub.subscribe(user.id) as subscription, runtime.pubsub.subscribe(other.id) as quiet:
        await until("connected", lambda: runtime.pubsub.poll_interval == pubsub.POLL_SECONDS)
        await subscription.wait(1)
        quiet.drain()
        subscription.drain()
        for n in range(50):
            runtime.pubsub.publish(user.id, f"T{n}")
            runtime.pubsub.publish(user.id, f"T{n}")
        await until("all came", lambda: len(subscription._task_nos) >= 50)
        assert subscription.drain() == ([f"T{n}" for n in range(50)], False)
        for n in range(101):
            runtime.pubsub.publish(user.id, f"T{n}")
        await until("too many came", lambda: subscription._has_lost)
        assert subscription.drain() == ([], True)
        assert quiet.drain() == ([], False)


async def test_a_hint_about_another_users_task_sends_nothing(make: Maker, runtime: Runtime, door: Door) -> None:
    user, other = await make.user(points=30), await make.user(points=30)
    foreign, own = await make.task_no(other), await make.task_no(user)
    async with runtime.pubsub.subscribe(other.id):
        await until("connected", lambda: runtime.pubsub.poll_interval == pubsub.POLL_SECONDS)
        async with door.payload(user.token) as socket:  # only hints make this stream query
            now = DATABASE_NOW[runtime.settings.is_sqlite]
            await execute(runtime, f"UPDATE tasks SET progress = 9, updated_at = {now}")
            runtime.pubsub.publish(user.id, foreign)
            assert await socket.silence(0.5) == []
            runtime.pubsub.publish(user.id, own)
            assert (await socket.next())["data"]["taskNo"] == own


@embedded
async def test_a_stream_whose_queue_overflows_loses_nothing(
    make: Maker, runtime: Runtime, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pubsub, "MAX_QUEUED", 3)
    user = await make.user(points=3000)
    numbers = [await make.task_no(user) for _ in range(30)]
    async with door.payload(user.token) as socket:
        await execute(
            runtime, f"UPDATE tasks SET progress = 9, updated_at = {DATABASE_NOW[runtime.settings.is_sqlite]}"
        )
        for task_no in numbers:
            runtime.pubsub.publish(user.id, task_no)
        payload = [(await socket.next())["data"] for _ in numbers]
        assert {(task["taskNo"], task["progress"]) for task in payload} == {(task_no, 9) for task_no in numbers}
        assert await socket.silence(0.3) == []


@embedded
@pytest.mark.usefixtures("short_poll_intervals")
async def test_a_stream_outlives_the_database(
    make: Maker, runtime: Runtime, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await make.user(points=60)
    task_no = await make.task_no(user)
    async with door.payload(user.token) as socket:
        read, is_away = runtime.database.read, True

        def away(*args: Any) -> Any:
            if is_away:
                raise Unavailable
            return read(*args)

        await execute(
            runtime, f"UPDATE tasks SET progress = 9, updated_at = {DATABASE_NOW[runtime.settings.is_sqlite]}"
        )
        monkeypatch.setattr(runtime.database, "read", away)
        runtime.pubsub.publish(user.id, task_no)
        assert await socket.silence(1) == []
        async with door.socket() as other:
            await other.say({"type": "auth", "token": user.token})
            assert await other.code() == 1013
        is_away = False
        assert states([await socket.next()], task_no) == [("created", 9)]
