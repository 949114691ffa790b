"""`/admin/tasks` over HTTP: what it shows, what it refuses, and that a change is written down with who made it."""

from typing import Any

import httpx
import pytest
from sqlalchemy import select, update

from app.runtime import Runtime
from app.tables import admin_actions, tasks
from tests.support.makers import Maker, User
from tests.support.responses import data, refusal
from tests.support.task_rows import distinct, row_of

pytestmark = [pytest.mark.anyio, pytest.mark.worlds("embedded")]
PATH = "/admin/tasks"


async def change(api: httpx.AsyncClient, admin: User, task_no: str, what: str, **body: Any) -> httpx.Response:
    sent = {"reason": "用户投诉"} | body
    return await api.post(f"{PATH}/{task_no}/{what}", json=sent, headers=admin.headers)


async def move(runtime: Runtime, task_no: str, step: str) -> None:
    async with runtime.database.begin() as connection:
        await connection.execute(update(tasks).where(tasks.c.task_no == task_no).values(step=step, status="queued"))


@pytest.mark.usefixtures("working")
async def test_an_admin_sees_every_step_of_a_task_of_another_user(make: Maker, api: httpx.AsyncClient) -> None:
    user, admin = await make.user(points=30), await make.user(admin=True)
    task_no = await make.task_no(user, distinct('[[sandbox: {"take_seconds": 0}]] 看月亮'))
    await make.ended(user, task_no)
    task = data(await api.get(f"{PATH}/{task_no}", headers=admin.headers))
    assert [line["step"] for line in task["history"]] == ["submitting", "poll", "rehost", "done"]
    assert "accepted as" in task["history"][1]["note"]
    assert all(len(line["time"]) == 19 for line in task["history"])
    assert (task["userId"], task["status"], task["step"]) == (user.id, "completed", "done")
    assert task["upstreamUrls"]
    assert task["resultUrls"] == (await make.task(user, task_no))["resultUrls"]
    assert task["upstreamRequest"]["prompt"] == task["prompt"]
    assert task["actions"] == []
    listed = data(await api.get(PATH, params={"userId": user.id}, headers=admin.headers))
    (record,) = listed["records"]
    assert record == {name: task[name] for name in record}
    assert listed["nextBefore"] is None


async def test_pages_go_on_below_the_last_task(make: Maker, api: httpx.AsyncClient) -> None:
    user, admin = await make.user(points=500), await make.user(admin=True)
    numbers = [await make.task_no(user) for _ in range(5)]
    shown, query = [], {"size": 2}
    while True:
        page = data(await api.get(PATH, params=query, headers=admin.headers))
        shown += [record["taskNo"] for record in page["records"]]
        if page["nextBefore"] is None:
            break
        query["before"] = page["nextBefore"]
    assert shown == sorted(numbers, reverse=True)


async def test_wrong_filters_are_named_and_empty_ones_are_none(make: Maker, api: httpx.AsyncClient) -> None:
    admin = await make.user(admin=True)
    for query, field in (
        ("size=0", "size"),
        ("size=101", "size"),
        ("userId=x", "userId"),
        ("userId=0", "userId"),
        (f"keyId={2**63}", "keyId"),
        ("status=gone", "status"),
        ("step=gone", "step"),
        ("startTime=gestern", "startTime"),
        ("endTime=0000-00-00", "endTime"),
        ("before=%E7%8C%AB", "before"),
        (f"before={'T' * 41}", "before"),
        ("before=TASK-1&userId=1", "before"),
        ("taskNo=%E7%8C%AB", "taskNo"),
        ("endUser=%00", "endUser"),
        (f"modelName={'m' * 129}", "modelName"),
        ("suspectedOrphan=vielleicht", "suspectedOrphan"),
    ):
        status, code, message = refusal(await api.get(f"{PATH}?{query}", headers=admin.headers))
        assert (status, code) == (400, "INVALID_PARAMETER"), query
        assert field in message, query
    empty = "before=&taskNo=&endUser=&status=&step=&modelName=&errorCode=&upstreamTaskId=&startTime=&endTime="
    assert data(await api.get(f"{PATH}?{empty}", headers=admin.headers)) == {"records": [], "nextBefore": None}
    hostile = {"endUser": "' OR 1=1 --", "errorCode": "%", "modelName": "_"}
    assert data(await api.get(PATH, params=hostile, headers=admin.headers))["records"] == []


async def test_ending_a_task_says_what_was_done_and_who_did_it(
    make: Maker, api: httpx.AsyncClient, runtime: Runtime
) -> None:
    user, admin = await make.user(points=30), await make.user(admin=True)
    task_no = await make.task_no(user)
    first = data(await change(api, admin, task_no, "end", ref="ticket-1"))
    assert first["applied"] is True
    assert (first["task"]["status"], first["task"]["errorCode"]) == ("failed", "ENDED_BY_PLATFORM")
    again = data(await change(api, admin, task_no, "end", ref="ticket-1"))
    assert again == first | {"applied": False}
    (action,) = again["task"]["actions"]
    assert (action["adminId"], action["action"], action["reason"]) == (admin.id, "task.end", "用户投诉")
    assert refusal(await change(api, admin, task_no, "end"))[:2] == (409, "ACTION_CONFLICT")
    other = await make.task_no(await make.user(points=30))
    assert refusal(await change(api, admin, other, "end", ref="ticket-1"))[:2] == (409, "ACTION_CONFLICT")
    assert await make.balance(user) == (30, 0)
    async with runtime.database.read() as connection:
        (request_id,) = list(await connection.scalars(select(admin_actions.c.request_id)))
    assert request_id


async def test_a_task_that_may_run_is_ended_with_a_word_and_closed_with_a_note(
    make: Maker, api: httpx.AsyncClient, runtime: Runtime
) -> None:
    user, admin = await make.user(points=30), await make.user(admin=True)
    task_no = await make.task_no(user)
    await move(runtime, task_no, "submitting")
    status, code, message = refusal(await change(api, admin, task_no, "end"))
    assert (status, code) == (409, "ACTION_CONFLICT")
    assert "mayRunUpstream" in message
    assert data(await change(api, admin, task_no, "end", mayRunUpstream=True))["task"]["suspectedOrphan"] is True
    orphans = data(await api.get(f"{PATH}?suspectedOrphan=true", headers=admin.headers))["records"]
    assert [record["taskNo"] for record in orphans] == [task_no]
    closed = data(await change(api, admin, task_no, "close-orphan", reason="SEE2AI 已退款"))
    assert closed["task"]["suspectedOrphan"] is False
    assert "SEE2AI 已退款" in closed["task"]["operatorNote"]
    assert data(await api.get(f"{PATH}?suspectedOrphan=true", headers=admin.headers))["records"] == []
    assert "operatorNote" not in await make.task(user, task_no)


async def test_wrong_bodies_change_nothing(make: Maker, api: httpx.AsyncClient, runtime: Runtime) -> None:
    user, admin = await make.user(points=30), await make.user(admin=True)
    task_no = await make.task_no(user)
    for what, body in (
        ("end", {"reason": ""}),
        ("end", {"reason": None}),
        ("end", {"reason": "x" * 256}),
        ("end", {"reason": "\x00"}),
        ("end", {"reason": 7}),
        ("end", {"ref": ""}),
        ("end", {"ref": " a"}),
        ("end", {"ref": "r" * 129}),
        ("end", {"mayRunUpstream": "true"}),
        ("end", {"mayRunUpstream": 1}),
        ("end", {"unknown": True}),
        ("rehost", {"givesAway": "yes"}),
        ("close-orphan", {"mayRunUpstream": True}),
    ):
        assert refusal(await change(api, admin, task_no, what, **body))[:2] == (400, "INVALID_PARAMETER"), body
    for what in ("end", "rehost", "close-orphan"):
        missing = await api.post(f"{PATH}/{task_no}/{what}", json={}, headers=admin.headers)
        assert refusal(missing) == (400, "INVALID_PARAMETER", "参数错误: reason 不能为空")
        for unknown in ("TASK-1", "%E7%8C%AB", "T" * 200):
            assert refusal(await change(api, admin, unknown, what)) == (404, "NOT_FOUND", "任务不存在")
    assert (await row_of(runtime, task_no))["version"] == 0
    async with runtime.database.read() as connection:
        assert (await connection.execute(select(admin_actions))).all() == []


async def test_a_task_of_an_api_key_is_ended(make: Maker, api: httpx.AsyncClient) -> None:
    """Its budget, if it has one, gets the points back; the audit after the test counts."""
    user, admin = await make.user(points=30), await make.user(admin=True)
    body = {"modelName": "sc_soraimg_text_1x1", "prompt": "猫"}
    task_no = data(await api.post("/user/ai/tasks/submit", json=body, headers=user.key_headers))["taskNo"]
    assert data(await change(api, admin, task_no, "end"))["applied"] is True
    assert await make.balance(user) == (30, 0)


@pytest.mark.usefixtures("working")
async def test_lost_files_are_stored_again(make: Maker, api: httpx.AsyncClient, runtime: Runtime) -> None:
    user, admin = await make.user(points=30), await make.user(admin=True)
    task_no = await make.task_no(user, distinct('[[sandbox: {"take_seconds": 0}]]'))
    (url,) = (await make.ended(user, task_no))["resultUrls"]
    for one in (await row_of(runtime, task_no))["results"]:
        await runtime.store.delete(one["key"])
    assert (await api.get(url)).status_code == 404
    stored = data(await change(api, admin, task_no, "rehost", ref="lost-1"))
    assert (stored["applied"], stored["resultUrls"]) == (True, [url])
    assert (await api.get(url)).status_code == 200
    assert data(await change(api, admin, task_no, "rehost", ref="lost-1"))["resultUrls"] == [url]
