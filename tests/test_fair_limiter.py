"""Users take turns at slots: the queue of one user delays another by one job, not by the whole queue."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from app.aio import FairLimiter

pytestmark = pytest.mark.anyio
Job = Callable[[str], Coroutine[Any, Any, None]]


async def run_in_turns(limiter: FairLimiter, users: str) -> str:
    """One job for each letter, all waiting at once. Returns the letters in the order in which the jobs ran."""
    order = ""

    async def job(user: str) -> None:
        nonlocal order
        async with limiter.slot(user):
            order += user
            await asyncio.sleep(0)

    await asyncio.gather(*[job(user) for user in users])
    return order


@pytest.mark.parametrize(
    ("slots", "users", "expected"),
    [(1, "aaaab", "abaaa"), (1, "aaabbc", "abcaba"), (2, "aaaabbc", "aabcaba"), (3, "ab", "ab")],
)
async def test_users_take_turns(slots: int, users: str, expected: str) -> None:
    limiter = FairLimiter(slots)
    assert await run_in_turns(limiter, users) == expected
    assert (limiter._held, limiter._waiting, limiter._last_turn) == ({}, {}, {}), "nobody is remembered for ever"


async def test_a_user_holds_no_more_than_the_share() -> None:
    limiter = FairLimiter(4, per_user=2)
    for _ in range(2):
        await limiter.acquire("a")
    third = asyncio.create_task(limiter.acquire("a"))
    await asyncio.wait_for(limiter.acquire("b"), 10)
    assert not third.done()
    limiter.release("b")
    await asyncio.sleep(0)
    assert not third.done(), "a free slot of others is not theirs"
    limiter.release("a")
    await asyncio.wait_for(third, 10)


@pytest.mark.parametrize("is_granted", [False, True])
async def test_a_cancelled_wait_takes_no_slot(is_granted: bool) -> None:
    """Also where the slot comes at the same moment as the cancellation."""
    limiter = FairLimiter(1)
    await limiter.acquire("a")
    waiting = asyncio.create_task(limiter.acquire("b"))
    await asyncio.sleep(0)
    if is_granted:
        limiter.release("a")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    if not is_granted:
        limiter.release("a")
    assert await asyncio.wait_for(run_in_turns(limiter, "cd"), 10) == "cd"
