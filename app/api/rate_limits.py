"""Limits how many requests a user makes in each minute. Processes share the counts through Redis.

While Redis is away, each process counts alone. The limits protect the machines; the database protects the points.
"""

import asyncio
import time
from dataclasses import dataclass
from typing import Literal

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.errors import RateLimited
from app.settings import Settings

log = structlog.get_logger()

Limit = Literal["read", "submit", "upload", "redeem", "webhook-test", "admin"]
MAX_REDEEMS_PER_MINUTE = 10  # a caller has few codes; somebody who guesses codes tries many
MAX_WEBHOOK_TESTS_PER_MINUTE = 10  # each test makes the gateway call an address that the caller chose

WINDOW_SECONDS = 60
REDIS_TIMEOUT_SECONDS = 0.1
RETRY_DELAY_SECONDS = 2.0  # after a failure
MAX_COUNTERS = 100_000


def max_requests(limit: Limit, settings: Settings) -> int:
    """How many requests a user may make in a minute. Uploads and submits have the same number, counted apart."""
    match limit:
        case "submit" | "upload":
            return settings.submit_rate_per_minute
        case "redeem":
            return MAX_REDEEMS_PER_MINUTE
        case "webhook-test":
            return MAX_WEBHOOK_TESTS_PER_MINUTE
        case "read" | "admin":
            return settings.read_rate_per_minute


class RateLimiter:
    """One counter for each limit and user in the current minute.

    A process adds its count to Redis after every sixteenth of the limit. So most requests need no round trip, and the
    shared count lags by at most a sixteenth for each process.
    """

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self._settings = settings
        self._retry_at = 0.0
        self._window = 0
        self._counts: dict[str, _Count] = {}

    async def check(self, limit: Limit, user_id: int) -> None:
        """Counts one request. Raises RateLimited, with the seconds until the next window, when it is one too many."""
        maximum = max_requests(limit, self._settings)
        now = time.time()
        window = int(now // WINDOW_SECONDS)
        if window != self._window or len(self._counts) > MAX_COUNTERS:
            self._window, self._counts = window, {}
        key = self._settings.redis_name("rate", limit, user_id, window)
        count = self._counts.setdefault(key, _Count())
        count.pending += 1
        if count.pending >= max(maximum // 16, 1):
            await self._flush(key, count)
        if count.confirmed + count.pending > maximum:
            raise RateLimited(retry_after_seconds=max(int((window + 1) * WINDOW_SECONDS - now), 1))

    async def _flush(self, key: str, count: "_Count") -> None:
        pending, count.pending = count.pending, 0
        count.confirmed += pending
        if time.monotonic() < self._retry_at:
            return
        try:
            async with asyncio.timeout(REDIS_TIMEOUT_SECONDS), self._redis.pipeline(transaction=False) as pipe:
                pipe.incrby(key, pending)
                pipe.expire(key, 2 * WINDOW_SECONDS)
                count.confirmed = max(int((await pipe.execute())[0]), count.confirmed)
        except (RedisError, OSError) as error:
            if time.monotonic() >= self._retry_at:  # many requests may fail at once; the first one logs
                log.warning("rate_limit_sync_failed", error=repr(error)[:200])
            self._retry_at = time.monotonic() + RETRY_DELAY_SECONDS


@dataclass(slots=True)
class _Count:
    """Requests that were sent to Redis, or are counted here alone while it is away, and requests still to be sent."""

    confirmed: int = 0
    pending: int = 0
