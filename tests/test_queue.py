"""What Redis' connections say when they break: always an error that whoever uses them expects."""

import asyncio

import pytest
import uvloop
from redis.exceptions import RedisError

from app.messaging.redis import open_redis
from app.settings import Settings


async def speak_on_a_closed_connection() -> None:
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


def test_a_connection_that_closed_meanwhile_is_redis_away() -> None:
    """uvloop calls writing on it a RuntimeError, which would go past everybody who bears Redis being away."""
    with pytest.raises(RedisError), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(speak_on_a_closed_connection())


def test_tls_speaks_the_same_words() -> None:
    pool = open_redis(Settings(_env_file=None, redis_url="rediss://127.0.0.1:1/0")).connection_pool
    plain = open_redis(Settings(_env_file=None, redis_url="redis://127.0.0.1:1/0")).connection_pool
    assert pool.connection_class.send_packed_command is plain.connection_class.send_packed_command
    assert pool.connection_class.__mro__[1] is plain.connection_class.__mro__[1]
