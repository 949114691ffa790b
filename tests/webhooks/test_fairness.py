"""Fairness: endpoints do not affect each other, our own outages disable none, and no user takes all slots."""

import asyncio
from typing import Any

import pytest
from aiohttp import web

from app.database import utc_after
from app.egress import Egress, EgressConnectError
from app.jobs import webhook_dispatcher as dispatcher_module
from app.tables import webhook_deliveries, webhook_endpoints
from app.webhooks import endpoints as endpoints_module
from app.webhooks import outbox as outbox_module
from app.webhooks import sender as send_module
from tests.support.makers import Maker
from tests.support.responses import data, refusal
from tests.support.waiting import until
from tests.support.webhook_calls import (
    DAY,
    HOOK,
    cancel,
    delivery,
    end_a_task,
    endpoint,
    failing,
    listed,
    post,
    records,
    reported_of_a_cancel,
)
from tests.support.webhook_receivers import HANG, Receiver, couriers, ended_deliveries, outbox, shift, tried_deliveries

pytestmark = [pytest.mark.anyio, pytest.mark.both_worlds]


async def disabled_and_since(make: Maker) -> list[tuple[str | None, Any]]:
    async with make.runtime.database.read() as connection:
        rows = await connection.execute(webhook_endpoints.select().order_by(webhook_endpoints.c.id))
        return [(row.disabled_reason, row.failing_since) for row in rows]


# ------------------------------------------------------------------ separate endpoints


async def test_deliveries_of_a_deleted_endpoint_go_to_no_later_one(make: Maker, receivers: list[Receiver]) -> None:
    one, other = await make.user(points=100), await make.user(points=100)
    mine = await endpoint(make, one, receivers[0].url)
    await end_a_task(make, one)
    data(await post(make, one, f"endpoints/{mine['id']}/delete"))
    theirs = await endpoint(make, other, receivers[1].url)
    later = await endpoint(make, one, receivers[2].url)
    async with couriers(make.runtime):
        (row,) = await ended_deliveries(make.runtime)
    assert mine["id"] not in {theirs["id"], later["id"]}
    assert (row["outcome"], [receiver.received for receiver in receivers[:3]]) == ("disabled", [[], [], []])
    assert (await records(make, one))["records"][0]["url"] is None


async def test_deliveries_of_a_user_never_go_to_another_users_endpoint(make: Maker, receivers: list[Receiver]) -> None:
    """Even if an endpoint's number were used twice."""
    one, other = await make.user(points=100), await make.user(points=100)
    await endpoint(make, one, receivers[0].url)
    await end_a_task(make, one)
    theirs = await endpoint(make, other, receivers[1].url)
    async with make.runtime.database.begin() as connection:
        await connection.execute(webhook_deliveries.update().values(endpoint_id=theirs["id"]))
    async with couriers(make.runtime):
        (row,) = await ended_deliveries(make.runtime)
    assert (row["outcome"], receivers[1].received) == ("disabled", [])
    assert (await records(make, one))["records"][0]["url"] is None


@pytest.mark.parametrize("status", [410, 500])
async def test_an_old_urls_result_is_not_of_the_new_one(make: Maker, receivers: list[Receiver], status: int) -> None:
    user = await make.user(points=100)
    made = await endpoint(make, user, receivers[0].url)
    moved = asyncio.Event()

    async def late(_: web.Request) -> web.StreamResponse:
        await moved.wait()
        return web.Response(status=status)

    receivers[0].always = late
    await end_a_task(make, user)
    async with couriers(make.runtime):
        await receivers[0].receives()
        data(await post(make, user, f"endpoints/{made['id']}", url=receivers[1].url))
        moved.set()
        (row,) = await ended_deliveries(make.runtime)
        await receivers[1].receives()
    assert row["status"] == "delivered"
    assert row["host"] == receivers[1].origin, "slots and latency belong to the host that is called"
    assert await disabled_and_since(make) == [(None, None)]


async def test_an_address_that_cannot_be_called_is_refused(make: Maker) -> None:
    user = await make.user(points=100)
    long = "https://receiver.example.com/" + "名" * 1000
    for answer in (await make.submit(user, callbackUrl=long), await post(make, user, "endpoints", url=long)):
        assert refusal(answer)[0] == 400
        assert "转义后不能超过 8192 个字符" in refusal(answer)[2]
    assert data(await make.submit(user, callbackUrl="https://receiver.example.com/" + "名" * 800))["taskNo"]


# ------------------------------------------------------------------ outages of the gateway


async def test_a_day_of_gateway_downtime_is_not_a_day_of_failures(make: Maker, receiver: Receiver) -> None:
    user = await make.user(points=200)
    await endpoint(make, user, receiver.url)
    receiver.always = 500
    await failing(make, user, receiver, 1)
    await shift(make.runtime, webhook_endpoints, -DAY - 1, "failing_since", "failed_at")
    await failing(make, user, receiver, 2)
    assert (await listed(make, user))[0]["enabled"], "two attempts in all"


async def test_while_no_receiver_answers_no_endpoint_is_disabled(
    make: Maker, receivers: list[Receiver], monkeypatch: pytest.MonkeyPatch, short_delays: None
) -> None:
    real = Egress.post

    async def cut_off(self: Egress, url: str, *rest: Any, **options: Any) -> Any:
        if url.startswith(f"http://{receivers[3].origin}/"):
            return await real(self, url, *rest, **options)
        raise EgressConnectError("cannot connect")

    monkeypatch.setattr(Egress, "post", cut_off)
    monkeypatch.setattr(dispatcher_module, "FAILING_SECONDS", 0.2)
    users = [await make.user(points=100) for _ in range(2)]
    for user, receiver in zip(users, receivers, strict=False):
        await endpoint(make, user, receiver.url)
        await end_a_task(make, user)

    async def tried() -> bool:
        return all(row["attempts"] > 4 for row in await outbox(make.runtime))

    async def disabled() -> bool:
        return [reason for reason, _ in await disabled_and_since(make)] == ["failing", "failing"]

    async with couriers(make.runtime):
        await until("tried", tried)
        assert await disabled_and_since(make) == [(None, None)] * 2
        witness = await make.user(points=100)
        receivers[3].always = 500  # an error status is also an answer
        await reported_of_a_cancel(make, witness, receivers[3])
        await until("both are disabled", disabled)


async def test_the_owner_is_notified_at_the_endpoints_that_work(make: Maker, receivers: list[Receiver]) -> None:
    user, stranger = await make.user(points=100), await make.user(points=100)
    gone = await endpoint(make, user, receivers[0].url)
    works = await endpoint(make, user, receivers[1].url)
    await endpoint(make, stranger, receivers[2].url)
    receivers[0].always = 410
    await end_a_task(make, user)
    async with couriers(make.runtime):
        await receivers[1].receives(2)
    (notice,) = [received for received in receivers[1].received if received.json["type"] == "webhook.disabled"]
    assert notice.verified(works["secret"])["data"] == {"endpointId": gone["id"], "reason": "gone"}
    assert receivers[2].received == []
    assert len(receivers[0].received) == 1


# ------------------------------------------------------------------ slots


async def test_a_user_of_many_slow_hosts_leaves_slots_for_others(
    make: Maker, receivers: list[Receiver], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, number in {"MAX_CONCURRENCY": 4, "MAX_PER_HOST": 2, "MAX_PER_USER": 2, "MAX_PER_SLOW_USER": 1}.items():
        monkeypatch.setattr(dispatcher_module, name, number)
    monkeypatch.setattr(send_module, "TIMEOUT_SECONDS", 1.0)
    monkeypatch.setattr(dispatcher_module, "SLOW_SECONDS", 0.5)
    receivers[0].always = HANG
    for _ in range(2):
        bad = await make.user(points=400)
        await reported_of_a_cancel(make, bad, *[receivers[0]] * 12)
    for number, row in enumerate(await outbox(make.runtime)):
        async with make.runtime.database.begin() as connection:  # a different host name for each
            this = webhook_deliveries.c.id == row["id"]
            await connection.execute(webhook_deliveries.update().where(this).values(host=f"h{number}.example.com"))
    async with couriers(make.runtime):
        await receivers[0].receives(6)
        await reported_of_a_cancel(make, await make.user(points=100), receivers[3])
        await receivers[3].receives()
        assert len(receivers[0].received) < 20, "the slow deliveries must still be waiting"


async def test_one_user_does_not_keep_others_from_a_slow_host_that_they_share(
    make: Maker, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_module, "MAX_QUERY_ROWS", 5)
    monkeypatch.setattr(dispatcher_module, "SLOW_SECONDS", 0.1)
    monkeypatch.setattr(send_module, "TIMEOUT_SECONDS", 0.4)
    receiver.always = HANG
    bad, good = await make.user(points=480), await make.user(points=100)
    await reported_of_a_cancel(make, bad, *[receiver] * 16)
    async with couriers(make.runtime) as (one,):
        await until("the host is slow", lambda: receiver.origin in one._slow)
        (number,) = await reported_of_a_cancel(make, good, receiver)
        await until("told", lambda: f"msg_{number}" in {received.id for received in receiver.received})
    tried = {received.id for received in receiver.received} - {f"msg_{number}"}
    assert len(tried) < 16, "before theirs were all through"
    assert receiver.most_at_once <= dispatcher_module.MAX_PER_USER_ON_HOST


# ------------------------------------------------------------------ a new address


async def test_a_new_address_is_not_called_for_all_at_once(make: Maker, receiver: Receiver) -> None:
    user = await make.user(points=100)
    made = await endpoint(make, user)
    for _ in range(12):
        await end_a_task(make, user)
    await shift(make.runtime, webhook_deliveries, 3600, "next_run_at")
    await shift_last(make, 4.5)
    data(await post(make, user, f"endpoints/{made['id']}", url=receiver.url))
    rows = await outbox(make.runtime)
    seconds = [(row["next_run_at"] - row["now"]).total_seconds() for row in rows]
    assert seconds == pytest.approx([*range(11), 4.5], abs=1.5), "one in each second, and none later than it was"
    assert {row["host"] for row in rows} == {receiver.origin}


async def shift_last(make: Maker, seconds: float) -> None:
    last = (await outbox(make.runtime))[-1]["id"]
    changed = webhook_deliveries.update().where(webhook_deliveries.c.id == last)
    async with make.runtime.database.begin() as connection:
        await connection.execute(changed.values(next_run_at=utc_after(seconds)))


async def test_many_share_ten_minutes(make: Maker, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints_module, "MAX_SPREAD_SECONDS", 3)
    user = await make.user(points=100)
    made = await endpoint(make, user)
    for _ in range(7):
        await end_a_task(make, user)
    await shift(make.runtime, webhook_deliveries, 3600, "next_run_at")
    data(await post(make, user, f"endpoints/{made['id']}", url=receiver.url))
    seconds = [(row["next_run_at"] - row["now"]).total_seconds() for row in await outbox(make.runtime)]
    assert seconds == pytest.approx([0, 1, 2, 0, 1, 2, 0], abs=0.9)


async def test_the_address_that_it_has_changes_nothing(make: Maker, patient: None, receiver: Receiver) -> None:
    user = await make.user(points=100)
    made = await endpoint(make, user, receiver.url)
    receiver.always = 500
    await failing(make, user, receiver, 1)
    before, health = await outbox(make.runtime), await disabled_and_since(make)
    for url in (receiver.url, receiver.url.replace("http", "HTTP")):
        data(await post(make, user, f"endpoints/{made['id']}", url=url))
    after = await outbox(make.runtime)
    assert [(row["version"], row["next_run_at"]) for row in after] == [(r["version"], r["next_run_at"]) for r in before]
    assert await disabled_and_since(make) == health != [(None, None)]


async def test_a_slow_dns_lookup_counts_as_slow(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow_name(*_: Any, **__: Any) -> None:
        await asyncio.sleep(0.6)
        raise EgressConnectError("no such name")

    monkeypatch.setattr(Egress, "post", slow_name)
    monkeypatch.setattr(dispatcher_module, "SLOW_SECONDS", 0.2)
    user = await make.user(points=100)
    data(await cancel(make, user, await make.task_no(user, callbackUrl=HOOK)))
    async with couriers(make.runtime) as (one,):
        await tried_deliveries(make.runtime)
        assert "receiver.example.com" in one._slow


async def test_the_record_of_slow_hosts_is_bounded_and_keeps_the_newest(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_module, "MAX_SLOW", 3)
    one = dispatcher_module.WebhookDispatcher(make.runtime)
    for number in range(4):
        one._track_latency(delivery(1, host=f"h{number}.example.com"), 10.0)
    assert list(one._slow) == ["h2.example.com", "h3.example.com", 1]
    one._track_latency(delivery(1, host="h3.example.com"), 0.1)
    assert list(one._slow) == ["h2.example.com"]


def test_a_gap_is_longer_than_any_pause() -> None:
    assert dispatcher_module.RETRY_DELAYS[-1] * 1.2 < outbox_module.MAX_ATTEMPT_GAP_SECONDS
