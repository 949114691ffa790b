"""One user with many tasks does not keep the tasks of others waiting."""

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest

from app.aio import cancel_and_wait
from app.engine import pools
from app.engine import runner as runner_module
from app.engine.claim import TaskFilter
from app.engine.pools import Pool
from app.engine.runner import TaskRunner
from app.engine.state import ClaimedTask
from app.runtime import Runtime
from tests.support.makers import Maker, User
from tests.support.waiting import until
from tests.support.workers import stepping
from tests.support.worlds import execute

pytestmark = pytest.mark.anyio
SLOTS = 8  # of which 2 are kept for users who have none


@pytest.fixture
def few_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few slots and small batches; and a step that is begun does not end."""

    async def hang(_runtime: Runtime, _task: ClaimedTask, _can_continue: Callable[[str], bool]) -> None:
        await asyncio.sleep(3600)

    monkeypatch.setattr(runner_module, "run_steps", hang)
    monkeypatch.setattr(pools, "FAST_CONCURRENCY", SLOTS)
    monkeypatch.setattr(pools, "SLOW_CONCURRENCY", SLOTS)
    monkeypatch.setattr(runner_module, "MAX_CLAIM_ROWS", 3)
    monkeypatch.setattr(runner_module, "SUBMIT_GRACE_SECONDS", 0.1)
    monkeypatch.setattr(runner_module, "OTHERS_GRACE_SECONDS", 0.1)


def running(runner: TaskRunner) -> Counter[int]:
    return Counter(task.user_id for task in runner._running.values())


async def wait_in(make: Maker, step: str, user: User, number: int) -> None:
    for _ in range(number):
        await make.task_no(user)
    await execute(make.runtime, f"UPDATE tasks SET step = '{step}'")


@pytest.mark.both_worlds
@pytest.mark.parametrize("step", ["submit", "prepare"])
async def test_a_single_task_does_not_wait_behind_the_many_of_another_user(
    make: Maker, runtime: Runtime, few_slots: None, step: str
) -> None:
    many, other = await make.user(points=900), await make.user(points=30)
    await wait_in(make, step, many, 20)
    await wait_in(make, step, other, 1)
    async with stepping(runtime) as [runner]:
        await until("the single task runs", lambda: running(runner) == {many.id: SLOTS - 2, other.id: 1})
        late = await make.user(points=60)
        await wait_in(make, step, late, 2)
        await until("so does a later one", lambda: running(runner)[late.id] == 1)
        assert running(runner)[many.id] == SLOTS - 2, "and as long as they run, the many get no more"
        await cancel_and_wait(*runner._running)


async def test_a_slot_that_comes_back_goes_to_the_user_who_has_none(
    make: Maker, runtime: Runtime, few_slots: None
) -> None:
    many = await make.user(points=900)
    others = [await make.user(points=30) for _ in range(3)]
    await wait_in(make, "submit", many, 20)
    for other in others:
        await wait_in(make, "submit", other, 1)
    async with stepping(runtime) as [runner]:
        await until("all slots are taken", lambda: running(runner).total() == SLOTS)
        assert sorted(running(runner).values()) == [1, 1, SLOTS - 2]
        one = next(run for run, task in runner._running.items() if task.user_id == many.id)
        one.cancel()
        await until("the third has it", lambda: running(runner) == {many.id: SLOTS - 3} | {u.id: 1 for u in others})
        await cancel_and_wait(*runner._running)


def test_the_last_quarter_is_kept_for_users_with_less_than_an_eighth() -> None:
    pool = Pool(TaskFilter(("poll",)), 16)
    assert pool.acquire(16)
    assert pool.admit([1] * 16, 16) == [True] * 12 + [False] * 4
    assert pool.admit([1] * 13 + [2, 2, 2, 3, 3, 3], 16) == [*[True] * 12, False, True, True, False, True, True, False]
    for _ in range(12):
        pool.enter(1)
    pool.release(4)
    assert (pool.full_users(), pool.admit([1, 2], 0)) == ([1], [False, True])
    pool.leave(1)
    assert (pool.full_users(), pool.admit([1, 2], 0), pool.by_user[1]) == ([], [True, True], 11)


def test_a_pool_of_one_slot_keeps_none() -> None:
    pool = Pool(TaskFilter(("poll",)), 1)
    assert pool.acquire()
    assert pool.admit([1, 1], 1) == [True, False]
