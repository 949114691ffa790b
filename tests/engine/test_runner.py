"""The task runner and the fence: each step runs once, exceptions end a task, leases hold, and stopping is safe."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from app.engine import execute as engine_execute
from app.engine import runner as runner_module
from app.engine.claim import TaskFilter, claim_due, has_due, release, renew_leases
from app.engine.execute import LostLease, run_steps
from app.engine.pools import ALL_STEPS
from app.engine.runner import TaskRunner
from app.engine.state import ClaimedTask, UpstreamState, boottime
from app.engine.steps import rehost
from app.engine.transitions import Decision, unchanged
from app.errors import Unavailable
from app.runtime import Runtime, open_runtime
from app.upstreams.protocol import UpstreamResult
from app.upstreams.see2ai.actions import Action
from app.upstreams.see2ai.client import See2aiClient
from tests.support.makers import Maker
from tests.support.sandbox_server import Server, directive
from tests.support.waiting import until
from tests.support.workers import stepping
from tests.support.worlds import REAL, execute

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("hurry"), pytest.mark.both_worlds]

ALL = TaskFilter(ALL_STEPS)


def accepted(upstream: Server) -> list[dict[str, Any]]:
    return upstream.journal(outcome="accepted")


async def claim_one(runtime: Runtime, lease_seconds: float = 30) -> ClaimedTask:
    (task,) = await claim_due(runtime.database, ALL, 1, lease_seconds)
    return task


async def lose_lease(runtime: Runtime) -> None:
    """As if the lease had expired by the database's clock."""
    await execute(runtime, "UPDATE tasks SET next_run_at = created_at, lease_until = created_at WHERE step <> 'done'")


@pytest.mark.both_worlds(usually=REAL)
async def test_four_runners_and_many_wakeups_run_each_step_once(
    make: Maker, runtime: Runtime, upstream: Server
) -> None:
    user = await make.user(points=30 * 30)
    numbers = await asyncio.gather(*[make.task_no(user, f"第{n}张") for n in range(30)])
    async with stepping(runtime, 4) as runners:
        for _ in range(10):
            for runner in runners:
                runner.wake()
            await asyncio.sleep(0.02)
        ended = await asyncio.gather(*[make.ended(user, number) for number in numbers])
    assert {task["status"] for task in ended} == {"completed"}
    assert len(accepted(upstream)) == 30
    assert await make.balance(user) == (0, 0)


async def test_no_row_is_claimed_twice(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=600)
    for _ in range(20):
        await make.task_no(user)
    batches = await asyncio.gather(*[claim_due(runtime.database, ALL, 7, 30) for _ in range(6)])
    ids = [task.id for batch in batches for task in batch]
    assert len(ids) == len(set(ids)) == 20
    assert {task.status for batch in batches for task in batch} == {"queued"}


async def test_a_worker_that_lost_its_lease_sends_nothing_and_changes_nothing(
    make: Maker, runtime: Runtime, upstream: Server
) -> None:
    user = await make.user(points=30)
    task_no = await make.task_no(user)
    frozen = await claim_one(runtime)
    await lose_lease(runtime)
    await claim_one(runtime)  # another worker has it now
    with pytest.raises(LostLease):
        await run_steps(runtime, frozen)
    assert accepted(upstream) == []
    assert (await make.task(user, task_no))["status"] == "queued"


async def test_a_worker_frozen_past_its_lease_sends_nothing(make: Maker, runtime: Runtime, upstream: Server) -> None:
    """No other worker claimed the task, so the version is unchanged. Only its own clock stops the request."""
    user = await make.user(points=30)
    await make.task_no(user)
    frozen = await claim_one(runtime)
    frozen.held_until = boottime() - 1
    with pytest.raises(LostLease):
        await run_steps(runtime, frozen)
    assert accepted(upstream) == []


async def test_a_late_success_after_the_refund_changes_nothing(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=30)
    task_no = await make.task_no(user)
    late = await claim_one(runtime)
    await lose_lease(runtime)
    await execute(runtime, "UPDATE tasks SET step = 'submitting'")
    assert await run_steps(runtime, await claim_one(runtime)) is None
    assert (await make.task(user, task_no))["status"] == "failed"
    late.step, late.upstream_state = "poll", UpstreamState()
    with pytest.raises(LostLease):
        await engine_execute._end(runtime, late, engine_execute.Complete([{"key": "k", "thumbnailKey": "t"}]))
    assert (await make.task(user, task_no))["status"] == "failed"
    assert await make.balance(user) == (30, 0)


async def test_found_submitting_again_is_refunded_and_never_sent(
    make: Maker, runtime: Runtime, upstream: Server
) -> None:
    user = await make.user(points=30)
    task_no = await make.task_no(user)
    await execute(runtime, "UPDATE tasks SET step = 'submitting', lease_until = created_at")
    async with stepping(runtime):
        task = await make.ended(user, task_no)
    assert (task["status"], task["errorCode"]) == ("failed", "UPSTREAM_UNCERTAIN")
    assert accepted(upstream) == []
    row = (await execute(runtime, "SELECT suspected_orphan FROM tasks")).scalar()
    assert row == 1


async def test_a_step_that_raises_three_times_ends_its_task_with_a_refund(
    make: Maker, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed: list[str] = []

    async def broken(_runtime: Runtime, task: ClaimedTask) -> None:
        claimed.append(task.task_no)
        raise ZeroDivisionError("a bug of ours")

    monkeypatch.setattr(engine_execute, "rehost_results", broken)
    user = await make.user(points=60)
    task_no = await make.task_no(user)
    async with stepping(runtime):
        task = await make.ended(user, task_no)
    assert (task["status"], task["errorCode"]) == ("failed", "INTERNAL")
    assert claimed == [task_no] * 3
    assert "ZeroDivision" not in str(task)


async def test_three_crashes_in_a_row_end_a_task_and_a_finished_step_resets_them(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=60)
    first, second = await make.task_no(user), await make.task_no(user)
    for _ in range(3):
        assert await claim_due(runtime.database, ALL, 9, 30)
        await lose_lease(runtime)
    claimed = await claim_due(runtime.database, ALL, 9, 30)
    assert [task.crashes for task in claimed] == [3, 3]
    claimed[1].crashes = 2
    for task in claimed:
        await run_steps(runtime, task)
    assert (await make.task(user, first))["errorCode"] == "INTERNAL"
    assert (await make.task(user, second))["status"] == "processing"
    assert (await execute(runtime, f"SELECT crashes FROM tasks WHERE task_no = '{second}'")).scalar() == 0


async def test_quarantined_tasks_run_one_at_a_time(
    make: Maker, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await make.user(points=300)
    numbers = [await make.task_no(user) for _ in range(5)]
    for _ in range(2):
        await claim_due(runtime.database, ALL, 9, 30)
        await lose_lease(runtime)
    together, maximum = 0, 0
    real = engine_execute.submit

    async def watched(*args: Any) -> Any:
        nonlocal together, maximum
        together += 1
        maximum = max(maximum, together)
        await asyncio.sleep(0.02)
        try:
            return await real(*args)
        finally:
            together -= 1

    monkeypatch.setattr(engine_execute, "submit", watched)
    async with stepping(runtime):
        for number in numbers:
            assert (await make.ended(user, number))["status"] == "completed"
    assert maximum == 1


async def test_only_the_holder_renews_a_lease(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=60)
    await make.task_no(user)
    task = await claim_one(runtime, lease_seconds=5)
    before = task.held_until
    await renew_leases(runtime.database, [task], 60)
    assert task.held_until > before + 50
    held = task.held_until
    task.version -= 1  # as if another worker had claimed it since
    await renew_leases(runtime.database, [task], 600)
    assert task.held_until == held


@pytest.mark.full
@pytest.mark.settings(lease_seconds=9)
async def test_work_longer_than_a_lease_is_not_taken_over(
    make: Maker, runtime: Runtime, upstream: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = rehost._rehost

    async def slow(*args: Any) -> Any:
        await asyncio.sleep(12)
        return await real(*args)

    monkeypatch.setattr(rehost, "_rehost", slow)
    user = await make.user(points=30)
    task_no = await make.task_no(user)
    async with stepping(runtime, 2):
        assert (await make.ended(user, task_no))["status"] == "completed"
    crashes = (await execute(runtime, "SELECT crashes FROM tasks")).scalar()
    assert (crashes, len(accepted(upstream))) == (0, 1)


async def test_a_stopping_worker_waits_for_the_answer_to_a_submit(
    make: Maker, runtime: Runtime, upstream: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "OTHERS_GRACE_SECONDS", 0.1)
    user = await make.user(points=30)
    task_no = await make.task_no(user, '慢 [[sandbox: {"where": "submit", "fault": "hang", "seconds": 5}]]')
    async with stepping(runtime):
        while (await execute(runtime, "SELECT step FROM tasks")).scalar() != "submitting":
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)
    assert (await execute(runtime, "SELECT step FROM tasks")).scalar() == "poll"
    async with stepping(runtime):
        assert (await make.ended(user, task_no))["status"] == "completed"
    assert len(accepted(upstream)) == 1


async def test_a_stopping_worker_releases_other_tasks_at_once(
    make: Maker, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "OTHERS_GRACE_SECONDS", 0.1)
    user = await make.user(points=30)
    task_no = await make.task_no(user, "挂 " + directive({"where": "poll", "fault": "hang", "seconds": 20, "times": 1}))
    async with stepping(runtime):
        while (await execute(runtime, "SELECT step FROM tasks")).scalar() != "poll":
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.3)
    row = (await execute(runtime, "SELECT lease_until, crashes FROM tasks")).one()
    assert tuple(row) == (None, 0)
    async with stepping(runtime):
        assert (await make.ended(user, task_no))["status"] == "completed"


async def test_a_task_that_outlives_its_cancellation_keeps_its_row(
    make: Maker, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer came together with the cancellation, which a library swallowed. One task rehosts the result."""
    monkeypatch.setattr(runner_module, "OTHERS_GRACE_SECONDS", 0.1)
    real_poll, real_hosting, polling = See2aiClient.poll, engine_execute.rehost_results, asyncio.Event()

    async def swallowing(self: See2aiClient, action: Action, task_id: str) -> UpstreamResult:
        if not polling.is_set():
            polling.set()
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
        return await real_poll(self, action, task_id)

    async def slow(runtime: Runtime, task: ClaimedTask) -> Decision:
        await asyncio.sleep(0.5)
        return await real_hosting(runtime, task)

    monkeypatch.setattr(See2aiClient, "poll", swallowing)
    monkeypatch.setattr(engine_execute, "rehost_results", slow)
    monkeypatch.setattr(runner_module, "BATCH_WINDOW_SECONDS", 0.2)
    user = await make.user(points=30)
    task_no = await make.task_no(user)
    async with stepping(runtime):
        await polling.wait()
        await asyncio.sleep(1)
    assert (await make.task(user, task_no))["status"] == "completed"


async def test_stopping_ends_although_a_library_swallows_the_cancellation(
    make: Maker, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Database drivers do so under a time-out of their own."""
    is_writing, swallowed = asyncio.Event(), 0

    async def deaf(*_args: Any) -> None:
        nonlocal swallowed
        is_writing.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            swallowed += 1

    user = await make.user(points=30)
    await make.task_no(user, '长 [[sandbox: {"take_seconds": 60}]]')
    monkeypatch.setattr(runner_module, "release", deaf)
    runner = TaskRunner(runtime, idle_seconds=0.05)
    work = asyncio.create_task(runner.run())
    await asyncio.wait_for(is_writing.wait(), 60)
    monkeypatch.setattr(runner_module, "release", release)
    runner.stop()
    await asyncio.wait_for(work, 60)
    assert swallowed == 1


async def test_rows_are_released_once_the_database_is_back(
    make: Maker, runtime: Runtime, monkeypatch: pytest.MonkeyPatch, advance_sandbox: Callable[[float], None]
) -> None:
    """An outage shorter than the lease costs no crash."""
    away, tried = True, 0
    real: Callable[..., Any] = release

    async def flaky(*args: Any) -> Any:
        nonlocal tried
        if away:
            tried += 1
            raise Unavailable
        return await real(*args)

    monkeypatch.setattr(runner_module, "release", flaky)
    user = await make.user(points=30)
    task_no = await make.task_no(user, '长 [[sandbox: {"take_seconds": 600}]]')
    async with stepping(runtime):
        await until("several releases have failed", lambda: tried > 2)
        away = False
        advance_sandbox(600)
        assert (await make.ended(user, task_no))["status"] == "completed"
    assert (await execute(runtime, "SELECT crashes FROM tasks")).scalar() == 0


async def test_no_more_is_claimed_than_can_be_released(
    make: Maker, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that wait in the worker for long lose their leases and count as crashes."""
    monkeypatch.setattr(runner_module, "MAX_RELEASE_ROWS", 2)
    runner = TaskRunner(runtime)
    user = await make.user(points=30 * 4)
    for n in range(2):
        await make.task_no(user, f"done {n}")
    for task in await claim_due(runtime.database, ALL, 9, 30):
        runner._release(unchanged(task, 60.0))
    fresh = await make.task_no(user, "fresh")
    untouched = "SELECT COUNT(*) FROM tasks WHERE task_no = :no AND lease_until IS NULL AND version = 0"
    assert not await runner._claim_once()
    assert (await execute(runtime, untouched, no=fresh)).scalar() == 1
    await runner._flush_releases()
    assert runner._woken.is_set()
    assert await has_due(runtime.database, [ALL]) == [True]
    await runner._claim_once()
    assert (await execute(runtime, untouched, no=fresh)).scalar() == 0
    runner.stop()
    await runner._drain()
    await runner._flush_releases()


@pytest.mark.worlds("real")
async def test_the_work_goes_on_without_redis(make: Maker, runtime: Runtime) -> None:
    """A runtime whose Redis does not exist: submits answer, tasks end."""
    settings = runtime.settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"})
    async with open_runtime(settings) as deaf, stepping(deaf):
        maker = Maker(deaf, make.api)
        user = await maker.user(points=30)
        assert (await make.ended(user, await make.task_no(user)))["status"] == "completed"
        deaf.pubsub.publish(user.id, "x")
