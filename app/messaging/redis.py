"""Opens the Redis connection pool of a process. ARQ jobs are JSON, not pickle."""

import json
from functools import cache
from typing import Any

from arq.connections import ArqRedis
from redis.asyncio import Connection, ConnectionPool, SSLConnection
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as ConnectionLost

from app.settings import Settings

QUEUE = "gateway:tasks"


def dump_json(value: Any) -> bytes:
    """ARQ's serializer. ARQ also passes results and exceptions; an exception becomes its text."""
    return json.dumps(value, default=repr).encode()


def load_json(data: bytes) -> Any:
    return json.loads(data)


@cache
def _embedded_server() -> Any:
    """The Redis server inside this process, shared by all pools. Only `memory://` loads its library."""
    import fakeredis

    return fakeredis.FakeServer()


def open_redis(settings: Settings) -> ArqRedis:
    """Opens the pool without a connection. `memory://` is a Redis server inside this process."""
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
    """Turns the RuntimeError that uvloop raises for a write on a closed connection into a redis-py error."""

    async def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
        try:
            await super().send_packed_command(*args, **kwargs)
        except RuntimeError as error:
            raise ConnectionLost(str(error)) from error


class _PlainConnection(_NormalizeClosedError, Connection): ...


class _TlsConnection(_NormalizeClosedError, SSLConnection): ...


_NORMALIZED: dict[type, type] = {Connection: _PlainConnection, SSLConnection: _TlsConnection}
