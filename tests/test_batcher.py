"""Callers of the same moment share a batch; users share its places; one caller's fault is nobody else's."""

import asyncio
from contextvars import copy_context
from typing import Any

import pytest

from app import aio
from app.aio import Batcher
from app.errors import Unavailable

pytestmark = pytest.mark.anyio


class Work:
    """Doubles numbers. Batches wait until `go` is set."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self, batch: list[Any]) -> list[Any]:
        self.batches.append(batch)
        await self.go.wait()
        return [ValueError(item) if item < 0 else 2 * item for item in batch]


def batcher(work: Any, **options: Any) -> Batcher[int, int]:
    return Batcher(work, context=copy_context(), **({"max_size": 4, "max_running": 2} | options))


async def test_those_of_one_moment_share_a_batch_and_get_their_own_answers() -> None:
    work = Work()
    shared = batcher(work)
    answers = await asyncio.gather(*(shared.ask(n, n) for n in (1, 2, -3, 4)), return_exceptions=True)
    assert work.batches == [[1, 2, -3, 4]]
    assert [repr(answer) for answer in answers] == ["2", "4", "ValueError(-3)", "8"]
    assert await shared.ask(5, 5) == 10


async def test_a_batch_that_has_begun_takes_nobody_more_and_few_run_at_once() -> None:
    work = Work()
    shared = batcher(work)
    work.go.clear()
    waiting = [asyncio.create_task(shared.ask(1, "a"))]
    await asyncio.sleep(0.01)
    waiting += [asyncio.create_task(shared.ask(n, n)) for n in range(2, 9)]
    await asyncio.sleep(0.01)
    assert work.batches == [[1], [2, 3, 4, 5]], "two run, and the others wait"
    work.go.set()
    assert await asyncio.gather(*waiting) == [2 * n for n in range(1, 9)]
    assert work.batches[2:] == [[6, 7, 8]]


async def test_one_with_many_items_delays_the_others_by_one_turn() -> None:
    work = Work()
    shared = batcher(work)
    waiting = [asyncio.create_task(shared.ask(n, "hot")) for n in range(20)]
    waiting += [asyncio.create_task(shared.ask(100 + n, n)) for n in range(3)]
    await asyncio.gather(*waiting)
    assert work.batches[0] == [0, 100, 101, 102]


async def test_the_items_of_a_user_are_never_in_two_running_batches() -> None:
    work = Work()
    shared = batcher(work)
    work.go.clear()
    waiting = [asyncio.create_task(shared.ask(n, "hot")) for n in range(6)]
    await asyncio.sleep(0.01)
    assert work.batches == [[0, 1, 2, 3]]
    waiting.append(asyncio.create_task(shared.ask(9, "other")))
    await asyncio.sleep(0.01)
    assert work.batches == [[0, 1, 2, 3], [9]]
    work.go.set()
    await asyncio.gather(*waiting)
    assert work.batches[2:] == [[4, 5]]


async def test_items_without_a_user_may_be_in_two_running_batches() -> None:
    work = Work()
    shared = batcher(work)
    work.go.clear()
    waiting = [asyncio.create_task(shared.ask(n, None)) for n in range(6)]
    await asyncio.sleep(0.01)
    assert work.batches == [[0, 1, 2, 3], [4, 5]]
    work.go.set()
    await asyncio.gather(*waiting)


async def test_a_batch_may_be_of_one_user() -> None:
    work = Work()
    shared = batcher(work, one_user=True)
    await asyncio.gather(*(shared.ask(n, n % 2) for n in range(6)))
    assert sorted(work.batches) == [[0, 2, 4], [1, 3, 5]]


async def test_who_is_cancelled_while_waiting_is_left_out() -> None:
    work = Work()
    shared = batcher(work)
    waiting = [asyncio.create_task(shared.ask(n, n)) for n in range(3)]
    await asyncio.sleep(0)
    waiting[1].cancel()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(answer).__name__ for answer in answers] == ["int", "CancelledError", "int"]
    assert work.batches == [[0, 2]]


async def test_a_fault_of_the_work_reaches_each_of_the_batch_and_the_next_one_goes_on() -> None:
    faults = [OSError("gone")]

    async def work(batch: list[int]) -> list[int]:
        if faults:
            raise faults.pop()
        return batch

    shared = batcher(work)
    answers = await asyncio.gather(*(shared.ask(n, n) for n in range(3)), return_exceptions=True)
    assert [repr(answer) for answer in answers] == ["OSError('gone')"] * 3
    assert await shared.ask(7, 7) == 7


async def test_who_waits_too_long_for_a_place_is_refused_and_nothing_is_done_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(aio, "MAX_WAIT_SECONDS", 0.05)
    work = Work()
    shared = batcher(work, max_running=1)
    work.go.clear()
    first = asyncio.create_task(shared.ask(1, "a"))
    await asyncio.sleep(0.01)
    with pytest.raises(Unavailable):
        await shared.ask(2, "b")
    await asyncio.sleep(0.1)
    assert not first.done(), "a batch that has begun is waited for"
    work.go.set()
    assert await first == 2
    assert await shared.ask(3, "b") == 6
    assert work.batches == [[1], [3]]


async def test_a_wrong_number_of_answers_is_a_fault_for_each_and_the_next_one_goes_on() -> None:
    lacking = [True]

    async def work(batch: list[int]) -> list[int]:
        return batch[1:] if lacking and lacking.pop() else batch

    shared = batcher(work)
    answers = await asyncio.gather(*(shared.ask(n, n) for n in range(3)), return_exceptions=True)
    assert {type(answer) for answer in answers} == {RuntimeError}
    assert await shared.ask(7, 7) == 7


async def test_many_moments_lose_nobody() -> None:
    """Runs end and begin in every order; no item is left without a run."""

    async def work(batch: list[int]) -> list[int]:
        for _ in range(batch[0] % 4):
            await asyncio.sleep(0)
        return batch

    shared = batcher(work)

    async def caller(number: int) -> None:
        for step in range(50):
            for _ in range((number + step) % 5):
                await asyncio.sleep(0)
            assert await shared.ask(number + step, number % 3) == number + step

    async with asyncio.timeout(30):
        await asyncio.gather(*(caller(number) for number in range(9)))
