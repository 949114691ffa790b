"""Redis moves to another server: tickets work again at once, although no old connection breaks."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from app.accounts.authentication import authenticate
from app.accounts.tickets import make_ticket, redeem_ticket
from app.errors import Unavailable
from app.runtime import Runtime, open_runtime
from app.settings import Settings
from tests.support.makers import Maker
from tests.support.ports import dead_port
from tests.support.raw_connections import GONE
from tests.support.responses import data, door
from tests.support.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.worlds("real")]
Start = Callable[..., int]


class Address:
    """One address that leads to one server after the other. Old connections stay where they are."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Address"]:
        server = await asyncio.start_server(self._join, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there = await asyncio.open_connection("127.0.0.1", self.target)
        with contextlib.suppress(*GONE):
            await asyncio.gather(_copy(reader, there), _copy(there_reader, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(65536):
        writer.write(chunk)
    writer.close()


def on(runtime: Runtime, redis_url: str) -> Settings:
    return Settings(_env_file=None, **(runtime.settings.model_dump() | {"redis_url": redis_url}))


async def use_ticket(runtime: Runtime, token: str) -> int:
    return (await redeem_ticket(runtime, await make_ticket(runtime, await authenticate(runtime, token)))).user_id


async def test_after_a_switch_behind_one_address_no_request_fails(
    make: Maker, runtime: Runtime, make_redis: Start
) -> None:
    user = await make.user()
    old, new = make_redis(), make_redis()
    async with (
        Address(old).open() as address,
        open_runtime(on(runtime, f"redis://127.0.0.1:{address.port}/0")) as moved,
    ):
        async with door(moved) as api:
            # Several connections at once, so that the pool has several to the old server.
            assert await asyncio.gather(*(use_ticket(moved, user.token) for _ in range(5))) == [user.id] * 5
            assert data(await api.get("/readyz"))["redis"] == "ok"
            with redis.Redis(port=old) as client:
                client.replicaof("127.0.0.1", str(new))
            assert data(await api.get("/readyz"))["redis"] == "warning: refuses writes"
            with pytest.raises(Unavailable):
                await use_ticket(moved, user.token)
            address.target = new
            assert await asyncio.gather(*(use_ticket(moved, user.token) for _ in range(5))) == [user.id] * 5
            assert data(await api.get("/readyz"))["redis"] == "ok"
        await moved.redis.enqueue_job("wake_worker", _job_id="x:1")
        async with moved.redis.pipeline(transaction=False) as pipe:
            pipe.incrby("x:2", 5)
            assert await pipe.execute() == [5]


async def test_a_full_redis_is_reported(make: Maker, runtime: Runtime, make_redis: Start) -> None:
    port = make_redis("--maxmemory", "1", "--maxmemory-policy", "noeviction")
    async with open_runtime(on(runtime, f"redis://127.0.0.1:{port}/0")) as full, door(full) as api:
        assert data(await api.get("/readyz"))["redis"] == "warning: refuses writes"


@pytest.mark.full
async def test_sentinels_lead_to_the_new_master(
    make: Maker, runtime: Runtime, make_redis: Start, tmp_path: Path
) -> None:
    """The master is killed; the first sentinel that is named has been dead all the time."""
    user = await make.user()
    first = make_redis("--requirepass", "secret")
    login = ("--requirepass", "secret", "--masterauth", "secret")
    make_redis(*login, "--replicaof", "127.0.0.1", str(first))
    config = tmp_path / "sentinel.conf"
    config.write_text(
        f"sentinel monitor mymaster 127.0.0.1 {first} 1\nsentinel auth-pass mymaster secret\n"
        "sentinel down-after-milliseconds mymaster 500\nsentinel failover-timeout mymaster 2000\n"
    )
    sentinel = make_redis(str(config), "--sentinel")
    watcher: Any = redis.Redis(port=sentinel, decode_responses=True)
    with watcher:
        await until("the sentinel knows the replica", lambda: is_replica_ready(watcher))
        url = f"redis+sentinel://:secret@127.0.0.1:{dead_port()},127.0.0.1:{sentinel}/mymaster/0"
        async with open_runtime(on(runtime, url)) as moved:
            assert await use_ticket(moved, user.token) == user.id
            with redis.Redis(port=first, password="secret") as client, contextlib.suppress(redis.ConnectionError):
                client.shutdown(nosave=True)

            async def works() -> bool:
                with contextlib.suppress(Unavailable):
                    return await use_ticket(moved, user.token) == user.id
                return False

            await until("tickets work again", works, 30)
            moved.wakeup.notify()
            await until("wakeups arrive", lambda: moved.redis.zcard(moved.settings.redis_name("tasks")))


def is_replica_ready(sentinel: Any) -> bool:
    replicas = sentinel.sentinel_slaves("mymaster")
    return bool(replicas) and all(one["flags"] == "slave" and one["master-link-status"] == "ok" for one in replicas)
