"""A pool gives a slot to each running task, and gets it back however the task ends."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from app.engine import runner as runner_module
from app.engine.claim import ClaimCommitUnknown, TaskFilter, claim_due
from app.engine.execute import LostLease
from app.engine.pools import Pool
from app.engine.runner import TaskRunner
from app.engine.state import ClaimedTask, Release
from app.engine.transitions import unchanged
from app.errors import Unavailable
from app.runtime import Runtime
from tests.support.makers import Maker

pytestmark = pytest.mark.anyio
CanContinue = Callable[[str], bool]
Steps = Callable[[ClaimedTask, CanContinue], Awaitable[Release | None]]


async def writes_all(_task: ClaimedTask, _can_continue: CanContinue) -> None:
    return None


async def releases(task: ClaimedTask, _can_continue: CanContinue) -> Release:
    return unchanged(task, 60.0)


async def raises(_task: ClaimedTask, _can_continue: CanContinue) -> None:
    raise ZeroDivisionError


async def loses_its_lease(_task: ClaimedTask, _can_continue: CanContinue) -> None:
    raise LostLease


async def finds_no_database(_task: ClaimedTask, _can_continue: CanContinue) -> None:
    raise Unavailable


async def is_cancelled(_task: ClaimedTask, _can_continue: CanContinue) -> None:
    raise asyncio.CancelledError


WAYS = [writes_all, releases, raises, loses_its_lease, finds_no_database, is_cancelled]


class Slots:
    """A runner with one claimed task on `submit`, and the used slots of its pools while the task runs."""

    def __init__(self, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runner = TaskRunner(runtime)
        self.submit, self.poll, self.rehost = (
            self.runner.pool_for(step, "see2ai_image_generation_fast_v1") for step in ("submit", "poll", "rehost")
        )
        self._monkeypatch = monkeypatch

    async def run(self, steps: Steps) -> None:
        async def run_steps(_runtime: Runtime, task: ClaimedTask, can_continue: CanContinue) -> Release | None:
            assert self.used() == (1, 0, 0)
            return await steps(task, can_continue)

        self._monkeypatch.setattr(runner_module, "run_steps", run_steps)
        await self.runner._claim(self.submit)
        (running,) = self.runner._running
        await asyncio.wait([running])
        assert self.runner._running == {}

    def used(self) -> tuple[int, int, int]:
        return self.submit.used, self.poll.used, self.rehost.used


@pytest.fixture
async def slots(make: Maker, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Slots:
    await make.task_no(await make.user(points=30))
    return Slots(runtime, monkeypatch)


@pytest.mark.parametrize("way", WAYS)
async def test_a_slot_is_returned_however_the_task_ends(slots: Slots, way: Steps) -> None:
    await slots.run(way)
    assert slots.used() == (0, 0, 0)


@pytest.mark.parametrize("way", WAYS)
async def test_after_a_move_the_slot_of_the_new_pool_is_returned(slots: Slots, way: Steps) -> None:
    async def moves(task: ClaimedTask, can_continue: CanContinue) -> Release | None:
        assert can_continue("submitting")
        assert slots.used() == (1, 0, 0), "submit and submitting share a pool"
        assert can_continue("poll")
        assert slots.used() == (0, 1, 0)
        assert can_continue("rehost")
        assert slots.used() == (0, 0, 1)
        return await way(task, can_continue)

    await slots.run(moves)
    assert slots.used() == (0, 0, 0)


@pytest.mark.parametrize("way", WAYS)
async def test_a_task_keeps_its_slot_if_the_next_pool_is_full(slots: Slots, way: Steps) -> None:
    assert slots.poll.acquire(slots.poll.size)

    async def may_not_move(task: ClaimedTask, can_continue: CanContinue) -> Release | None:
        assert not can_continue("poll")
        assert slots.used() == (1, slots.poll.size, 0)
        return await way(task, can_continue)

    await slots.run(may_not_move)
    assert slots.used() == (0, slots.poll.size, 0)


@pytest.mark.parametrize("way", WAYS)
async def test_a_returned_slot_of_a_full_pool_wakes_the_runner(slots: Slots, way: Steps) -> None:
    slots.submit.size = 1

    async def in_full_pool(task: ClaimedTask, can_continue: CanContinue) -> Release | None:
        assert not slots.runner._woken.is_set()
        return await way(task, can_continue)

    await slots.run(in_full_pool)
    assert slots.runner._woken.is_set()


async def test_a_claim_whose_commit_is_unknown_keeps_no_slot(
    slots: Slots, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    (task,) = await claim_due(runtime.database, slots.submit.task_filter, 9, 30)

    async def unknown(*_: object, **_options: object) -> list[ClaimedTask]:
        assert slots.submit.used == runner_module.MAX_CLAIM_ROWS
        raise ClaimCommitUnknown([task])

    monkeypatch.setattr(runner_module, "claim_due", unknown)
    with pytest.raises(ClaimCommitUnknown):
        await slots.runner._claim(slots.submit)
    assert slots.used() == (0, 0, 0)
    assert [one.task for one in slots.runner._releases] == [task]


def test_a_pool_never_gives_more_slots_than_it_has() -> None:
    pool = Pool(TaskFilter(("poll",)), 3)
    assert pool.acquire(2)
    assert not pool.acquire(2)
    assert (pool.used, pool.free) == (2, 1)
    assert pool.acquire()
    assert not pool.acquire()
    pool.release(3)
    assert (pool.used, pool.free) == (0, 3)
