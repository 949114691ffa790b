"""`/admin/users`: what each route answers, and what a wrong request gets."""

import asyncio
from typing import Any

import httpx
import pytest

from app.accounts.api_keys import create_key, revoke_named
from app.points import ledger
from app.runtime import Runtime
from tests.support.lots import in_hours
from tests.support.makers import Maker, User
from tests.support.responses import BALANCE, data, refusal

pytestmark = pytest.mark.anyio
USERS = "/admin/users"


async def post(make: Maker, admin: User, path: str, **body: Any) -> httpx.Response:
    return await make.api.post(USERS + path, json=body, headers=admin.headers)


async def read(make: Maker, admin: User, path: str = "", **query: Any) -> Any:
    return data(await make.api.get(USERS + path, params=query, headers=admin.headers))


async def acts(make: Maker, admin: User, **query: Any) -> list[dict[str, Any]]:
    answer = await make.api.get("/admin/actions", params={"size": 100} | query, headers=admin.headers)
    return list(data(answer)["records"])


async def test_a_user_is_shown_without_secrets(make: Maker, runtime: Runtime) -> None:
    admin, user = await make.user(admin=True, username="root"), await make.user(points=100, username="alice")
    await ledger.grant(runtime.database, user_id=user.id, points=20, ref="soon", expires=in_hours(24))
    await create_key(runtime.database, user.id, name="shop")
    await revoke_named(runtime.database, user.id, "shop")
    task_no = await make.task_no(user)
    await make.task_no(user)
    data(await make.api.post(f"/user/ai/tasks/{task_no}/cancel", headers=user.headers))
    answer = await make.api.get(f"{USERS}/{user.id}", headers=admin.headers)
    shown = data(answer)
    assert {name: shown[name] for name in ("userId", "username", "role", "status", "balance", "held", "granted")} == {
        "userId": user.id,
        "username": "alice",
        "role": "user",
        "status": "active",
        "balance": 90,
        "held": 30,
        "granted": 120,
    }
    assert shown["tasks"] == {"running": 1, "completed": 0, "failed": 1}
    assert (shown["hasPassword"], shown["hasSecondFactor"], shown["keyCount"]) == (False, False, 2)
    newest, oldest = shown["keys"]
    assert (newest["name"], newest["revokedTime"] is None, oldest["revokedTime"]) == ("shop", False, None)
    assert user.api_key.startswith(oldest["prefix"])
    assert user.api_key not in answer.text
    assert "digest" not in answer.text


async def test_a_user_without_points_is_shown(make: Maker) -> None:
    admin, user = await make.user(admin=True), await make.user()
    shown = await read(make, admin, f"/{user.id}")
    assert (shown["username"], shown["balance"], shown["expireTime"], shown["tasks"]["running"]) == (None, 0, None, 0)


async def test_the_list_is_filtered_and_paged(make: Maker) -> None:
    admin, alice = await make.user(admin=True, username="root"), await make.user(points=5, username="alice")
    page = await read(make, admin, size=1)
    assert (page["total"], page["pages"], page["records"][0]["userId"]) == (2, 2, alice.id)
    assert (page["records"][0]["balance"], page["records"][0]["username"]) == (5, "alice")
    for query in ({"username": "al"}, {"role": "user"}, {"userId": alice.id}, {"status": "active", "role": "user"}):
        assert [one["userId"] for one in (await read(make, admin, **query))["records"]] == [alice.id]
    assert (await read(make, admin, status="banned"))["records"] == []
    assert (await read(make, admin, username="", status="", role=""))["total"] == 2


@pytest.mark.parametrize(
    "query", [{"page": 0}, {"size": 101}, {"status": "x"}, {"role": "root"}, {"userId": "x"}, {"username": "x" * 65}]
)
async def test_a_wrong_query_is_refused(make: Maker, query: dict[str, Any]) -> None:
    admin = await make.user(admin=True)
    answer = await make.api.get(USERS, params=query, headers=admin.headers)
    assert refusal(answer)[:2] == (400, "INVALID_PARAMETER")


async def test_a_creation_and_its_repetition(make: Maker) -> None:
    admin = await make.user(admin=True)
    body = {"username": "李雷", "points": 50, "reason": "试用", "ref": "new-1"}
    made = data(await post(make, admin, "", **body))
    assert data(await post(make, admin, "", **body)) == {"userId": made["userId"], "applied": False}
    assert refusal(await post(make, admin, "", **(body | {"points": 60})))[:2] == (409, "ACTION_CONFLICT")
    assert refusal(await post(make, admin, "", username="李雷"))[:2] == (409, "USERNAME_TAKEN")
    assert (await read(make, admin, f"/{made['userId']}"))["balance"] == 50
    (act,) = await acts(make, admin)
    assert (act["adminId"], act["action"], act["target"]) == (admin.id, "user.create", str(made["userId"]))
    assert (act["reason"], act["ref"]) == ("试用", "new-1")


async def test_a_ban_refuses_tokens_keys_and_tickets_at_once(make: Maker) -> None:
    admin, user = await make.user(admin=True), await make.user(points=5)
    ticket = data(await make.api.post("/user/ai/tasks/ws-ticket", headers=user.headers))["ticket"]
    banned = data(await post(make, admin, f"/{user.id}/ban", reason="滥用"))
    assert banned == {"userId": user.id, "status": "banned", "role": None, "applied": True}
    for headers in (user.headers, user.key_headers):
        assert refusal(await make.api.get(BALANCE, headers=headers))[0] == 401
    assert refusal(await make.api.get("/user/ai/tasks/events", params={"ticket": ticket}))[0] == 401
    data(await post(make, admin, f"/{user.id}/unban"))
    assert refusal(await make.api.get(BALANCE, headers=user.headers))[0] == 401
    assert data(await make.api.get(BALANCE, headers=user.key_headers))["balance"] == 5
    assert [act["action"] for act in await acts(make, admin)] == ["user.unban", "user.ban"]


async def test_a_row_names_its_request(make: Maker) -> None:
    admin, user = await make.user(admin=True), await make.user()
    headers = admin.headers | {"X-Request-Id": "my-request"}
    data(await make.api.post(f"{USERS}/{user.id}/ban", json={}, headers=headers))
    assert [act["requestId"] for act in await acts(make, admin)] == ["my-request"]


async def test_two_admins_who_ban_each_other_leave_one(make: Maker) -> None:
    one, two = await make.user(admin=True), await make.user(admin=True)
    answers = await asyncio.gather(post(make, one, f"/{two.id}/ban"), post(make, two, f"/{one.id}/ban"))
    assert [answer.status_code for answer in answers].count(200) == 1
    left = one if answers[0].status_code == 200 else two
    assert (await read(make, left, role="admin", status="active"))["total"] == 1


async def test_an_admin_keeps_their_own_role(make: Maker) -> None:
    admin, _other = await make.user(admin=True), await make.user(admin=True)
    for path, body in ((f"/{admin.id}/ban", {}), (f"/{admin.id}/role", {"role": "user"})):
        assert refusal(await post(make, admin, path, **body))[:2] == (409, "ACTION_CONFLICT")


async def test_a_role_counts_at_the_next_request(make: Maker) -> None:
    admin, user = await make.user(admin=True), await make.user()
    assert refusal(await make.api.get(USERS, headers=user.headers))[0] == 403
    data(await post(make, admin, f"/{user.id}/role", role="admin"))
    assert (await read(make, user))["total"] == 2
    data(await post(make, admin, f"/{user.id}/role", role="user"))
    assert refusal(await make.api.get(USERS, headers=user.headers))[0] == 403


async def test_a_correction_and_its_repetition(make: Maker) -> None:
    admin, user = await make.user(admin=True), await make.user(points=100)
    body = {"points": -30, "reason": "重复充值", "ref": "fix-1"}
    expected = {"userId": user.id, "points": -30, "balance": 70}
    for applied in (True, False):
        assert data(await post(make, admin, f"/{user.id}/adjust", **body)) == expected | {"applied": applied}
    assert refusal(await post(make, admin, f"/{user.id}/adjust", **(body | {"points": -31})))[0] == 409
    too_much = body | {"points": -71, "ref": "fix-2"}
    assert refusal(await post(make, admin, f"/{user.id}/adjust", **too_much)) == (
        402,
        "INSUFFICIENT_POINTS",
        "积分不足，当前余额 70，本次需要 71",
    )
    records = (await read(make, admin, f"/{user.id}/records"))["records"]
    assert {name: records[0][name] for name in ("kind", "points", "ref", "remark")} == {
        "kind": "adjust",
        "points": -30,
        "ref": "fix-1",
        "remark": "重复充值",
    }
    seen = data(await make.api.get("/user/points/consumption/records", headers=user.headers))["records"][0]
    assert (seen["kind"], seen["points"], seen["balanceAfter"]) == ("adjust", -30, 70)


async def test_a_reference_of_a_top_up_corrects_nothing(make: Maker) -> None:
    admin, user = await make.user(admin=True), await make.user()
    body = {"userId": user.id, "points": 5, "ref": "order-1"}
    data(await make.api.post("/admin/points/grants", json=body, headers=admin.headers))
    answer = await post(make, admin, f"/{user.id}/adjust", points=5, reason="x", ref="order-1")
    assert refusal(answer)[:2] == (409, "ACTION_CONFLICT")
    assert await make.balance(user) == (5, 0)


async def test_the_ledger_and_the_tasks_of_a_user(make: Maker) -> None:
    admin, user, other = await make.user(admin=True), await make.user(points=100), await make.user(points=100)
    task_no = await make.task_no(user)
    await make.task_no(other)
    records = await read(make, admin, f"/{user.id}/records")
    assert [(one["userId"], one["kind"], one["taskNo"]) for one in records["records"]] == [
        (user.id, "deduct", task_no),
        (user.id, "grant", None),
    ]
    assert (await read(make, admin, f"/{user.id}/records", kind="grant"))["total"] == 1
    assert [task["taskNo"] for task in (await read(make, admin, f"/{user.id}/tasks"))["records"]] == [task_no]
    assert (await read(make, admin, f"/{user.id}/tasks", status="completed"))["total"] == 0


@pytest.mark.parametrize("path", ["", "/records", "/tasks"])
async def test_an_unknown_user_has_nothing(make: Maker, path: str) -> None:
    admin = await make.user(admin=True)
    answer = await make.api.get(f"{USERS}/424242{path}", headers=admin.headers)
    assert refusal(answer) == (404, "NOT_FOUND", "用户不存在")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/ban", {}),
        ("/unban", {}),
        ("/role", {"role": "admin"}),
        ("/adjust", {"points": 1, "reason": "x", "ref": "r"}),
    ],
)
async def test_an_unknown_user_cannot_be_changed(make: Maker, path: str, body: dict[str, Any]) -> None:
    admin = await make.user(admin=True)
    assert refusal(await post(make, admin, f"/424242{path}", **body)) == (404, "NOT_FOUND", "用户不存在")
    assert await acts(make, admin) == []


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("", {"username": ""}, "username"),
        ("", {"username": "x" * 65}, "username"),
        ("", {"username": "a\x00"}, "username"),
        ("", {"userId": "5"}, "userId"),
        ("", {"userId": 2**63}, "userId"),
        ("", {"role": "root"}, "role"),
        ("", {"points": -1}, "points"),
        ("", {"points": 1.5}, "points"),
        ("", {"passwort": "x"}, "passwort"),
        ("/7/ban", {"reason": "x" * 256}, "reason"),
        ("/7/ban", {"ref": ""}, "ref"),
        ("/7/ban", {"ref": " x"}, "ref"),
        ("/7/ban", {"ref": "x" * 129}, "ref"),
        ("/7/ban", {"ref": 5}, "ref"),
        ("/7/ban", {"until": "x"}, "until"),
        ("/7/role", {}, "role"),
        ("/7/role", {"role": None}, "role"),
        ("/7/adjust", {"points": 0, "reason": "x", "ref": "r"}, "points"),
        ("/7/adjust", {"points": "5", "reason": "x", "ref": "r"}, "points"),
        ("/7/adjust", {"points": True, "reason": "x", "ref": "r"}, "points"),
        ("/7/adjust", {"points": 2**53 + 1, "reason": "x", "ref": "r"}, "points"),
        ("/7/adjust", {"points": 5, "reason": "", "ref": "r"}, "reason"),
        ("/7/adjust", {"points": 5, "reason": " ", "ref": "r"}, "reason"),
        ("/7/adjust", {"points": 5, "ref": "r"}, "reason"),
        ("/7/adjust", {"points": 5, "reason": "x"}, "ref"),
        ("/7/adjust", {"points": 5, "reason": "x", "ref": "code:1"}, "ref"),
        ("/x/ban", {}, "user_id"),
        ("/0/ban", {}, "user_id"),
    ],
)
async def test_a_wrong_body_changes_nothing(make: Maker, path: str, body: dict[str, Any], field: str) -> None:
    admin, user = await make.user(admin=True), await make.user(user_id=7, points=10)
    status, code, message = refusal(await post(make, admin, path, **body))
    assert (status, code) == (400, "INVALID_PARAMETER")
    assert field in message
    assert await make.balance(user) == (10, 0)
    assert await acts(make, admin) == []
    assert (await read(make, admin))["total"] == 2


async def test_a_user_reaches_no_route(make: Maker) -> None:
    admin, user = await make.user(admin=True), await make.user(points=5)
    answer = await make.api.post(
        f"{USERS}/{user.id}/adjust", json={"points": 5, "reason": "x", "ref": "r"}, headers=user.headers
    )
    assert refusal(answer)[:2] == (403, "FORBIDDEN")
    assert await acts(make, admin) == []
