"""Rows of a batch go back to the queue in one statement, each with its own values and each behind its own fence."""

from dataclasses import replace
from typing import Any

import pytest

from app.engine.claim import TaskFilter, claim_due, release
from app.engine.pools import ALL_STEPS
from app.engine.state import ClaimedTask, Release, UpstreamState
from app.engine.transitions import unchanged
from app.runtime import Runtime
from tests.support.makers import Maker
from tests.support.worlds import execute

pytestmark = [pytest.mark.anyio, pytest.mark.both_worlds]

ALL = TaskFilter(ALL_STEPS)
NOTES = ("", "上游：\"慢\" 'x' \\ / \n\t", "😀 %s %(a)s {} [] :a ? \\u0041", '{"note": "[]"}', "长" * 5000)


async def claim(make: Maker, runtime: Runtime, number: int) -> list[ClaimedTask]:
    user = await make.user(points=30 * number)
    for _ in range(number):
        await make.task_no(user)
    return sorted(await claim_due(runtime.database, ALL, number, 30), key=lambda task: task.id)


async def rows(runtime: Runtime) -> dict[int, Any]:
    return {row.id: row for row in await execute(runtime, "SELECT * FROM tasks")}


async def expire_leases(runtime: Runtime, *ids: int) -> None:
    listed = ", ".join(map(str, ids))
    expired = "next_run_at = created_at, lease_until = created_at"
    await execute(runtime, f"UPDATE tasks SET {expired} WHERE id IN ({listed})")


async def test_each_row_gets_its_own_values(make: Maker, runtime: Runtime) -> None:
    claimed = await claim(make, runtime, 5)
    states = [UpstreamState(urls=(f"https://x/{place}",), note=note) for place, note in enumerate(NOTES)]
    releases = [
        Release(task, 3600.5 * place, place, place % 3, 10 * place, state)
        for place, (task, state) in enumerate(zip(claimed, states, strict=True))
    ]
    assert await release(runtime.database, releases[::-1]) == {task.id for task in claimed}
    await execute(runtime, "UPDATE tasks SET next_run_at = created_at WHERE next_run_at > created_at")
    found = {task.id: task for task in await claim_due(runtime.database, ALL, 9, 30)}
    for one in releases:
        task = found[one.task.id]
        assert (task.attempts, task.crashes, task.progress) == (one.attempts, one.crashes, one.progress)
        assert (task.upstream_state, task.version) == (one.upstream_state, one.task.version + 2)


async def test_each_row_is_due_after_its_own_delay(make: Maker, runtime: Runtime) -> None:
    delays = [0.0, 0.001, 61.5, 1800.0]
    claimed = await claim(make, runtime, len(delays))
    assert len(await release(runtime.database, [unchanged(*pair) for pair in zip(claimed, delays, strict=True)])) == 4
    await execute(runtime, "UPDATE tasks SET deadline_at = next_run_at")  # read as times by the claim below
    await execute(runtime, "UPDATE tasks SET next_run_at = created_at")
    found = sorted(await claim_due(runtime.database, ALL, 9, 30), key=lambda task: task.id)
    for task, delay in zip(found, delays, strict=True):
        assert -10 < (task.deadline_at - claimed[0].now).total_seconds() - delay < 10


async def test_a_row_that_another_worker_took_stays_and_the_others_are_released(make: Maker, runtime: Runtime) -> None:
    claimed = await claim(make, runtime, 5)
    taken = claimed[1:4:2]
    await expire_leases(runtime, *(task.id for task in taken))
    assert len(await claim_due(runtime.database, ALL, 9, 30)) == 2
    before = await rows(runtime)
    note = UpstreamState(note="late")
    released = await release(runtime.database, [Release(task, 5.0, 1, 1, 50, note) for task in claimed])
    after = await rows(runtime)
    assert released == {task.id for task in claimed if task not in taken}
    for task in taken:
        assert tuple(after[task.id]) == tuple(before[task.id])
    for task_id in released:
        assert (after[task_id].version, after[task_id].lease_until) == (before[task_id].version + 1, None)


async def test_an_older_and_a_newer_release_of_one_row_are_kept_apart(make: Maker, runtime: Runtime) -> None:
    """The batch of a worker that lost a row and claimed it again holds both."""
    (old,) = await claim(make, runtime, 1)
    await expire_leases(runtime, old.id)
    (new,) = await claim_due(runtime.database, ALL, 9, 30)
    batch = [Release(old, 5.0, progress=10), Release(new, 5.0, progress=20), Release(old, 5.0, progress=30)]
    assert await release(runtime.database, batch) == {old.id}
    row = (await rows(runtime))[old.id]
    assert (row.progress, row.version) == (20, new.version + 1)


async def test_rows_on_several_steps_are_released_together(make: Maker, runtime: Runtime) -> None:
    claimed = await claim(make, runtime, 3)
    await execute(runtime, f"UPDATE tasks SET step = 'poll' WHERE id = {claimed[1].id}")
    moved = replace(claimed[1], step="poll")
    batch = [unchanged(task, 1.0) for task in (claimed[0], moved, claimed[2])]
    assert await release(runtime.database, batch) == {task.id for task in claimed}
    assert {row.lease_until for row in (await rows(runtime)).values()} == {None}


async def test_a_step_that_another_led_to_keeps_its_row(make: Maker, runtime: Runtime) -> None:
    claimed = await claim(make, runtime, 2)
    await execute(runtime, f"UPDATE tasks SET step = 'poll' WHERE id = {claimed[1].id}")
    before = await rows(runtime)
    assert await release(runtime.database, [unchanged(task, 1.0) for task in claimed]) == {claimed[0].id}
    assert tuple((await rows(runtime))[claimed[1].id]) == tuple(before[claimed[1].id])


async def test_a_release_that_is_repeated_changes_nothing(make: Maker, runtime: Runtime) -> None:
    """The COMMIT of the first one was not answered. The rows stand as it left them, so they count as released."""
    claimed = await claim(make, runtime, 3)
    batch = [Release(task, 5.0, progress=10) for task in claimed]
    for _ in range(2):
        assert await release(runtime.database, batch) == {task.id for task in claimed}
        assert {row.version for row in (await rows(runtime)).values()} == {claimed[0].version + 1}


async def test_only_shown_progress_changes_the_time_of_the_last_change(make: Maker, runtime: Runtime) -> None:
    claimed = await claim(make, runtime, 2)
    await execute(runtime, "UPDATE tasks SET updated_at = '2020-01-01 00:00:00.000000'")
    await release(runtime.database, [Release(claimed[0], 5.0, progress=0), Release(claimed[1], 5.0, progress=10)])
    assert [str(row.updated_at)[:4] == "2020" for row in (await rows(runtime)).values()] == [True, False]
