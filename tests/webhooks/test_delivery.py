"""Delivery: sent at once, retried until accepted, signed for each attempt, never sent to a forbidden address."""

import asyncio
import socket
from typing import Any

import pytest
from aiohttp import web
from sqlalchemy.engine import make_url

from app.errors import Unavailable
from app.jobs import webhook_dispatcher as dispatcher_module
from app.jobs.webhook_dispatcher import retry_after
from app.tables import webhook_deliveries
from app.webhooks import sender as send_module
from app.webhooks.sender import Outcome
from tests.support.makers import Maker
from tests.support.responses import data
from tests.support.run import full
from tests.support.waiting import until
from tests.support.webhook_calls import cancel, delivery, drip, endpoint, reported_of_a_cancel, secret_of
from tests.support.webhook_receivers import HANG, Receiver, couriers, ended_deliveries, outbox, shift, tried_deliveries
from worker.main import run_worker

pytestmark = pytest.mark.anyio


async def test_both_receivers_get_the_task_as_get_returns_it(
    make: Maker, receivers: list[Receiver], working: None
) -> None:
    user = await make.user(points=100)
    made = await endpoint(make, user, receivers[1].url)
    task_no = await make.task_no(
        user, '[[sandbox: {"take_seconds": 0}]]', callbackUrl=receivers[0].url + "?of=mine&名=值"
    )
    task = await make.ended(user, task_no)
    secrets = [await secret_of(make, user), made["secret"]]
    for receiver, secret in zip(receivers[:2], secrets, strict=True):
        (received,) = await receiver.receives()
        event = received.verified(secret)
        assert set(event) == {"type", "timestamp", "data"}
        assert event["type"] == "task.completed"
        assert event["data"] == task
        assert event["timestamp"].endswith("Z")
        assert (received.method, received.headers["content-type"]) == ("POST", "application/json")
        assert received.id == f"msg_{task_no}", "receivers drop duplicates by this id"
        assert not {"cookie", "authorization"} & set(received.headers)
    assert receivers[0].received[0].path == "/hook?of=mine&%E5%90%8D=%E5%80%BC"
    rows = await ended_deliveries(make.runtime, 2)
    assert {(row["status"], row["attempts"], row["status_code"], row["outcome"]) for row in rows} == {
        ("delivered", 1, 200, "delivered")
    }


async def test_a_receiver_that_fails_five_times_gets_a_sixth_attempt(
    make: Maker, receiver: Receiver, short_delays: None
) -> None:
    user = await make.user(points=100)
    receiver.script = [500, 404, 429, 301, 503]
    (task_no,) = await reported_of_a_cancel(make, user, receiver)
    async with couriers(make.runtime, 3):
        (row,) = await ended_deliveries(make.runtime)
    assert (row["status"], row["attempts"], row["status_code"], row["outcome"]) == ("delivered", 6, 200, "delivered")
    assert len(receiver.received) == 6
    secret = await secret_of(make, user)
    for received in receiver.received:
        assert received.verified(secret)["data"]["errorCode"] == "CANCELLED"
        assert received.verified(secret)["type"] == "task.failed"
    assert {received.id for received in receiver.received} == {f"msg_{task_no}"}
    assert len({received.body for received in receiver.received}) == 1
    times = [int(received.headers["webhook-timestamp"]) for received in receiver.received]
    assert times == sorted(times)


async def test_the_first_retry_is_due_within_ten_seconds(make: Maker, receiver: Receiver) -> None:
    user = await make.user(points=100)
    receiver.always = 500
    await reported_of_a_cancel(make, user, receiver)
    async with couriers(make.runtime):
        (row,) = await tried_deliveries(make.runtime)
    assert (row["status"], row["attempts"], row["outcome"], row["status_code"]) == ("pending", 1, "error", 500)
    assert 0 < (row["next_run_at"] - row["now"]).total_seconds() < 7


def test_the_pauses_grow_and_end_after_a_day() -> None:
    pauses, left = [], 86_400.0
    while (pause := retry_after(delivery(len(pauses) + 1, left), Outcome("error", 500))) is not None:
        pauses.append(pause)
        left -= pause
    assert pauses[0] < 10
    assert 10 <= len(pauses) <= 13
    assert pauses[:9] == sorted(pauses[:9])
    assert sum(pauses) == pytest.approx(86_400), "the last attempt is made when the day is over"
    for word in ("delivered", "gone", "disabled"):
        assert retry_after(delivery(1), Outcome(word)) is None


@pytest.mark.parametrize(
    ("status", "wish", "least", "maximum"),
    [
        (503, "120", 120, 120),
        (429, "120", 120, 120),
        (429, "999999", 3600, 3600),
        (503, "-5", 4, 6),
        (503, "soon", 4, 6),
        (500, "120", 4, 6),
    ],
)
async def test_retry_after_is_followed_within_limits(
    make: Maker, receiver: Receiver, status: int, wish: str, least: float, maximum: float
) -> None:
    user = await make.user(points=100)
    receiver.always, receiver.headers = status, {"Retry-After": wish}
    await reported_of_a_cancel(make, user, receiver)
    async with couriers(make.runtime):
        (row,) = await tried_deliveries(make.runtime)
    waits = (row["next_run_at"] - row["now"]).total_seconds()
    assert least - 3 < waits <= maximum


async def test_after_a_day_it_is_given_up(make: Maker, receiver: Receiver, short_delays: None) -> None:
    user = await make.user(points=100)
    receiver.always = 500
    await reported_of_a_cancel(make, user, receiver)
    await shift(make.runtime, webhook_deliveries, -1, "give_up_at")
    async with couriers(make.runtime):
        (row,) = await ended_deliveries(make.runtime)
    assert (row["status"], row["attempts"], row["outcome"]) == ("failed", 1, "error")


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
async def test_a_redirect_is_a_failure_and_is_not_followed(make: Maker, receivers: list[Receiver], status: int) -> None:
    user = await make.user(points=100)
    first, elsewhere = receivers[:2]
    first.always, first.headers = status, {"Location": elsewhere.url}
    await reported_of_a_cancel(make, user, first)
    async with couriers(make.runtime):
        (row,) = await tried_deliveries(make.runtime)
    assert len(first.received) == 1
    assert elsewhere.received == []
    assert (row["status"], row["outcome"], row["status_code"]) == ("pending", "redirect", status)


@pytest.mark.parametrize(
    "location", ["http://169.254.169.254/latest/meta-data", "http://127.0.0.1:{port}/x", "//10.0.0.1/"]
)
async def test_a_redirect_inwards_touches_nothing(
    make: Maker, receivers: list[Receiver], monkeypatch: pytest.MonkeyPatch, location: str
) -> None:
    dialled: list[Any] = []
    loop = asyncio.get_running_loop()
    real = loop.sock_connect

    async def dial(sock: Any, address: Any) -> None:
        dialled.append(address[:2])
        await real(sock, address)

    monkeypatch.setattr(loop, "sock_connect", dial)
    user = await make.user(points=100)
    first, tripwire = receivers[:2]
    first.always = 302
    first.headers = {"Location": location.format(port=tripwire.origin.rpartition(":")[2])}
    await reported_of_a_cancel(make, user, first)
    async with couriers(make.runtime):
        await tried_deliveries(make.runtime)
    settings = make.runtime.settings
    services = {make_url(url).port for url in (settings.database_url, settings.redis_url)}
    ours = {int(first.origin.rpartition(":")[2])}
    assert {port for host, port in dialled if host == "127.0.0.1"} - services <= ours
    assert not [host for host, _ in dialled if host != "127.0.0.1"]
    assert tripwire.received == []


async def test_a_name_with_a_private_address_is_answered_like_an_unknown_one(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo
    inside = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.1.2.3", 80))]

    def resolve(host: Any, *rest: Any, **options: Any) -> Any:
        if host == "inside.example.com":
            return inside
        if host == "nowhere.example.com":
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return real(host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    user = await make.user(points=100)
    for name in ("inside", "nowhere"):
        task_no = await make.task_no(user, callbackUrl=f"http://{name}.example.com/")
        data(await cancel(make, user, task_no))

    async with couriers(make.runtime):
        rows = await tried_deliveries(make.runtime)
    shown = ("status", "outcome", "status_code", "duration_ms", "attempts")
    assert [[row[name] for name in shown] for row in rows] == [["pending", "unreachable", None, None, 1]] * 2


async def test_a_410_ends_it_at_once(make: Maker, receiver: Receiver) -> None:
    user = await make.user(points=100)
    receiver.always = 410
    await reported_of_a_cancel(make, user, receiver)
    async with couriers(make.runtime):
        (row,) = await ended_deliveries(make.runtime)
    assert (row["status"], row["attempts"], row["outcome"]) == ("failed", 1, "gone")


async def endless(request: web.Request) -> web.StreamResponse:
    """A 200 with an endless body."""
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b"x" * 65536)
        await asyncio.sleep(0.001)


async def unfinished(request: web.Request) -> web.StreamResponse:
    """A 200 whose body never comes."""
    response = web.StreamResponse(headers={"Content-Length": "10"})
    await response.prepare(request)
    await asyncio.sleep(3600)
    return response


@pytest.mark.parametrize("answer", [endless, unfinished])
async def test_the_status_alone_is_a_success(make: Maker, receiver: Receiver, answer: Any) -> None:
    user = await make.user(points=100)
    receiver.always = answer
    await reported_of_a_cancel(make, user, receiver)
    async with couriers(make.runtime):
        (row,) = await ended_deliveries(make.runtime)
    assert (row["status"], row["attempts"], len(receiver.received)) == ("delivered", 1, 1)


@pytest.mark.parametrize("manner", [drip, *full(HANG)])
async def test_slow_receivers_delay_neither_others_nor_tasks(
    make: Maker, receivers: list[Receiver], hurry: None, manner: Any
) -> None:
    """A hundred messages to a slow receiver are due first. Then tasks of two users with another receiver complete."""
    slow, quick = receivers[:2]
    slow.always = manner
    user, other = await make.user(points=30 * 101), await make.user(points=30)
    await reported_of_a_cancel(make, user, *[slow] * 100)
    stop = asyncio.Event()
    worker = asyncio.create_task(run_worker(make.runtime, stop))
    await slow.receives(2)
    for one in (other, user):
        task_no = await make.task_no(one, '[[sandbox: {"take_seconds": 0}]]', callbackUrl=quick.url)
        assert (await make.ended(one, task_no))["status"] == "completed"
    await quick.receives(2)
    assert slow.most_at_once <= dispatcher_module.MAX_PER_HOST
    assert len(slow.received) < 100, "the slow messages must still be waiting"
    stop.set()
    await worker


async def test_many_slow_receivers_of_one_user_leave_slots_for_others(
    make: Maker, receivers: list[Receiver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_module, "MAX_CONCURRENCY", 3)
    monkeypatch.setattr(dispatcher_module, "MAX_PER_HOST", 1)
    monkeypatch.setattr(dispatcher_module, "MAX_PER_USER", 2)
    monkeypatch.setattr(send_module, "TIMEOUT_SECONDS", 600)  # no slot is free again within the test
    user, other = await make.user(points=30 * 9), await make.user(points=100)
    for receiver in receivers[:3]:
        receiver.always = HANG
        await reported_of_a_cancel(make, user, *[receiver] * 3)
    await reported_of_a_cancel(make, other, receivers[3])
    async with couriers(make.runtime):
        await receivers[3].receives()
        await until("both slots are used", lambda: sum(len(receiver.received) for receiver in receivers[:3]) >= 2)
        await asyncio.sleep(0.3)
        assert sum(len(receiver.received) for receiver in receivers[:3]) == 2


async def test_a_burst_to_one_receiver_does_not_wait_for_the_poll_interval(make: Maker, receiver: Receiver) -> None:
    user = await make.user(points=30 * 60)
    await reported_of_a_cancel(make, user, *[receiver] * 60)
    async with couriers(make.runtime) as (one,):
        one._idle_seconds = 30.0  # each query alone would take eight at a time
        await ended_deliveries(make.runtime, 60, 100)  # with one query every 30 s it would take three minutes
    assert len({received.id for received in receiver.received}) == len(receiver.received) == 60


async def test_four_workers_send_each_end_once(make: Maker, receivers: list[Receiver]) -> None:
    user = await make.user(points=30 * 40)
    await reported_of_a_cancel(make, user, *receivers * 10)
    async with couriers(make.runtime, 4):
        await ended_deliveries(make.runtime, 40)
    received = [one.id for receiver in receivers for one in receiver.received]
    assert len(received) == len(set(received)) == 40


async def test_a_delivery_of_a_stopped_worker_is_taken_over(
    make: Maker, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await make.user(points=100)
    receiver.script = [HANG]
    await reported_of_a_cancel(make, user, receiver)
    async with couriers(make.runtime):
        await receiver.receives()
    (row,) = await outbox(make.runtime)
    assert (row["status"], row["attempts"], row["outcome"]) == ("pending", 1, None)
    assert row["lease_until"] > row["now"], "it may have arrived, so nobody sends it before the lease ends"
    await shift(make.runtime, webhook_deliveries, -1, "lease_until", "next_run_at")
    async with couriers(make.runtime):
        (row,) = await ended_deliveries(make.runtime)
    assert (row["status"], row["attempts"]) == ("delivered", 2)
    assert len({received.id for received in receiver.received}) == 1


async def test_the_outcome_is_written_once_the_database_is_back(
    make: Maker, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, away = dispatcher_module.record, [3]

    async def record(*arguments: Any, **options: Any) -> Any:
        if away[0]:
            away[0] -= 1
            raise Unavailable
        return await real(*arguments, **options)

    monkeypatch.setattr(dispatcher_module, "record", record)
    user = await make.user(points=100)
    await reported_of_a_cancel(make, user, receiver)
    async with couriers(make.runtime):
        (row,) = await ended_deliveries(make.runtime)
    assert (row["status"], row["attempts"], len(receiver.received)) == ("delivered", 1, 1)


async def test_a_delivery_that_raises_is_retried_later_and_not_for_ever(
    make: Maker, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, short_delays: None
) -> None:
    async def broken(*_: Any) -> None:
        raise ValueError("a bug")

    user = await make.user(points=100)
    await reported_of_a_cancel(make, user, receiver)
    with monkeypatch.context() as patched:
        patched.setattr(dispatcher_module, "build_payload", broken)

        async def tried() -> Any:
            return [row for row in await outbox(make.runtime) if row["outcome"] == "internal" and row["attempts"] > 1]

        async with couriers(make.runtime):
            await until("tried twice", tried)
    await shift(make.runtime, webhook_deliveries, -1, "lease_until", "next_run_at")  # of an attempt cut short
    async with couriers(make.runtime):
        (row,) = await ended_deliveries(make.runtime)
    assert (row["status"], len(receiver.received)) == ("delivered", 1)


async def test_a_whole_attempt_has_ten_seconds(
    make: Maker, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert send_module.TIMEOUT_SECONDS == 10
    monkeypatch.setattr(send_module, "TIMEOUT_SECONDS", 0.5)
    user = await make.user(points=100)
    receiver.script = [drip]
    receiver.always = HANG
    await reported_of_a_cancel(make, user, receiver, receiver)
    async with couriers(make.runtime):
        rows = await tried_deliveries(make.runtime)
    assert {(row["outcome"], row["status_code"]) for row in rows} == {("timeout", None)}
    assert all(row["duration_ms"] >= 400 for row in rows)
