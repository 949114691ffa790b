"""Opens the Redis connection pool of a process. ARQ jobs are JSON, not pickle.

After a failover the old master is a replica that refuses every write. redis-py keeps such a connection, because the
reply is a proper one. `OPTIONS` makes it close the connection and try the command once more on a new one, which by
then leads to the new master: by the address of REDIS_URL, or by the sentinels.
"""

import json
from functools import cache
from typing import Any

from arq.connections import ArqRedis
from redis.asyncio import Connection, ConnectionPool, SSLConnection
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool, SentinelManagedConnection
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import ReadOnlyError

from app.setting_values.text import SENTINEL_SCHEME, parse_sentinel_url
from app.settings import Settings

SENTINEL_SECONDS = 0.3  # for each sentinel: a dead one must not use up the second that a ticket may take
OPTIONS: dict[str, Any] = {
    "max_connections": 64,
    "socket_connect_timeout": 1,
    "socket_timeout": 5,
    "health_check_interval": 30,
    # A command is repeated after this error only: a replica has executed nothing, so the repeat is safe.
    "retry": Retry(NoBackoff(), 1),
    "retry_on_error": [ReadOnlyError],
}


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
        "default_queue_name": queue_name(settings),
    }
    if settings.is_redis_embedded:
        import fakeredis

        pool = fakeredis.FakeAsyncRedis(server=_embedded_server()).connection_pool
        return ArqRedis(pool, **options)
    if settings.redis_url.startswith(f"{SENTINEL_SCHEME}://"):
        return ArqRedis(_open_sentinel_pool(settings.redis_url), **options)
    pool = ConnectionPool.from_url(settings.redis_url, **OPTIONS)
    pool.connection_class = _NORMALIZED.get(pool.connection_class, pool.connection_class)
    return ArqRedis(pool, **options)


def queue_name(settings: Settings) -> str:
    """The queue of ARQ. Its health check and ARQ's other keys hold the same prefix."""
    return settings.redis_name("tasks")


def _open_sentinel_pool(url: str) -> SentinelConnectionPool:
    """Each new connection asks the sentinels for the master."""
    address = parse_sentinel_url(url)
    sentinels = Sentinel(  # type: ignore[no-untyped-call]
        address.sentinels,
        sentinel_kwargs={
            "socket_connect_timeout": SENTINEL_SECONDS,
            "socket_timeout": SENTINEL_SECONDS,
            "username": address.sentinel_username,
            "password": address.sentinel_password,
        },
    )
    return SentinelConnectionPool(  # type: ignore[no-untyped-call]
        address.master,
        sentinels,
        connection_class=_SentinelConnection,
        db=address.database,
        username=address.username,
        password=address.password,
        **OPTIONS,
    )


class _NormalizeClosedError(AbstractConnection):
    """Turns the RuntimeError that uvloop raises for a write on a closed connection into a redis-py error."""

    async def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
        try:
            await super().send_packed_command(*args, **kwargs)
        except RuntimeError as error:
            raise ConnectionLost(str(error)) from error


class _PlainConnection(_NormalizeClosedError, Connection): ...


class _TlsConnection(_NormalizeClosedError, SSLConnection): ...


class _SentinelConnection(_NormalizeClosedError, SentinelManagedConnection): ...


_NORMALIZED: dict[type, type] = {Connection: _PlainConnection, SSLConnection: _TlsConnection}
