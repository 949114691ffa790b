"""Limits how many requests a user or a client address makes in a time. Processes share the counts through Redis.

While Redis is away, each process counts alone, so a user gets at most the limit in each process. The limits protect the
machines; the database protects the points.
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

Limit = Literal[
    "read",
    "submit",
    "upload",
    "redeem",
    "webhook-change",
    "webhook-replay",
    "webhook-test",
    "admin",
    "log-in",
    "log-in-name",
    "register",
    "refresh",
    "password",
    "second-factor",
    "key-change",
]

MINUTE, HOUR = 60, 3600
REDIS_TIMEOUT_SECONDS = 0.1
RETRY_DELAY_SECONDS = 2.0  # after a failure
MAX_COUNTERS = 100_000


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `maximum` requests of a user in each window of `seconds`."""

    maximum: int
    seconds: int


FIXED_RATES: dict[Limit, Rate] = {
    "redeem": Rate(10, MINUTE),  # a caller has few codes; somebody who guesses codes tries many
    # Each of these makes the gateway call an address that the caller chose, and costs the caller nothing.
    "webhook-change": Rate(100, HOUR),
    "webhook-replay": Rate(600, HOUR),
    "webhook-test": Rate(10, MINUTE),
    # Of a client address, which many people may share.
    "log-in": Rate(30, MINUTE),
    "register": Rate(30, HOUR),
    "refresh": Rate(120, MINUTE),  # also of a user
    # Of a user. Somebody who guesses tries many.
    "password": Rate(10, HOUR),
    "second-factor": Rate(10, HOUR),
    "key-change": Rate(100, HOUR),  # each leaves a row that is never deleted
}
"""Rates that no setting changes."""
USERNAME_RATES: dict[Limit, Rate] = {"log-in-name": Rate(20, 10 * MINUTE)}
"""The same for a username, wherever the requests come from."""


def rate_of(limit: Limit, settings: Settings) -> Rate:
    """How many requests a user may make. Uploads and submits have the same rate, and are counted apart."""
    match limit:
        case "submit" | "upload":
            return Rate(settings.submit_rate_per_minute, MINUTE)
        case "read" | "admin":
            return Rate(settings.read_rate_per_minute, MINUTE)
    return FIXED_RATES.get(limit) or USERNAME_RATES[limit]


class RateLimiter:
    """One counter for each limit and user in the current window of the limit. A guest counts by a text of its own.

    A process adds its count to Redis after every sixteenth of the limit. So most requests need no round trip, and the
    shared count lags by at most a sixteenth for each process.
    """

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self._settings = settings
        self._retry_at = 0.0
        self._counts: dict[tuple[Limit, int | str], _Count] = {}

    async def check(self, limit: Limit, user_id: int | str) -> None:
        """Counts one request. Raises RateLimited, with the seconds until the next window, when it is one too many."""
        rate = rate_of(limit, self._settings)
        now = time.time()
        window = int(now // rate.seconds)
        count = self._counts.get((limit, user_id))
        if count is None or count.window != window:
            self._make_room(now)
            key = self._settings.redis_name("rate", limit, user_id, window)
            count = self._counts[limit, user_id] = _Count(key, window, ends_at=(window + 1) * rate.seconds)
        count.pending += 1
        if count.pending >= max(rate.maximum // 16, 1):
            await self._flush(count, rate)
        if count.confirmed + count.pending > rate.maximum:
            raise RateLimited(retry_after_seconds=max(int(count.ends_at - now), 1))

    def _make_room(self, now: float) -> None:
        """Keeps the number of counters bounded. Redis still has most of what a lost counter knew."""
        if len(self._counts) >= MAX_COUNTERS:
            self._counts = {key: count for key, count in self._counts.items() if count.ends_at > now}
        if len(self._counts) >= MAX_COUNTERS:
            self._counts = {}

    async def _flush(self, count: "_Count", rate: Rate) -> None:
        pending, count.pending = count.pending, 0
        count.confirmed += pending
        if time.monotonic() < self._retry_at:
            return
        try:
            async with asyncio.timeout(REDIS_TIMEOUT_SECONDS), self._redis.pipeline(transaction=False) as pipe:
                pipe.incrby(count.key, pending)
                pipe.expire(count.key, 2 * rate.seconds)
                count.confirmed = max(int((await pipe.execute())[0]), count.confirmed)
        except (RedisError, OSError) as error:
            if time.monotonic() >= self._retry_at:  # many requests may fail at once; the first one logs
                log.warning("rate_limit_sync_failed", error=repr(error)[:200])
            self._retry_at = time.monotonic() + RETRY_DELAY_SECONDS


@dataclass(slots=True)
class _Count:
    """Requests that were sent to Redis, or are counted here alone while it is away, and requests still to be sent."""

    key: str
    window: int
    ends_at: float
    confirmed: int = 0
    pending: int = 0
