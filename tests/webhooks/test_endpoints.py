"""Endpoints: secrets, limits, ownership, automatic disabling, and the delivery log."""

import asyncio
from typing import Any

import pytest
from aiohttp import web

from app.jobs import webhook_dispatcher as dispatcher
from app.tables import webhook_deliveries, webhook_endpoints, webhook_secrets
from app.webhooks.deliveries import purge_old
from app.webhooks.signing import new_secret
from tests.support.makers import Maker
from tests.support.responses import data, refusal
from tests.support.waiting import until
from tests.support.webhook_calls import (
    DAY,
    HOOK,
    end_a_task,
    endpoint,
    failing,
    listed,
    post,
    records,
    reported_of_a_cancel,
    secret_of,
)
from tests.support.webhook_receivers import Receiver, couriers, ended_deliveries, outbox, shift

pytestmark = [pytest.mark.anyio, pytest.mark.both_worlds]


MISSING = (404, "NOT_FOUND", "推送端点不存在")
NO_RECORD = (404, "NOT_FOUND", "推送记录不存在")


# ------------------------------------------------------------------ secrets


async def test_the_secret_is_made_once_for_each_user(make: Maker) -> None:
    user, other = await make.user(), await make.user()
    at_once = await asyncio.gather(*[secret_of(make, user) for _ in range(10)])
    assert len(set(at_once)) == 1
    assert at_once[0].startswith("whsec_")
    assert await secret_of(make, other) != at_once[0]
    assert data(await make.api.get("/user/webhooks/secret", headers=user.headers))["previousExpireTime"] is None


async def test_after_a_rotation_both_secrets_verify_for_a_day(make: Maker, receiver: Receiver) -> None:
    user = await make.user(points=100)
    old = await secret_of(make, user)
    rotated = data(await post(make, user, "secret/rotate"))
    new = rotated["secret"]
    assert new != old
    assert rotated["previousExpireTime"] is not None
    assert await secret_of(make, user) == new
    async with couriers(make.runtime):
        await reported_of_a_cancel(make, user, receiver)
        (received,) = await receiver.receives()
        assert received.verified(old) == received.verified(new)
        assert received.headers["webhook-signature"].count("v1,") == 2
        with pytest.raises(Exception, match="No matching signature"):
            received.verified(new_secret())
        await shift(make.runtime, webhook_secrets, 60, "previous_until")
        await reported_of_a_cancel(make, user, receiver)
        (await receiver.receives(2))[1].verified(old)
        await shift(make.runtime, webhook_secrets, -1, "previous_until")
        await reported_of_a_cancel(make, user, receiver)
        last = (await receiver.receives(3))[2]
    last.verified(new)
    with pytest.raises(Exception, match="No matching signature"):
        last.verified(old)
    assert data(await make.api.get("/user/webhooks/secret", headers=user.headers))["previousExpireTime"] is None


async def test_an_endpoint_has_its_own_secret_and_rotates_it_alone(make: Maker, receiver: Receiver) -> None:
    user = await make.user(points=100)
    made = await endpoint(make, user, receiver.url)
    mine = await secret_of(make, user)
    rotated = data(await post(make, user, f"endpoints/{made['id']}/rotate"))
    assert len({made["secret"], rotated["secret"], mine}) == 3
    async with couriers(make.runtime):
        await end_a_task(make, user)
        (received,) = await receiver.receives()
    assert received.verified(made["secret"]) == received.verified(rotated["secret"])
    with pytest.raises(Exception, match="No matching signature"):
        received.verified(mine)
    assert await secret_of(make, user) == mine
    assert "secret" not in (await listed(make, user))[0]


# ------------------------------------------------------------------ endpoints


async def test_parallel_requests_create_ten_endpoints_at_most(make: Maker) -> None:
    user, other = await make.user(), await make.user()
    made = await asyncio.gather(*[post(make, user, "endpoints", url=f"{HOOK}/{n}") for n in range(14)])
    assert sorted(answer.status_code for answer in made) == [200] * 10 + [400] * 4
    payload = {answer.json()["message"] for answer in made if answer.status_code == 400}
    assert payload == {"参数错误: url 最多 10 个推送端点，请先删除不用的"}
    assert len(await listed(make, user)) == 10
    data(await post(make, user, f"endpoints/{(await listed(make, user))[0]['id']}/delete"))
    await endpoint(make, user)
    await endpoint(make, other)


async def test_an_endpoint_receives_its_event_types_and_only_while_it_is_enabled(make: Maker) -> None:
    user = await make.user(points=1000)
    made = await endpoint(make, user, events=["task.completed"])
    assert (made["events"], made["enabled"], made["disabledReason"]) == (["task.completed"], True, None)
    path = f"endpoints/{made['id']}"
    await end_a_task(make, user)
    assert await outbox(make.runtime) == []
    data(await post(make, user, path, events=["task.failed", "task.failed"]))
    await end_a_task(make, user)
    assert len(await outbox(make.runtime)) == 1
    off = data(await post(make, user, path, enabled=False))
    assert (off["enabled"], off["disabledReason"], off["events"]) == (False, "manual", ["task.failed"])
    assert off["disabledTime"] is not None
    assert data(await post(make, user, path, enabled=False)) == off
    await end_a_task(make, user)
    assert len(await outbox(make.runtime)) == 1
    on = data(await post(make, user, path, enabled=True, url=HOOK + "/new"))
    assert (on["enabled"], on["disabledReason"], on["disabledTime"], on["url"]) == (True, None, None, HOOK + "/new")
    assert await listed(make, user) == [on]
    await end_a_task(make, user)
    assert len(await outbox(make.runtime)) == 2


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "url"),
        ({"url": ""}, "url"),
        ({"url": "http://10.0.0.1/"}, "url"),
        ({"url": HOOK, "events": []}, "events"),
        ({"url": HOOK, "events": ["task.created"]}, "events"),
        ({"url": HOOK, "enable": False}, "enable"),
        ({"url": "https://example.com/" + "a" * 2048}, "url"),
    ],
)
async def test_what_is_wrong_is_named(make: Maker, body: dict[str, Any], field: str) -> None:
    user = await make.user()
    status, code, message = refusal(await post(make, user, "endpoints", **body))
    assert (status, code) == (400, "INVALID_PARAMETER")
    assert message.startswith(f"参数错误: {field} ")
    assert await listed(make, user) == []


async def test_another_users_endpoint_is_not_found(make: Maker) -> None:
    user, other = await make.user(points=100), await make.user()
    made = await endpoint(make, user)
    await end_a_task(make, user)
    (record,) = (await records(make, user))["records"]
    for id_ in (made["id"], made["id"] + 1000):
        for answer in (
            await post(make, other, f"endpoints/{id_}", enabled=False),
            await post(make, other, f"endpoints/{id_}/rotate"),
            await post(make, other, f"endpoints/{id_}/delete"),
            await post(make, other, "test", endpointId=id_),
        ):
            assert refusal(answer) == MISSING
    for id_ in (record["id"], record["id"] + 1000):
        assert refusal(await post(make, other, f"deliveries/{id_}/replay")) == NO_RECORD
    assert await listed(make, other) == []
    assert (await records(make, other))["total"] == 0
    assert (await records(make, other, f"taskNo={record['taskNo']}"))["total"] == 0
    assert (await listed(make, user))[0]["enabled"]
    for path in ("secret", "endpoints", "deliveries"):
        assert (await make.api.get(f"/user/webhooks/{path}")).status_code == 401


# ------------------------------------------------------------------ automatic disabling


async def test_a_day_of_failures_disables_and_a_success_between_does_not(
    make: Maker, receiver: Receiver, patient: None
) -> None:
    user = await make.user(points=1000)
    made = await endpoint(make, user, receiver.url)
    receiver.always = 500
    await failing(make, user, receiver, 1)
    assert (await listed(make, user))[0]["enabled"]
    await shift(make.runtime, webhook_endpoints, -DAY + 600, "failing_since")
    await failing(make, user, receiver, 2)
    assert (await listed(make, user))[0]["enabled"], "not a day yet"
    await shift(make.runtime, webhook_endpoints, -DAY - 1, "failing_since")
    receiver.always = 200
    await failing(make, user, receiver, 3)
    receiver.always = 500
    await failing(make, user, receiver, 4)
    assert (await listed(make, user))[0]["enabled"], "the success starts a new count"
    await shift(make.runtime, webhook_endpoints, -DAY - 1, "failing_since")
    await failing(make, user, receiver, 5)
    (disabled,) = await listed(make, user)
    assert (disabled["enabled"], disabled["disabledReason"]) == (False, "failing")
    assert disabled["disabledTime"] is not None
    await end_a_task(make, user)
    assert len(await outbox(make.runtime)) == 5, "a disabled endpoint gets no new messages"
    receiver.always = 200
    data(await post(make, user, f"endpoints/{made['id']}", enabled=True))
    await failing(make, user, receiver, 6)
    assert (await listed(make, user))[0]["enabled"]


async def test_an_internal_error_does_not_count_against_an_endpoint(
    make: Maker, receiver: Receiver, short_delays: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(dispatcher, "build_payload", broken)
    monkeypatch.setattr(dispatcher, "FAILING_SECONDS", 0.0)
    user = await make.user(points=100)
    await endpoint(make, user, receiver.url)
    await end_a_task(make, user)
    async with couriers(make.runtime):

        async def tried() -> bool:
            return (await outbox(make.runtime))[0]["attempts"] > 2

        await until("tried thrice", tried)
    assert (await listed(make, user))[0]["enabled"]


async def test_a_410_disables_at_once_and_ends_waiting_deliveries(
    make: Maker, receiver: Receiver, patient: None
) -> None:
    user = await make.user(points=1000)
    made = await endpoint(make, user, receiver.url)
    receiver.script = [500, 410]
    await failing(make, user, receiver, 1)
    await failing(make, user, receiver, 2)
    (disabled,) = await listed(make, user)
    assert (disabled["enabled"], disabled["disabledReason"]) == (False, "gone")
    waiting = (await records(make, user, "status=pending"))["records"][0]
    refused = refusal(await post(make, user, f"deliveries/{waiting['id']}/replay"))
    assert refused == (400, "INVALID_PARAMETER", "参数错误: id 的推送端点已删除或已停用")
    async with couriers(make.runtime):
        async with make.runtime.database.begin() as connection:
            await connection.execute(
                webhook_deliveries.update()
                .where(webhook_deliveries.c.id == waiting["id"])
                .values(next_run_at=webhook_deliveries.c.created_at)
            )
        rows = await ended_deliveries(make.runtime, 2)
    assert sorted(row["outcome"] for row in rows) == ["disabled", "gone"]
    assert len(receiver.received) == 2
    on = data(await post(make, user, f"endpoints/{made['id']}", enabled=True))
    assert on["enabled"]
    async with couriers(make.runtime):
        data(await post(make, user, f"deliveries/{waiting['id']}/replay"))
        await receiver.receives(3)


# ------------------------------------------------------------------ the log


async def test_the_log_shows_each_outcome(make: Maker, receivers: list[Receiver], patient: None) -> None:
    user = await make.user(points=1000)
    good, bad = receivers[:2]
    bad.always = 500
    made = await endpoint(make, user, good.url)
    async with couriers(make.runtime):
        (first,) = await reported_of_a_cancel(make, user, bad)
        second = await end_a_task(make, user)
        await good.receives(2)
        await bad.receives()

        async def payload() -> Any:
            found = await records(make, user)
            return found if all(one["outcome"] for one in found["records"]) else None

        page = await until("recorded", payload)
    assert (page["total"], page["pages"], page["page"], page["size"]) == (3, 1, 1, 10)
    by_whom = {(one["taskNo"], one["endpointId"]): one for one in page["records"]}
    failed = by_whom[first, None]
    assert (failed["status"], failed["outcome"], failed["statusCode"], failed["attempts"]) == (
        "pending",
        "error",
        500,
        1,
    )
    assert (failed["url"], failed["type"], failed["messageId"]) == (bad.url, "task.failed", f"msg_{first}")
    assert failed["nextAttemptTime"] >= failed["createTime"]
    assert failed["deliveredTime"] is None
    for task_no in (first, second):
        reported_well = by_whom[task_no, made["id"]]
        assert (reported_well["status"], reported_well["url"], reported_well["nextAttemptTime"]) == (
            "delivered",
            good.url,
            None,
        )
        assert reported_well["deliveredTime"] is not None
        assert reported_well["durationMs"] >= 0
    assert [one["id"] for one in page["records"]] == sorted((one["id"] for one in page["records"]), reverse=True)
    assert {one["taskNo"] for one in (await records(make, user, f"taskNo={first}"))["records"]} == {first}
    assert (await records(make, user, "status=pending"))["total"] == 1
    assert (await records(make, user, "status=failed&taskNo="))["total"] == 0
    second_page = await records(make, user, "page=2&size=2")
    assert (len(second_page["records"]), second_page["total"], second_page["pages"]) == (1, 3, 2)
    answer = await make.api.get("/user/webhooks/deliveries?size=101", headers=user.headers)
    assert refusal(answer) == (400, "INVALID_PARAMETER", "参数错误: size 不能大于 100")


async def test_a_replay_is_the_same_message_with_new_attempts(
    make: Maker, receiver: Receiver, short_delays: None
) -> None:
    user = await make.user(points=100)
    receiver.always = 500
    await reported_of_a_cancel(make, user, receiver)
    await shift(make.runtime, webhook_deliveries, -1, "give_up_at")
    async with couriers(make.runtime):
        (row,) = await ended_deliveries(make.runtime)
        assert row["status"] == "failed"
        receiver.always, receiver.script = 200, [500, 500]
        again = data(await post(make, user, f"deliveries/{row['id']}/replay"))
        assert (again["id"], again["status"], again["attempts"]) == (row["id"], "pending", 0)
        await receiver.receives(4)
        (row,) = await ended_deliveries(make.runtime)
        assert (row["status"], row["attempts"]) == ("delivered", 3)
        data(await post(make, user, f"deliveries/{row['id']}/replay"))
        await receiver.receives(5)
    assert (
        len({received.id for received in receiver.received})
        == len({received.body for received in receiver.received})
        == 1
    )


async def test_a_replay_of_a_pending_delivery_changes_nothing(make: Maker, receiver: Receiver) -> None:
    user = await make.user(points=100)
    is_open = asyncio.Event()

    async def slow(_: web.Request) -> web.Response:
        await is_open.wait()
        return web.Response()

    receiver.always = slow
    await reported_of_a_cancel(make, user, receiver)
    async with couriers(make.runtime):
        await receiver.receives()
        (row,) = await outbox(make.runtime)
        data(await post(make, user, f"deliveries/{row['id']}/replay"))
        is_open.set()
        (row,) = await ended_deliveries(make.runtime)
    assert (row["status"], row["attempts"], len(receiver.received)) == ("delivered", 1, 1)


async def test_a_deleted_endpoint_leaves_its_log_and_receives_nothing_more(make: Maker, receiver: Receiver) -> None:
    user = await make.user(points=100)
    made = await endpoint(make, user, receiver.url)
    await end_a_task(make, user)
    assert data(await post(make, user, f"endpoints/{made['id']}/delete")) is None
    assert refusal(await post(make, user, f"endpoints/{made['id']}/delete")) == MISSING
    async with couriers(make.runtime):
        (row,) = await ended_deliveries(make.runtime)
    assert (row["status"], row["outcome"], receiver.received) == ("failed", "disabled", [])
    (record,) = (await records(make, user))["records"]
    assert (record["endpointId"], record["url"]) == (made["id"], None)
    assert refusal(await post(make, user, f"deliveries/{record['id']}/replay"))[0] == 400


async def test_the_log_is_deleted_after_a_month_except_pending_deliveries(make: Maker) -> None:
    user = await make.user(points=1000)
    await endpoint(make, user)
    for _ in range(5):
        await end_a_task(make, user)
    assert await purge_old(make.runtime.database) == 0
    await shift(make.runtime, webhook_deliveries, -30 * DAY - 1, "created_at")
    rows = await outbox(make.runtime)
    async with make.runtime.database.begin() as connection:
        await connection.execute(
            webhook_deliveries.update()
            .where(webhook_deliveries.c.id.in_([row["id"] for row in rows[:3]]))
            .values(status="failed", next_run_at=None)
        )
    assert await purge_old(make.runtime.database) == 3
    assert len(await outbox(make.runtime)) == 2
