"""The end of a task writes one outbox row for each receiver, in the transaction that ends the task, or none."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from sqlalchemy import event, select

from app.engine.claim import TaskFilter, claim_due
from app.engine.finish import finish_task
from app.engine.transitions import Complete, Fail
from app.errors import TaskFailure
from app.points import ledger
from app.points.audit.checks import audit
from app.runtime import Runtime
from app.tables import webhook_deliveries
from app.webhooks.outbox import claim, find_due, record
from app.webhooks.sender import Outcome
from tests.support.makers import Maker
from tests.support.responses import data, refusal
from tests.support.webhook_calls import HOOK, cancel, endpoint
from tests.support.webhook_receivers import outbox, shift

pytestmark = [pytest.mark.anyio, pytest.mark.both_worlds]


async def claimed(runtime: Runtime) -> Any:
    (task,) = await claim_due(runtime.database, TaskFilter(("submit",)), 1, 30)
    return task


async def test_each_receiver_has_one_row_for_an_end(make: Maker, runtime: Runtime) -> None:
    user, other = await make.user(points=100), await make.user(points=100)
    both = await endpoint(make, user, "HTTPS://Receiver.Example.COM?x=//y")
    only = await endpoint(make, user, events=["task.failed"])
    await endpoint(make, user, events=["task.completed"])
    off = await endpoint(make, user)
    data(await make.api.post(f"/user/webhooks/endpoints/{off['id']}", json={"enabled": False}, headers=user.headers))
    await endpoint(make, other)
    task_no = await make.task_no(user, callbackUrl="https://回调.example.com:443/a/b?c=http://d/")
    assert await outbox(runtime) == []
    data(await cancel(make, user, task_no))
    rows = await outbox(runtime)
    assert {(row["endpoint_id"], row["host"]) for row in rows} == {
        (0, "xn--zbss05j.example.com"),
        (both["id"], "receiver.example.com"),
        (only["id"], "receiver.example.com"),
    }
    for row in rows:
        assert (row["user_id"], row["status"], row["attempts"], row["lease_until"]) == (user.id, "pending", 0, None)
        assert row["next_run_at"] <= row["now"]
        assert 86_000 < (row["give_up_at"] - row["created_at"]).total_seconds() <= 86_400


@pytest.mark.parametrize("end", [Complete([{"key": "results/x.png"}]), Fail(TaskFailure.TIMED_OUT)])
async def test_two_workers_that_end_the_same_task_write_it_once(make: Maker, runtime: Runtime, end: Any) -> None:
    user = await make.user(points=100)
    await endpoint(make, user)
    task_no = await make.task_no(user, callbackUrl=HOOK)
    task = await claimed(runtime)
    ends = [finish_task(runtime, task, end, []) for _ in range(5)] + [cancel(make, user, task_no)]
    ended = await asyncio.gather(*ends)
    assert (
        Counter(ended[:5])[True] + (ended[5].status_code == 200 and ended[5].json()["data"]["errorCode"] == "CANCELLED")
        == 1
    )
    assert len(await outbox(runtime)) == 2


async def test_twenty_cancels_at_once_write_it_once(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=100)
    await endpoint(make, user)
    task_no = await make.task_no(user, callbackUrl=HOOK)
    await asyncio.gather(*[cancel(make, user, task_no) for _ in range(20)])
    assert len(await outbox(runtime)) == 2


@pytest.mark.parametrize("how", ["finish", "cancel"])
async def test_an_end_that_is_rolled_back_is_not_reported(
    make: Maker, runtime: Runtime, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    user = await make.user(points=100)
    await endpoint(make, user)
    task_no = await make.task_no(user, callbackUrl=HOOK)
    task = await claimed(runtime)
    real = ledger.refund

    async def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("the books do not agree")

    monkeypatch.setattr(ledger, "refund", broken)
    if how == "finish":
        with pytest.raises(RuntimeError):
            await finish_task(runtime, task, Fail(TaskFailure.TIMED_OUT), [])
    else:
        assert (await cancel(make, user, task_no)).status_code == 500
    assert await outbox(runtime) == []
    assert (await make.task(user, task_no))["status"] == "queued"
    monkeypatch.setattr(ledger, "refund", real)
    assert await finish_task(runtime, task, Fail(TaskFailure.TIMED_OUT), [])
    assert len(await outbox(runtime)) == 2


async def test_without_receivers_it_needs_one_statement_at_the_end_and_none_at_the_submit(
    make: Maker, runtime: Runtime
) -> None:
    user = await make.user(points=100)
    payload: list[str] = []

    def note(*arguments: Any) -> None:
        payload.append(arguments[2])

    engines = [runtime.database.writers.sync_engine, runtime.database.readers.sync_engine]
    for engine in engines:
        event.listen(engine, "before_cursor_execute", note)
    task_no = await make.task_no(user)
    assert not [one for one in payload if "webhook" in one]
    data(await cancel(make, user, task_no))
    assert len([one for one in payload if "webhook" in one]) == 1
    for engine in engines:
        event.remove(engine, "before_cursor_execute", note)
    assert await outbox(runtime) == []


async def test_a_worker_that_was_frozen_past_its_lease_writes_nothing(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=100)
    data(await cancel(make, user, await make.task_no(user, callbackUrl=HOOK)))
    due = await find_due(runtime.database, 10, excluded_hosts=[], excluded_users=[])
    (frozen,) = await claim(runtime.database, due, 30)
    assert await claim(runtime.database, due, 30) == [], "another worker has the task"
    assert await find_due(runtime.database, 10, excluded_hosts=[], excluded_users=[]) == []
    await shift(runtime, webhook_deliveries, -1, "lease_until", "next_run_at")
    for hosts, users in ((["receiver.example.com"], []), ([], [user.id])):
        assert await find_due(runtime.database, 10, excluded_hosts=hosts, excluded_users=users) == []
    (other,) = await claim(
        runtime.database, await find_due(runtime.database, 10, excluded_hosts=["x"], excluded_users=[0]), 30
    )
    assert (other.version, other.attempts) == (frozen.version + 1, 2)
    fair = {"failing_seconds": 1.0, "counts_against_endpoint": True}
    await record(runtime.database, frozen, Outcome("error", 500), retry_seconds=5.0, **fair)
    (row,) = await outbox(runtime)
    assert (row["outcome"], row["version"], row["attempts"]) == (None, other.version, 2)
    await record(runtime.database, other, Outcome("delivered", 200), retry_seconds=None, **fair)
    await record(runtime.database, frozen, Outcome("error", 500), retry_seconds=None, **fair)
    assert [(row["status"], row["outcome"]) for row in await outbox(runtime)] == [("delivered", "delivered")]


async def test_the_audit_finds_an_end_without_its_outbox_row(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=100)
    task_no = await make.task_no(user, callbackUrl=HOOK)
    await make.task_no(user, callbackUrl=HOOK)  # is still running
    data(await cancel(make, user, task_no))
    data(await cancel(make, user, await make.task_no(user)))
    assert await audit(runtime.database) == []
    async with runtime.database.begin() as connection:
        kept = (await connection.execute(select(webhook_deliveries))).one()
        await connection.execute(webhook_deliveries.delete())
    (violation,) = await audit(runtime.database)
    assert (violation.invariant, violation.row["task_no"]) == ("I16", task_no)
    async with runtime.database.begin() as connection:
        await connection.execute(webhook_deliveries.insert().values(**kept._mapping))


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://127.0.0.1/hook", "不能指向内网地址"),
        ("http://169.254.169.254/latest", "不能指向内网地址"),
        ("http://2130706433/", "不能指向内网地址"),
        ("https://user:word@example.com/", "不能包含用户名或密码"),
        ("https://example.com:8443/", "端口只能是 80 或 443"),
        ("ftp://example.com/", "必须是 http 或 https 地址"),
        ("https://example.com/" + "a" * 2048, "不能超过 2048 个字符"),
        ("https://example.com/\x00", "含有空格或非法字符"),
        (7, "须为字符串"),
    ],
)
async def test_an_invalid_callback_url_is_refused_without_a_deduction(make: Maker, url: Any, problem: str) -> None:
    user = await make.user(points=100)
    refused = (400, "INVALID_PARAMETER", f"参数错误: callbackUrl {problem}")
    assert refusal(await make.submit(user, callbackUrl=url)) == refused
    body = {"modelName": "sc_soraimg_text_1x1", "prompt": "柴犬", "callbackUrl": url}
    assert refusal(await make.api.post("/user/ai/tasks/quote", json=body, headers=user.headers)) == refused
    assert await make.balance(user) == (100, 0)


async def test_a_callback_may_be_empty_and_is_compared_in_a_repeat(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=100)
    for none in ({}, {"callbackUrl": None}, {"callbackUrl": ""}):
        data(await cancel(make, user, await make.task_no(user, **none)))
    assert await outbox(runtime) == []
    body = {"modelName": "sc_soraimg_text_1x1", "prompt": "柴犬", "callbackUrl": HOOK}
    headers = user.headers | {"Idempotency-Key": "k"}
    first = data(await make.api.post("/user/ai/tasks/submit", json=body, headers=headers))
    again = await make.api.post("/user/ai/tasks/submit", json=body, headers=headers)
    assert (data(again)["taskNo"], again.headers["idempotency-replayed"]) == (first["taskNo"], "true")
    for other in (HOOK + "2", None):
        conflict = await make.api.post("/user/ai/tasks/submit", json=body | {"callbackUrl": other}, headers=headers)
        assert refusal(conflict)[:2] == (409, "IDEMPOTENCY_CONFLICT")
