"""Publish and subscribe per user: "this task changed". A notice carries no truth, only a reason to look again.

Best effort through Redis, so that it works between many processes; whoever waits for a notice also looks by the
clock. Nobody waits for Redis here, and nothing grows: notices go out from the background, many as one message, and a
listener that falls behind is told that it missed some instead of which.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.asyncio.client import PubSub

log = structlog.get_logger()

CHANNEL = "gateway:notices"
MAX_QUEUED = 100  # of one listener
MAX_PENDING = 10_000  # of one process, while Redis is away
MAX_MESSAGE_ITEMS = 1000
PUBLISH_SECONDS = 1.0
RETRY_SECONDS = 1.0
IDLE_TIMEOUT_SECONDS = 5.0  # without a word from Redis it is asked for one, and after as long again it counts as gone
POLL_SECONDS = 30.0  # how often whoever listens should look by itself, because a notice may be lost
DISCONNECTED_POLL_SECONDS = 2.0  # the same while no notice can be heard at all
MAX_CONCURRENT_QUERIES = 8


class Subscription:
    """What changed for one user since `take` was last called, and whether there is more than can be told."""

    def __init__(self) -> None:
        self._numbers: dict[str, None] = {}
        self._has_missed = False
        self._is_woken = asyncio.Event()
        self.is_closed = False

    def push(self, task_no: str) -> None:
        self._numbers[task_no] = None
        if len(self._numbers) > MAX_QUEUED:
            self.mark_lost()
        self.wake()

    def mark_lost(self) -> None:
        """Notices were lost, or may have been: only a look at everything tells what changed."""
        self._numbers.clear()
        self._has_missed = True
        self.wake()

    def wake(self) -> None:
        self._is_woken.set()

    def close(self) -> None:
        """There is nothing more to come: this process winds down."""
        self.is_closed = True
        self.wake()

    async def wait(self, seconds: float) -> None:
        """Until there is something to take or another reason to look up, at most so long."""
        try:
            async with asyncio.timeout(max(seconds, 0)):
                await self._is_woken.wait()
        except TimeoutError:
            pass

    def drain(self) -> tuple[list[str], bool]:
        """The numbers of the tasks that changed, and whether others may have as well."""
        taken = list(self._numbers), self._has_missed
        self._numbers, self._has_missed = {}, False
        if not self.is_closed:
            self._is_woken.clear()
        return taken


class TaskPubSub:
    """One subscription to Redis a process, fanned out to its listeners by user id."""

    def __init__(self, redis: "Redis") -> None:
        self._redis = redis
        self._subscriptions: defaultdict[int, set[Subscription]] = defaultdict(set)
        self._reader: asyncio.Task[None] | None = None
        self._sender: asyncio.Task[None] | None = None
        self._pending: dict[tuple[int, str], None] = {}
        self._is_connected = False
        self._is_over = False
        # Who listens looks at the database, too, and after an interruption all do at once: requests come first.
        self.query_limit = asyncio.Semaphore(MAX_CONCURRENT_QUERIES)

    @property
    def poll_interval(self) -> float:
        """How long a listener may go without a look of its own."""
        return POLL_SECONDS if self._is_connected else DISCONNECTED_POLL_SECONDS

    # ------------------------------------------------------------------ publish

    def publish(self, user_id: int, task_no: str) -> None:
        """Returns at once; notices that come together go out as one message."""
        if len(self._pending) < MAX_PENDING:
            self._pending[user_id, task_no] = None
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send())

    async def _send(self) -> None:
        is_failing = False
        while self._pending:
            batch = list(self._pending)[:MAX_MESSAGE_ITEMS]
            for one in batch:
                del self._pending[one]
            try:
                async with asyncio.timeout(PUBLISH_SECONDS):
                    await self._redis.publish(CHANNEL, "\n".join(f"{user_id} {task_no}" for user_id, task_no in batch))
                is_failing = False
            except Exception as error:  # whatever it is, it is not worth a task's visit
                if not is_failing:
                    log.warning("notices_not_sent", error=repr(error)[:200])
                is_failing = True
                self._pending = dict.fromkeys(batch) | self._pending
                await asyncio.sleep(RETRY_SECONDS)

    # ------------------------------------------------------------------ subscribe

    @asynccontextmanager
    async def listen(self, user_id: int) -> AsyncIterator[Subscription]:
        """What changes of this user's tasks while the block runs."""
        if self._reader is None and not self._is_over:
            self._reader = asyncio.create_task(self._subscribe_loop())
        subscription = Subscription()
        if self._is_over:
            subscription.close()
        self._subscriptions[user_id].add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions[user_id].discard(subscription)
            if not self._subscriptions[user_id]:
                del self._subscriptions[user_id]

    async def _subscribe_loop(self) -> None:
        while True:
            try:
                async with self._redis.pubsub() as channel:
                    await channel.subscribe(CHANNEL)
                    await self._receive_loop(channel)
            except Exception as error:  # whatever it is, going deaf for good is worse
                log.warning("notices_interrupted", error=repr(error)[:200])
                self._is_connected = False
                for subscription in self._all_subscriptions():
                    subscription.wake()  # its next look is due sooner now
                await asyncio.sleep(RETRY_SECONDS)

    async def _receive_loop(self, channel: PubSub) -> None:
        """A Redis that is frozen or cut off says nothing either, so silence is questioned."""
        asked_at: float | None = None
        while True:
            message: dict[str, Any] | None = await channel.get_message(timeout=IDLE_TIMEOUT_SECONDS)
            if message is None and asked_at is not None and time.monotonic() - asked_at >= IDLE_TIMEOUT_SECONDS:
                raise TimeoutError("Redis has gone silent")
            if message is None:
                await channel.ping()
                asked_at = asked_at or time.monotonic()
                continue
            asked_at = None
            if message["type"] == "message":
                self._dispatch(message["data"])
            elif message["type"] == "subscribe":
                # At the first, and whenever the library has quietly connected anew: what was said before is lost.
                self._is_connected = True
                for subscription in self._all_subscriptions():
                    subscription.mark_lost()

    def _dispatch(self, data: bytes | str) -> None:
        text = data.decode(errors="replace") if isinstance(data, bytes) else data
        for line in text.split("\n"):
            user_id, _, task_no = line.partition(" ")
            for subscription in self._subscriptions.get(int(user_id), ()) if user_id.isdecimal() else ():
                subscription.push(task_no)

    def _all_subscriptions(self) -> list[Subscription]:
        return [subscription for subscriptions in self._subscriptions.values() for subscription in subscriptions]

    # ------------------------------------------------------------------ the end

    def close_subscriptions(self) -> None:
        """Everybody who listens, now or later, is told that there is nothing more to come."""
        self._is_over = True
        for subscription in self._all_subscriptions():
            subscription.close()

    async def close(self) -> None:
        """Waits a moment for notices on their way."""
        self.close_subscriptions()
        if self._sender is not None:
            await asyncio.wait([self._sender], timeout=PUBLISH_SECONDS)
        for task in (self._sender, self._reader):
            if task is not None:
                task.cancel()
                await asyncio.wait([task], timeout=2)
