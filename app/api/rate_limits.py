"""How often a user may ask: a fixed window a minute, counted in Redis for all processes, here while Redis is away.

It protects the machines, not the money: points and tasks are guarded by the database alone.
"""

import asyncio
import time
from dataclasses import dataclass

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.errors import RateLimited

log = structlog.get_logger()

WINDOW_SECONDS = 60
COUNT_SECONDS = 0.1
RETRY_DELAY_SECONDS = 2.0  # after a failure, how long Redis is left alone
MAX_COUNTERS = 100_000


class RateLimiter:
    """Windows by kind and user. Each process counts for itself and tells the others now and then, so the shared
    count may lag by a sixteenth of the limit a process, and most requests pay no round trip for it."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._silent_until = 0.0
        self._window = 0
        self._counts: dict[str, _Count] = {}

    async def check(self, kind: str, user_id: int, per_minute: int) -> None:
        """Counts one request; RateLimited with the seconds until the next window where it is one too many."""
        now = time.time()
        window = int(now // WINDOW_SECONDS)
        if window != self._window or len(self._counts) > MAX_COUNTERS:
            self._window, self._counts = window, {}
        key = f"gateway:rate:{kind}:{user_id}:{window}"
        count = self._counts.setdefault(key, _Count())
        count.pending += 1
        if count.pending >= max(per_minute // 16, 1):
            await self._flush(key, count)
        if count.confirmed + count.pending > per_minute:
            raise RateLimited(retry_after_seconds=max(int((window + 1) * WINDOW_SECONDS - now), 1))

    async def _flush(self, key: str, count: "_Count") -> None:
        untold, count.pending = count.pending, 0
        count.confirmed += untold
        if time.monotonic() < self._silent_until:
            return
        try:
            async with asyncio.timeout(COUNT_SECONDS), self._redis.pipeline(transaction=False) as pipe:
                pipe.incrby(key, untold)
                pipe.expire(key, 2 * WINDOW_SECONDS)
                count.confirmed = max(int((await pipe.execute())[0]), count.confirmed)
        except (RedisError, OSError) as error:
            if time.monotonic() >= self._silent_until:  # of many that failed together one says so
                log.warning("rates_not_shared", error=repr(error)[:200])
            self._silent_until = time.monotonic() + RETRY_DELAY_SECONDS


@dataclass(slots=True)
class _Count:
    confirmed: int = 0
    pending: int = 0
