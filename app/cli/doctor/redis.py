"""Redis: reachable, new enough, writable, and the same one that the workers of this installation use."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from app.cli.doctor.checks import Check, Group, Outcome, close_quietly
from app.messaging.redis import open_redis, queue_name
from app.settings import Settings

MIN_VERSION = (6, 2)  # GETDEL
GOOD_POLICIES = ("noeviction", "volatile-")
PROBE_SECONDS = 30


@dataclass(frozen=True)
class _Opened:
    redis: "Redis"
    settings: Settings


def redis_group(settings: Settings) -> Group[Any]:
    @asynccontextmanager
    async def use() -> AsyncIterator[_Opened]:
        redis = open_redis(settings)
        try:
            yield _Opened(redis, settings)
        finally:
            await close_quietly(redis.aclose())

    if settings.is_redis_embedded:
        return Group(use, [Check("redis", _check_embedded, "")])
    reach = "Check that Redis runs, and host, port and password in REDIS_URL. Without it the gateway works, but slower."
    write = "Let the user of REDIS_URL write keys and publish to channels that begin with REDIS_PREFIX."
    info = "Let the user of REDIS_URL run INFO, or look yourself."
    return Group(
        use,
        [
            Check("redis", _check_connection, reach, is_required=True),
            Check("redis write", _check_write, write),
            Check("redis version", _check_version, info),
            Check("redis role", _check_role, info),
            Check("redis eviction", _check_eviction, info),
            Check("worker", _check_worker, write),
        ],
    )


async def _check_embedded(_: _Opened) -> Outcome:
    return Outcome("ok", "inside the process (memory://), for `gateway up` only")


async def _check_connection(opened: _Opened) -> Outcome:
    await opened.redis.ping()
    return Outcome("ok", f"reachable; our keys and channels begin with {opened.settings.redis_namespace}")


async def _check_write(opened: _Opened) -> Outcome:
    key = opened.settings.redis_name("doctor", secrets.token_hex(8))
    await opened.redis.set(key, "1", ex=PROBE_SECONDS)
    if await opened.redis.getdel(key) != b"1":
        return Outcome("failed", "a key that was just written is gone", "Give Redis more memory.")
    await opened.redis.publish(opened.settings.redis_name("task-changes"), "")
    return Outcome("ok", "keys can be written, and messages published")


async def _check_version(opened: _Opened) -> Outcome:
    version = str((await opened.redis.info("server"))["redis_version"])
    numbers = tuple(int(number) for number in version.split(".")[:2])
    if numbers < MIN_VERSION:
        return Outcome("failed", f"Redis {version} is too old", "Use Redis 6.2 or newer.")
    return Outcome("ok", f"Redis {version}")


async def _check_role(opened: _Opened) -> Outcome:
    role = str((await opened.redis.info("replication"))["role"])
    if role != "master":
        remedy = (
            "Let REDIS_URL lead to the master, or name the sentinels: redis+sentinel://host:port,host:port/master/0."
        )
        return Outcome("failed", "this Redis is a replica, which refuses writes", remedy)
    return Outcome("ok", "this Redis is the master")


async def _check_eviction(opened: _Opened) -> Outcome:
    policy = str((await opened.redis.info("memory"))["maxmemory_policy"])
    if policy.startswith(GOOD_POLICIES):
        return Outcome("ok", f"maxmemory-policy {policy}")
    remedy = "Set maxmemory-policy to noeviction or volatile-lru."
    return Outcome("warning", f"maxmemory-policy {policy}: a full Redis may drop wakeups and tickets", remedy)


async def _check_worker(opened: _Opened) -> Outcome:
    if await opened.redis.exists(f"{queue_name(opened.settings)}:health-check"):
        return Outcome("ok", "a worker of this installation uses this Redis")
    text = f"no worker has reported to this Redis under the prefix {opened.settings.redis_namespace}"
    remedy = "Start `gateway worker`. If one runs, give all processes the same DATABASE_URL or the same REDIS_PREFIX."
    return Outcome("warning", text, remedy)
