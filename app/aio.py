"""How background tasks run and end, and how work is shared between users."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Coroutine, Hashable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Any

acting_user: ContextVar[int | None] = ContextVar("acting_user", default=None)
"""The user for whom the current asyncio task works. Shared resources are divided by it."""


async def cancel_and_wait(*tasks: "asyncio.Task[Any]") -> None:
    """Cancels the tasks, repeatedly, until they end: a library with its own timeout may swallow a cancellation."""
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=1)


async def run_until_first_ends(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Runs the coroutines until one of them ends, cancels the others, and raises the first error."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await cancel_and_wait(*tasks)
    for task in tasks:
        if not task.cancelled():
            task.result()


@contextmanager
def counted(counts: Counter[int], user_id: int, amount: int = 1) -> Iterator[None]:
    """Adds `amount` to the user's count while the block runs. No count of 0 is kept."""
    counts[user_id] += amount
    try:
        yield
    finally:
        counts[user_id] -= amount
        if not counts[user_id]:
            del counts[user_id]


class FairLimiter:
    """A number of slots that users share by turns. All methods run on one event loop.

    A free slot goes to the waiting user who was served longest ago. A user holds at most `per_user` slots.
    """

    def __init__(self, slots: int, *, per_user: int | None = None) -> None:
        self._free = slots
        self._per_user = per_user or slots
        self._held: Counter[Hashable] = Counter()
        self._waiting: dict[Hashable, deque[asyncio.Future[None]]] = {}
        self._turns = 0
        self._last_turn: dict[Hashable, int] = {}  # of users who hold or wait for a slot

    @asynccontextmanager
    async def slot(self, user: Hashable) -> AsyncIterator[None]:
        """Holds a slot while the block runs."""
        await self.acquire(user)
        try:
            yield
        finally:
            self.release(user)

    async def acquire(self, user: Hashable) -> None:
        """Takes a slot, and waits for the user's turn if none is free. A cancelled wait takes none."""
        if self._may_take(user):
            self._take(user)
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(user, deque()).append(turn)
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self.release(user)  # the slot came at the same moment as the cancellation
            elif turn in self._waiting.get(user, ()):
                self._forget(user, turn)
            raise

    def release(self, user: Hashable) -> None:
        self._free += 1
        self._held[user] -= 1
        while following := [one for one in self._waiting if self._may_take(one)]:
            longest_ago = min(following, key=lambda one: self._last_turn.get(one, 0))
            turn = self._waiting[longest_ago][0]
            self._forget(longest_ago, turn)
            if not turn.done():
                self._take(longest_ago)
                turn.set_result(None)
        if not self._held[user]:
            del self._held[user]
            if user not in self._waiting:
                self._last_turn.pop(user, None)

    def _may_take(self, user: Hashable) -> bool:
        return self._free > 0 and self._held[user] < self._per_user

    def _take(self, user: Hashable) -> None:
        self._free -= 1
        self._held[user] += 1
        self._turns += 1
        self._last_turn[user] = self._turns

    def _forget(self, user: Hashable, turn: "asyncio.Future[None]") -> None:
        self._waiting[user].remove(turn)
        if not self._waiting[user]:
            del self._waiting[user]
            if not self._held[user]:
                self._last_turn.pop(user, None)
