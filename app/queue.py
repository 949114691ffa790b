"""Rings the workers' bell: something is due. Best effort, because the database remembers what the bell forgets.

Rings are sent from the background, many as one ARQ job, so a submit neither waits for Redis nor fails with it.
Everything on the wire is JSON.
"""

import asyncio
import json
from functools import cache
from typing import Any

import structlog
from arq.connections import ArqRedis
from redis.asyncio import Connection, ConnectionPool, SSLConnection
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import RedisError

from app import metrics
from app.settings import Settings

log = structlog.get_logger()

QUEUE = "gateway:tasks"
WAKE_JOB = "wake_worker"
BATCH_WINDOW_SECONDS = 0.02  # one process rings at most 50 times a second, however many submits it takes
NOTIFY_TIMEOUT_SECONDS = 0.2
RETRY_DELAY_SECONDS = 1.0  # after a failure, how long Redis is left alone
JOB_TTL_SECONDS = 60  # a bell nobody heard for a minute has been overtaken by the sweep


def dump_json(value: Any) -> bytes:
    """ARQ's serializer. It also meets results and exceptions, which become their text."""
    return json.dumps(value, default=repr).encode()


def load_json(data: bytes) -> Any:
    return json.loads(data)


@cache
def _embedded_server() -> Any:
    """The one Redis inside this process, alike for all who open it. Only `memory://` loads its library."""
    import fakeredis

    return fakeredis.FakeServer()


def open_redis(settings: Settings) -> ArqRedis:
    """One pool a process. `memory://` is a Redis inside this process that ends with it."""
    options: dict[str, Any] = {
        "job_serializer": dump_json,
        "job_deserializer": load_json,
        "default_queue_name": QUEUE,
    }
    if settings.is_redis_embedded:
        import fakeredis

        pool = fakeredis.FakeAsyncRedis(server=_embedded_server()).connection_pool
        return ArqRedis(pool, **options)
    pool = ConnectionPool.from_url(
        settings.redis_url,
        max_connections=64,
        socket_connect_timeout=1,
        socket_timeout=5,
        health_check_interval=30,
    )
    pool.connection_class = _NORMALIZED.get(pool.connection_class, pool.connection_class)
    return ArqRedis(pool, **options)


class _NormalizeClosedError(AbstractConnection):
    """Says of a connection that closed as we wrote what everybody expects: uvloop calls it a RuntimeError."""

    async def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
        try:
            await super().send_packed_command(*args, **kwargs)
        except RuntimeError as error:
            raise ConnectionLost(str(error)) from error


class _PlainConnection(_NormalizeClosedError, Connection): ...


class _TlsConnection(_NormalizeClosedError, SSLConnection): ...


_NORMALIZED: dict[type, type] = {Connection: _PlainConnection, SSLConnection: _TlsConnection}


class WorkerWakeup:
    """Rings from one process. A bell says "look now", not "look at this": the rows say what is due."""

    def __init__(self, redis: ArqRedis) -> None:
        self._redis = redis
        self._is_rung = False
        self._sender: asyncio.Task[None] | None = None

    def notify(self) -> None:
        """Returns at once; rings that come together become one."""
        self._is_rung = True
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send())

    async def _send(self) -> None:
        while self._is_rung:
            self._is_rung = False
            try:
                async with asyncio.timeout(NOTIFY_TIMEOUT_SECONDS):
                    await self._redis.enqueue_job(WAKE_JOB, _expires=JOB_TTL_SECONDS)
                await asyncio.sleep(BATCH_WINDOW_SECONDS)
            except (RedisError, OSError) as error:
                metrics.WAKEUPS_FAILED.inc()
                log.warning("bell_lost", error=repr(error)[:200])
                await asyncio.sleep(RETRY_DELAY_SECONDS)

    async def close(self) -> None:
        """Waits for a ring on its way."""
        if self._sender is not None:
            await asyncio.wait([self._sender], timeout=2 * NOTIFY_TIMEOUT_SECONDS)
            self._sender.cancel()
