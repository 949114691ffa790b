"""Errors of broken Redis connections: they are always of a class that the callers handle."""

import asyncio

import pytest
import uvloop
from redis.exceptions import RedisError

from app.messaging.redis import open_redis
from app.settings import Settings


async def use_a_closed_connection() -> None:
    server = await asyncio.start_server(welcome, "127.0.0.1", 0)
    async with server:
        url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        connection = open_redis(Settings(_env_file=None, redis_url=url)).connection_pool.make_connection()
        await connection.connect()
        connection._writer.transport.abort()
        await asyncio.sleep(0.05)
        await connection.send_packed_command([b"PING\r\n"])


async def welcome(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"+PONG\r\n" * 8)


def test_a_closed_connection_is_a_redis_error() -> None:
    """uvloop raises RuntimeError for it, which would pass every handler of Redis errors."""
    with pytest.raises(RedisError), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(use_a_closed_connection())


def test_tls_raises_the_same_errors() -> None:
    pool = open_redis(Settings(_env_file=None, redis_url="rediss://127.0.0.1:1/0")).connection_pool
    plain = open_redis(Settings(_env_file=None, redis_url="redis://127.0.0.1:1/0")).connection_pool
    assert pool.connection_class.send_packed_command is plain.connection_class.send_packed_command
    assert pool.connection_class.__mro__[1] is plain.connection_class.__mro__[1]
