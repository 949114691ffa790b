"""How background tasks run, wake and end, how slots are shared between users, and how callers share a batch."""

import asyncio
import math
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Hashable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import Context, ContextVar, copy_context
from typing import Any, Generic, TypeVar

from app.errors import Unavailable

Item = TypeVar("Item")
Answer = TypeVar("Answer")
_Question = tuple[Item, "asyncio.Future[Answer]", asyncio.TimerHandle]
"""An item that waits for its batch, its answer, and the end of its patience."""
MAX_WAIT_SECONDS = 10.0
"""How long an item may wait for a place in a batch. With a database that hangs, each batch takes longer."""

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


class Alarm:
    """Calls `ring` at many moments. The moments within one tick share a timer and a call."""

    TICK_SECONDS = 0.05

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._ticks: set[int] = set()

    def ring_after(self, seconds: float) -> None:
        """At most one tick later than in so many seconds."""
        loop = asyncio.get_running_loop()
        tick = math.ceil((loop.time() + seconds) / self.TICK_SECONDS)
        if tick not in self._ticks:
            self._ticks.add(tick)
            loop.call_at(tick * self.TICK_SECONDS, self._on_tick, tick)

    def _on_tick(self, tick: int) -> None:
        self._ticks.discard(tick)
        self._ring()


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


class Batcher(Generic[Item, Answer]):
    """Shares one call of `work` among all who wait in the same moment.

    `work` gets up to `max_size` items and returns an answer for each, in their order. An answer that is an exception is
    raised for its caller alone; an exception of `work` itself is raised for each of them. A caller joins the next
    batch, never one that has begun, so an answer is never older than its question. Nobody waits for a batch to fill up.

    Who waits for MAX_WAIT_SECONDS for a place in a batch gets Unavailable; nothing was done for them.

    At most `max_running` batches run at once. A batch takes one item of each user in turn, so a user with many items
    delays the others by few. A user's items are never in two running batches; items without a user (None) may be. With
    `one_user` a batch has the items of one user only. All methods run on one event loop.
    """

    def __init__(
        self,
        work: Callable[[list[Item]], Awaitable[Sequence[Answer | Exception]]],
        *,
        max_size: int,
        max_running: int,
        one_user: bool = False,
        context: Context,
    ) -> None:
        self._work = work
        self._max_size = max_size
        self._max_running = max_running
        self._one_user = one_user
        self._waiting: dict[Hashable, deque[_Question[Item, Answer]]] = {}
        self._busy_users: set[Hashable] = set()
        self._running = 0
        self._runs: set[asyncio.Task[None]] = set()  # a task that nobody refers to may be collected
        self._context = context

    async def ask(self, item: Item, user: Hashable) -> Answer:
        """The answer for this item. If the caller is cancelled, an item that waits is dropped; a batch goes on."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        timer = loop.call_later(MAX_WAIT_SECONDS, _give_up, answer)
        self._waiting.setdefault(user, deque()).append((item, answer, timer))
        if self._running < self._max_running:
            self._running += 1
            run = loop.create_task(self._run(), context=self._context.copy())
            self._runs.add(run)
            run.add_done_callback(self._runs.discard)
        return await answer

    async def _run(self) -> None:
        try:
            await asyncio.sleep(0)  # those who are ready in this moment join
            while batch := self._take():
                users = {user for user, _ in batch if user is not None}
                self._busy_users |= users
                try:
                    await self._answer([question for _, question in batch])
                finally:
                    self._busy_users -= users
        finally:
            self._running -= 1

    def _take(self) -> "list[tuple[Hashable, _Question[Item, Answer]]]":
        """The next batch: one item of each user who is not busy, in turn. Those who are left come first next time."""
        batch: list[tuple[Hashable, _Question[Item, Answer]]] = []
        users = deque(user for user in self._waiting if user not in self._busy_users)
        while users and len(batch) < self._max_size:
            user = users.popleft()
            waiting = self._waiting.pop(user)
            question = waiting.popleft()
            if waiting:
                self._waiting[user] = waiting  # behind the others
                users.appendleft(user) if self._one_user else users.append(user)
            _, answer, timer = question
            timer.cancel()
            if not answer.done():
                batch.append((user, question))
            if self._one_user and batch and not waiting:
                break
        return batch

    async def _answer(self, batch: "list[_Question[Item, Answer]]") -> None:
        try:
            answers = await self._work([item for item, _, _ in batch])
            if len(answers) != len(batch):
                raise RuntimeError(f"{len(answers)} answers for {len(batch)} questions")
        except Exception as error:
            answers = [error] * len(batch)
        except BaseException:
            for _, waiting, _ in batch:
                waiting.cancel()
            raise
        for (_, waiting, _), found in zip(batch, answers, strict=True):
            if waiting.done():
                continue
            if isinstance(found, Exception):
                waiting.set_exception(found)
            else:
                waiting.set_result(found)


def _give_up(answer: "asyncio.Future[Any]") -> None:
    if not answer.done():
        answer.set_exception(Unavailable())


class Batchers:
    """The batchers of one process, by name. Their runs have the context in which this object was made.

    So a line that a batch logs has no request id, in place of that of the caller whose item began the run.
    """

    def __init__(self) -> None:
        self._batchers: dict[Hashable, Any] = {}
        self._context = copy_context()

    def get(
        self,
        name: Hashable,
        work: Callable[[list[Item]], Awaitable[Sequence[Answer | Exception]]],
        **options: Any,
    ) -> Batcher[Item, Answer]:
        """The batcher of this name. The first call makes it."""
        batcher: Batcher[Item, Answer] | None = self._batchers.get(name)
        if batcher is None:
            batcher = self._batchers[name] = Batcher(work, context=self._context, **options)
        return batcher
