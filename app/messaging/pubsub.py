"""Publishes task changes to subscribers, per user and through Redis. A message holds task numbers and no state.

Best effort: a message may be lost, so a subscriber also polls the database every `poll_interval`. Publishing never
waits for Redis: a background task sends many changes as one message. Memory is bounded: a subscription that falls
behind is marked as lossy.
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

from app.aio import cancel_and_wait

log = structlog.get_logger()

MAX_QUEUED = 100  # task numbers of one subscription
MAX_PENDING = 10_000  # changes of one process while Redis is away
MAX_MESSAGE_ITEMS = 1000
PUBLISH_TIMEOUT_SECONDS = 1.0
RETRY_DELAY_SECONDS = 1.0
IDLE_TIMEOUT_SECONDS = 5.0  # without a message: then we ping, and later the connection counts as lost
POLL_SECONDS = 30.0  # how often a subscriber polls the database while Redis is connected
DISCONNECTED_POLL_SECONDS = 2.0  # the same while Redis is away
MAX_CONCURRENT_QUERIES = 8
CHANNEL = "task-changes"
RECHECK = ""
"""In place of a task number: the user's credentials may have ended."""


class Subscription:
    """The changed tasks of one user since the last `drain`."""

    def __init__(self) -> None:
        self._task_nos: dict[str, None] = {}
        self._has_lost = False
        self._must_recheck = False
        self._is_woken = asyncio.Event()
        self.is_closed = False

    def push(self, task_no: str) -> None:
        if task_no == RECHECK:
            self._must_recheck = True
            self.wake()
            return
        self._task_nos[task_no] = None
        if len(self._task_nos) > MAX_QUEUED:
            self.mark_lost()
        self.wake()

    def mark_lost(self) -> None:
        """Records that changes may have been lost. The subscriber must then query all tasks."""
        self._task_nos.clear()
        self._has_lost = True
        self.wake()

    def wake(self) -> None:
        self._is_woken.set()

    def take_recheck(self) -> bool:
        """Whether the subscriber must check its credential now. The next call is False."""
        must_recheck, self._must_recheck = self._must_recheck, False
        return must_recheck

    def close(self) -> None:
        """Records that no more changes will come, because this process shuts down."""
        self.is_closed = True
        self.wake()

    async def wait(self, seconds: float) -> None:
        """Waits until the subscription is woken, at most `seconds`."""
        try:
            async with asyncio.timeout(max(seconds, 0)):
                await self._is_woken.wait()
        except TimeoutError:
            pass

    def drain(self) -> tuple[list[str], bool]:
        """Removes and returns the numbers of the changed tasks, and whether other changes may have been lost."""
        changes = list(self._task_nos), self._has_lost
        self._task_nos, self._has_lost = {}, False
        if not self.is_closed:
            self._is_woken.clear()
        return changes


class TaskPubSub:
    """One Redis subscription per process. It passes each change to the subscriptions of the task's user."""

    def __init__(self, redis: "Redis", channel: str) -> None:
        self._redis = redis
        self._channel = channel
        self._subscriptions: defaultdict[int, set[Subscription]] = defaultdict(set)
        self._reader: asyncio.Task[None] | None = None
        self._sender: asyncio.Task[None] | None = None
        self._pending: dict[tuple[int, str], None] = {}
        self._is_connected = False
        self._is_closed = False
        # After an interruption all subscribers query the database together. The limit leaves connections for requests.
        self.query_limit = asyncio.Semaphore(MAX_CONCURRENT_QUERIES)

    @property
    def poll_interval(self) -> float:
        """Seconds after which a subscriber should query the database itself."""
        return POLL_SECONDS if self._is_connected else DISCONNECTED_POLL_SECONDS

    # ------------------------------------------------------------------ publish

    def publish(self, user_id: int, task_no: str) -> None:
        """Queues the change and returns at once. Queued changes go out as one message."""
        if len(self._pending) < MAX_PENDING:
            self._pending[user_id, task_no] = None
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send())

    def recheck(self, user_id: int) -> None:
        """Makes the user's streams check their credentials at once, in every process. Also best effort."""
        self.publish(user_id, RECHECK)

    async def _send(self) -> None:
        is_failing = False
        while self._pending:
            batch = list(self._pending)[:MAX_MESSAGE_ITEMS]
            for change in batch:
                del self._pending[change]
            try:
                async with asyncio.timeout(PUBLISH_TIMEOUT_SECONDS):
                    text = "\n".join(f"{user_id} {task_no}" for user_id, task_no in batch)
                    await self._redis.publish(self._channel, text)
                is_failing = False
            except Exception as error:  # any error here must not disturb the work on tasks
                if not is_failing:
                    log.warning("publish_failed", error=repr(error)[:200])
                is_failing = True
                self._pending = dict.fromkeys(batch) | self._pending
                await asyncio.sleep(RETRY_DELAY_SECONDS)

    # ------------------------------------------------------------------ subscribe

    @asynccontextmanager
    async def subscribe(self, user_id: int) -> AsyncIterator[Subscription]:
        """Collects the changes of this user's tasks while the block runs."""
        if self._reader is None and not self._is_closed:
            self._reader = asyncio.create_task(self._subscribe_loop())
        subscription = Subscription()
        if self._is_closed:
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
                    await channel.subscribe(self._channel)
                    await self._receive_loop(channel)
            except Exception as error:  # any error: the loop must go on, or this process never hears a change again
                log.warning("subscription_interrupted", error=repr(error)[:200])
                self._is_connected = False
                for subscription in self._all_subscriptions():
                    subscription.wake()  # because `poll_interval` is shorter now
                await asyncio.sleep(RETRY_DELAY_SECONDS)

    async def _receive_loop(self, channel: PubSub) -> None:
        """Dispatches messages until the connection breaks. It pings an idle connection, because Redis may be frozen."""
        pinged_at: float | None = None
        while True:
            message: dict[str, Any] | None = await channel.get_message(timeout=IDLE_TIMEOUT_SECONDS)
            if message is None and pinged_at is not None and time.monotonic() - pinged_at >= IDLE_TIMEOUT_SECONDS:
                raise TimeoutError("Redis does not answer a ping")
            if message is None:
                await channel.ping()
                pinged_at = pinged_at or time.monotonic()
                continue
            pinged_at = None
            if message["type"] == "message":
                self._dispatch(message["data"])
            elif message["type"] == "subscribe":
                # It also comes when the library has reconnected by itself. Earlier messages may be lost then.
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

    # ------------------------------------------------------------------ close

    def close_subscriptions(self) -> None:
        """Closes all subscriptions, and later ones as they are made."""
        self._is_closed = True
        for subscription in self._all_subscriptions():
            subscription.close()

    async def close(self) -> None:
        """Closes all subscriptions, and waits briefly for queued changes to be sent."""
        self.close_subscriptions()
        if self._sender is not None:
            await asyncio.wait([self._sender], timeout=PUBLISH_TIMEOUT_SECONDS)
        await cancel_and_wait(*filter(None, (self._sender, self._reader)))
