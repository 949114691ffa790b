"""A worker queries for due rows at the moment when a row that it put back is due."""

import asyncio
from collections.abc import Callable

import pytest

from app.aio import Alarm
from app.engine.runner import TaskRunner
from app.runtime import Runtime
from tests.support.makers import Maker
from tests.support.sandbox_server import Server
from tests.support.task_rows import polls, row_of
from tests.support.waiting import until

pytestmark = pytest.mark.anyio


@pytest.mark.usefixtures("hurry")
async def test_a_row_is_polled_when_it_is_due_and_not_at_the_next_idle_query(
    make: Maker, runtime: Runtime, upstream: Server, advance_sandbox: Callable[[float], None]
) -> None:
    """The worker would be idle for an hour: after the submit (an Advance) and after each poll (a Release)."""
    user = await make.user(points=30)
    task_no = await make.task_no(user, '[[sandbox: {"take_seconds": 600}]]')
    runner = TaskRunner(runtime, idle_seconds=3600)
    work = asyncio.create_task(runner.run())

    async def was_polled() -> bool:
        return len(polls(upstream, await row_of(runtime, task_no))) >= 4

    await until("four polls", was_polled)
    advance_sandbox(600)
    assert (await make.ended(user, task_no))["status"] == "completed"
    runner.stop()
    await work


@pytest.mark.usefixtures("hurry")
async def test_a_submit_that_was_not_sent_is_tried_again_when_it_is_due(
    make: Maker, runtime: Runtime, upstream: Server
) -> None:
    user = await make.user(points=30)
    upstream.control({"where": "submit", "fail": 503, "times": 2})
    task_no = await make.task_no(user, '[[sandbox: {"take_seconds": 0}]] again')
    runner = TaskRunner(runtime, idle_seconds=3600)
    work = asyncio.create_task(runner.run())
    assert (await make.ended(user, task_no))["status"] == "completed"
    runner.stop()
    await work


async def test_many_moments_share_a_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    rings: list[float] = []
    loop = asyncio.get_running_loop()
    alarm, began = Alarm(lambda: rings.append(loop.time())), loop.time()
    seconds = [0.001 * place for place in range(100)]
    for one in seconds * 10:
        alarm.ring_after(one)
    most = round(0.1 / Alarm.TICK_SECONDS) + 1
    assert 1 <= len(alarm._ticks) <= most
    await until("all have come", lambda: not alarm._ticks)
    assert 1 <= len(rings) <= most
    assert rings[-1] - began >= seconds[-1], "none rings before its moment"
    alarm.ring_after(0.0)
    await until("and again", lambda: len(rings) > most or rings[-1] - began > seconds[-1])
