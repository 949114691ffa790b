"""Two installations on one Redis, with a user of the same id in each: nothing of one reaches the other."""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis.asyncio

from app.accounts.authentication import authenticate
from app.accounts.tickets import make_ticket, redeem_ticket
from app.accounts.users import create_user
from app.aio import cancel_and_wait
from app.api.access.rate_limits import RateLimiter
from app.errors import RateLimited, Unauthenticated
from app.messaging import pubsub
from app.messaging.redis import queue_name
from app.runtime import Runtime, open_runtime
from app.settings import Settings
from tests.support.makers import Maker
from tests.support.responses import data, door
from tests.support.services import own_database
from tests.support.waiting import until
from worker.main import _run_arq

DEPLOYMENT = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text("utf-8")
pytestmark = [pytest.mark.anyio, pytest.mark.worlds("real")]


@pytest.fixture
def other_url(world_name: str) -> Iterator[str]:
    with own_database(world_name) as url:
        yield url


@pytest.fixture
async def other(runtime: Runtime, other_url: str) -> AsyncIterator[Runtime]:
    """An installation with another database and the same Redis and secret."""
    async with open_runtime(changed(runtime, database_url=other_url)) as opened:
        yield opened


def changed(runtime: Runtime, **changes: Any) -> Settings:
    return Settings(_env_file=None, **(runtime.settings.model_dump() | changes))


async def test_a_ticket_opens_the_streams_of_its_own_installation_only(
    make: Maker, runtime: Runtime, other: Runtime
) -> None:
    user = await make.user()
    await create_user(other.database, user_id=user.id)
    ticket = await make_ticket(runtime, await authenticate(runtime, user.token))
    for _ in range(2):
        with pytest.raises(Unauthenticated):
            await redeem_ticket(other, ticket)
    assert (await redeem_ticket(runtime, ticket)).user_id == user.id, "the other one has not used it up"


async def test_a_ticket_is_bound_to_the_secrets_and_the_installation_that_made_it(
    make: Maker, runtime: Runtime, other: Runtime
) -> None:
    """Also where somebody who can write to Redis helps."""
    user, victim = await make.user(), await make.user()
    await create_user(other.database, user_id=user.id)
    digest_of = {}

    async def stored() -> tuple[str, str, bytes]:
        ticket = await make_ticket(runtime, await authenticate(runtime, user.token))
        digest_of[ticket] = hashlib.sha256(ticket.encode()).hexdigest()
        key = runtime.settings.redis_name("ticket", digest_of[ticket])
        return ticket, key, await runtime.redis.get(key)

    ticket, _, value = await stored()
    await runtime.redis.set(other.settings.redis_name("ticket", digest_of[ticket]), value)
    with pytest.raises(Unauthenticated):
        await redeem_ticket(other, ticket)

    ticket, key, value = await stored()
    await runtime.redis.set(key, value.replace(b'"user_id": %d' % user.id, b'"user_id": %d' % victim.id))
    with pytest.raises(Unauthenticated):
        await redeem_ticket(runtime, ticket)

    ticket, _, value = await stored()
    guess = runtime.settings.redis_name("ticket", hashlib.sha256(b"a guess").hexdigest())
    await runtime.redis.set(guess, value)
    with pytest.raises(Unauthenticated):
        await redeem_ticket(runtime, "a guess")

    for garbage in (b"", b" ", b"\xff {}", b'{"user_id": 1}'):
        ticket, key, _ = await stored()
        await runtime.redis.set(key, garbage)
        with pytest.raises(Unauthenticated):
            await redeem_ticket(runtime, ticket)

    new, old = "n" * 40, runtime.settings.jwt_secret
    async with (
        open_runtime(changed(runtime, jwt_secret=new)) as stranger,
        open_runtime(changed(runtime, jwt_secret=f"{new},{old}")) as rotated,
    ):
        ticket, *_ = await stored()
        assert (await redeem_ticket(rotated, ticket)).user_id == user.id
        ticket, *_ = await stored()
        with pytest.raises(Unauthenticated):
            await redeem_ticket(stranger, ticket)


async def test_a_notice_is_received_in_its_own_installation_only(runtime: Runtime, other: Runtime) -> None:
    async with runtime.pubsub.subscribe(1) as own, other.pubsub.subscribe(1) as foreign:
        for one in (runtime, other):
            await until("connected", lambda one=one: one.pubsub.poll_interval == pubsub.POLL_SECONDS)
        await until("both began", lambda: own._has_lost and foreign._has_lost)
        own.drain()
        foreign.drain()
        runtime.pubsub.publish(1, "A-1")
        other.pubsub.publish(1, "B-1")
        await until("both came", lambda: own._task_nos and foreign._task_nos)
        assert (own.drain(), foreign.drain()) == ((["A-1"], False), (["B-1"], False))


@pytest.mark.usefixtures("endless_minute")
async def test_requests_are_counted_for_their_own_installation(runtime: Runtime, other: Runtime) -> None:
    spent, fresh = RateLimiter(runtime.redis, runtime.settings), RateLimiter(other.redis, other.settings)
    for _ in range(10):
        await spent.check("redeem", 1)
    with pytest.raises(RateLimited):
        await RateLimiter(runtime.redis, runtime.settings).check("redeem", 1)
    for _ in range(10):
        await fresh.check("redeem", 1)


async def test_a_wakeup_wakes_a_worker_of_its_own_installation(runtime: Runtime, other: Runtime) -> None:
    woken: list[str] = []
    workers = [
        asyncio.create_task(_run_arq(one, SimpleNamespace(wake=lambda name=name: woken.append(name))))  # type: ignore[arg-type]
        for name, one in (("own", runtime), ("foreign", other))
    ]
    for one in (runtime, other):
        health = f"{queue_name(one.settings)}:health-check"
        await until("its worker listens", lambda one=one, health=health: one.redis.exists(health))
    runtime.wakeup.notify()
    await until("woken", lambda: woken)
    other.wakeup.notify()
    await until("the other is woken", lambda: "foreign" in woken)
    assert woken == ["own", "foreign"]
    await cancel_and_wait(*workers)


async def test_every_name_bears_the_prefix_so_rights_on_it_are_enough(
    make: Maker, runtime: Runtime, make_redis: Callable[..., int]
) -> None:
    """The user of docs/deployment.md. Redis itself refuses a name without the prefix."""
    user, port = await make.user(), make_redis()
    (rights,) = re.findall(r"`(~PREFIX:[^`]*)`", DEPLOYMENT)
    async with redis.asyncio.Redis(port=port) as administrator:
        words = rights.replace("PREFIX", "shop").split()
        await administrator.execute_command("ACL", "SETUSER", "shop", "on", ">pw", *words)
        await administrator.execute_command("ACL", "LOG", "RESET")
        own = changed(runtime, redis_url=f"redis://shop:pw@127.0.0.1:{port}/0", redis_prefix="shop")
        async with open_runtime(own) as shop, shop.pubsub.subscribe(1) as changes, door(shop) as api:
            await until("connected", lambda: shop.pubsub.poll_interval == pubsub.POLL_SECONDS)
            woken = asyncio.Event()
            worker = asyncio.create_task(_run_arq(shop, SimpleNamespace(wake=woken.set)))  # type: ignore[arg-type]
            shop.wakeup.notify()
            await asyncio.wait_for(woken.wait(), 30)
            shop.pubsub.publish(1, "T-1")
            await until("noticed", lambda: changes._task_nos)
            assert (await redeem_ticket(shop, await make_ticket(shop, await authenticate(shop, user.token)))).user_id
            for _ in range(10):
                await RateLimiter(shop.redis, own).check("redeem", 1)
            assert data(await api.get("/readyz"))["redis"] == "ok"
            await cancel_and_wait(worker)
        assert await administrator.execute_command("ACL", "LOG") == []
        assert all(b"shop:" in key for key in await administrator.keys())
