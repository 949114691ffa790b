"""Connections that died while they were idle: the pools replace them before a caller sees an error."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from sqlalchemy import insert, text
from sqlalchemy.engine import make_url

from app.accounts.users import create_user
from app.database import Database, mysql, open_database, ping, utc_now
from app.errors import Unavailable
from app.settings import Settings
from app.tables import users
from tests.support.processes.proxy import Proxy, proxied
from tests.support.sql import run_sql
from tests.support.waiting import until
from tests.support.worlds import World

pytestmark = [pytest.mark.anyio, pytest.mark.worlds("real")]
MAX_SECONDS = 10.0  # less than TRANSACTION_TIMEOUT_SECONDS, for which a dead connection would hold a caller


@pytest.fixture
def proxy(world: World) -> Iterator[Proxy]:
    url = make_url(world.settings["database_url"])
    with proxied(url.host or "127.0.0.1", url.port or 3306) as proxy:
        yield proxy


@pytest.fixture
async def database(world: World, proxy: Proxy, anyio_backend: str) -> AsyncIterator[Database]:
    """Both pools have one idle connection."""
    through = make_url(world.settings["database_url"]).set(host="127.0.0.1", port=proxy.port)
    url = through.render_as_string(hide_password=False)
    database = open_database(Settings(_env_file=None, database_url=url, database_pool_size=1))
    await create_user(database)
    await ping(database)
    yield database
    await database.close()


@pytest.fixture
def always_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mysql, "IDLE_SECONDS", 0)
    monkeypatch.setattr(mysql, "PING_SECONDS", 0.3)


@pytest.fixture
def never_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mysql, "IDLE_SECONDS", 1e9)


async def connection_ids(database: Database) -> tuple[int, int]:
    """Of a reader and of a writer."""
    query = text("SELECT CONNECTION_ID()")
    async with database.read() as connection:
        reader = int(await connection.scalar(query))
    async with database.begin() as connection:
        return reader, int(await connection.scalar(query))


@pytest.mark.parametrize("how", ["blackhole", "reset"])
@pytest.mark.usefixtures("always_test")
async def test_what_a_balancer_forgot_is_replaced_before_it_is_used(database: Database, proxy: Proxy, how: str) -> None:
    began = time.monotonic()
    proxy.forget(how)
    await ping(database)
    await create_user(database)
    assert time.monotonic() - began < MAX_SECONDS


@pytest.mark.usefixtures("never_test")
async def test_what_the_server_closed_is_replaced_without_a_test(database: Database, world: World) -> None:
    for dead in await connection_ids(database):
        await run_sql(world.settings["database_url"], f"KILL {dead}")
        gone = f"SELECT COUNT(*) = 0 FROM information_schema.PROCESSLIST WHERE ID = {dead}"
        await until("the server has closed it", lambda query=gone: run_sql(world.settings["database_url"], query))
    await ping(database)
    await create_user(database)


@pytest.mark.usefixtures("never_test")
async def test_a_first_statement_on_a_dead_connection_is_repeated_and_counts_once(
    database: Database, proxy: Proxy
) -> None:
    proxy.forget("reset")
    await ping(database)
    async with database.begin() as connection:
        await connection.execute(insert(users).values(username="once", created_at=utc_now()))
    async with database.read() as connection:
        assert await connection.scalar(text("SELECT COUNT(*) FROM users WHERE username = 'once'")) == 1


@pytest.mark.usefixtures("never_test")
async def test_a_later_statement_is_not_repeated(database: Database, proxy: Proxy) -> None:
    async def write_two() -> None:
        async with database.begin() as connection:
            await connection.execute(insert(users).values(username="lost", created_at=utc_now()))
            proxy.forget("reset")
            await connection.execute(insert(users).values(username="also lost", created_at=utc_now()))

    with pytest.raises(Unavailable):
        await write_two()
    async with database.read() as connection:
        assert await connection.scalar(text("SELECT COUNT(*) FROM users WHERE username LIKE '%lost'")) == 0


@pytest.mark.usefixtures("never_test")
async def test_a_time_out_replaces_all_idle_connections_and_the_log_says_so(
    database: Database, proxy: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    before = await connection_ids(database)
    proxy.set("blackhole")
    with pytest.raises(Unavailable):
        async with database.read(0.3) as connection:
            await connection.scalar(text("SELECT 1"))
    proxy.set("pass")
    after = await connection_ids(database)
    assert not set(before) & set(after)
    assert "TimeoutError: no answer in time" in "".join(capsys.readouterr())


@pytest.mark.parametrize("code", [1290, 1836])
async def test_a_connection_to_a_server_that_became_a_replica_is_replaced(database: Database, code: int) -> None:
    refusal = text(f"SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {code}, MESSAGE_TEXT = 'replica'")

    async def write() -> None:
        async with database.begin() as connection:
            await connection.scalar(text("SELECT 1"))
            await connection.execute(refusal)

    before = await connection_ids(database)
    with pytest.raises(Unavailable):
        await write()
    assert not set(before) & set(await connection_ids(database))


async def test_the_kernel_keeps_idle_connections_alive(database: Database) -> None:
    async with database.read() as connection:
        driver: Any = (await connection.get_raw_connection()).driver_connection
    sock = driver._transport.get_extra_info("socket")
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 60


async def test_a_hundred_requests_after_a_pause_are_all_answered(world: World, proxy: Proxy) -> None:
    through = make_url(world.settings["database_url"]).set(host="127.0.0.1", port=proxy.port)
    database = open_database(Settings(_env_file=None, database_url=through.render_as_string(hide_password=False)))
    try:
        await asyncio.gather(*[ping(database) for _ in range(100)])
        proxy.forget("reset")
        await asyncio.gather(*[ping(database) for _ in range(100)])
    finally:
        await database.close()
