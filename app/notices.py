"""Publish and subscribe per user: "this task changed". A notice carries no truth, only a reason to look again.

Best effort through Redis, so that it works between many processes; whoever waits for a notice also looks by the
clock. Queues are bounded: a listener that does not listen loses its oldest notices, nothing else.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

log = structlog.get_logger()

CHANNEL = "gateway:notices"
MOST_QUEUED = 100
PUBLISH_SECONDS = 0.2
RETRY_SECONDS = 1.0


class Notices:
    """One subscription to Redis a process, fanned out to its listeners by user id."""

    def __init__(self, redis: "Redis") -> None:
        self._redis = redis
        self._listeners: defaultdict[int, set[asyncio.Queue[str]]] = defaultdict(set)
        self._reader: asyncio.Task[None] | None = None

    async def publish(self, user_id: int, task_no: str) -> None:
        """Tells every process; never raises, never waits long."""
        with contextlib.suppress(RedisError, OSError):
            async with asyncio.timeout(PUBLISH_SECONDS):
                await self._redis.publish(CHANNEL, f"{user_id} {task_no}")

    @asynccontextmanager
    async def listen(self, user_id: int) -> AsyncIterator[asyncio.Queue[str]]:
        """A queue of the task numbers of this user that changed while the block runs."""
        if self._reader is None:
            self._reader = asyncio.create_task(self._read())
        queue: asyncio.Queue[str] = asyncio.Queue(MOST_QUEUED)
        self._listeners[user_id].add(queue)
        try:
            yield queue
        finally:
            self._listeners[user_id].discard(queue)
            if not self._listeners[user_id]:
                del self._listeners[user_id]

    async def _read(self) -> None:
        while True:
            try:
                async with self._redis.pubsub(ignore_subscribe_messages=True) as channel:
                    await channel.subscribe(CHANNEL)
                    while True:
                        message = await channel.get_message(timeout=5.0)
                        if message is not None:
                            self._deliver(message["data"])
            except Exception as error:  # whatever it is, going deaf for good is worse
                log.warning("notices_interrupted", error=repr(error)[:200])
                await asyncio.sleep(RETRY_SECONDS)

    def _deliver(self, data: bytes | str) -> None:
        text = data.decode() if isinstance(data, bytes) else data
        user_id, _, task_no = text.partition(" ")
        for queue in self._listeners.get(int(user_id), ()) if user_id.isdigit() else ():
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(task_no)

    async def close(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait([self._reader], timeout=2)
