"""`/admin/points`: the ledger of all users, redeem codes, and the audit. test_points_grants.py has the top-ups."""

import csv
import io
from typing import Any

import httpx
import pytest

from app.jobs.state import acquire_job, release_job
from tests.support.makers import Maker, User
from tests.support.responses import data, refusal

pytestmark = pytest.mark.anyio
POINTS = "/admin/points"
CODES = {"count": 2, "points": 50, "batch": "spring"}


async def post(make: Maker, admin: User, path: str, **body: Any) -> httpx.Response:
    return await make.api.post(POINTS + path, json=body, headers=admin.headers)


async def read(make: Maker, admin: User, path: str, **query: Any) -> Any:
    return data(await make.api.get(POINTS + path, params=query, headers=admin.headers))


async def acts(make: Maker, admin: User) -> list[dict[str, Any]]:
    return list(data(await make.api.get("/admin/actions", headers=admin.headers))["records"])


async def test_a_top_up_leaves_a_row(make: Maker) -> None:
    admin, user = await make.user(admin=True), await make.user()
    body = {
        "userId": user.id,
        "points": 100,
        "ref": "order-1",
        "remark": "充值",
        "expires": "2090-01-01T00:00:00+08:00",
    }
    for applied in (True, False):
        assert data(await post(make, admin, "/grants", **body)) == {
            "userId": user.id,
            "balance": 100,
            "applied": applied,
        }
    (act,) = await acts(make, admin)
    assert (act["adminId"], act["action"], act["target"], act["ref"]) == (
        admin.id,
        "points.grant",
        str(user.id),
        "order-1",
    )
    assert act["after"] == {"points": 100, "expires": "2089-12-31T16:00:00+00:00", "balance": 100}


async def test_the_ledger_is_searched(make: Maker) -> None:
    admin, user = await make.user(admin=True), await make.user(points=100, username="alice")
    await make.user(points=5)
    task_no = await make.task_no(user)
    page = await read(make, admin, "/ledger")
    assert [one["kind"] for one in page["records"]] == ["deduct", "grant", "grant"]
    (deduct,) = (await read(make, admin, "/ledger", taskNo=task_no))["records"]
    assert {name: value for name, value in deduct.items() if name not in {"id", "createTime"}} == {
        "userId": user.id,
        "username": "alice",
        "kind": "deduct",
        "points": -30,
        "held": 30,
        "balanceAfter": 70,
        "taskNo": task_no,
        "ref": None,
        "remark": deduct["remark"],
    }
    assert (await read(make, admin, "/ledger", kind="grant", userId=user.id))["total"] == 1
    assert (await read(make, admin, "/ledger", kind="", ref="", startTime=""))["total"] == 3
    assert (await read(make, admin, "/ledger", ref="none"))["total"] == 0
    assert (await read(make, admin, "/ledger", endTime="2020-01-01"))["total"] == 0


async def test_a_batch_like_a_formula_is_a_text_in_the_export(make: Maker) -> None:
    admin = await make.user(admin=True)
    data(await post(make, admin, "/codes", count=1, points=5, batch="=1+1"))
    export = await make.api.get(f"{POINTS}/codes/export", params={"batch": "=1+1"}, headers=admin.headers)
    (row,) = csv.DictReader(io.StringIO(export.content.decode("utf-8-sig")))
    assert row["batch"] == "'=1+1"


@pytest.mark.parametrize(
    "query", [{"kind": "x"}, {"userId": 0}, {"size": 101}, {"startTime": "x"}, {"taskNo": "x" * 41}, {"ref": "x" * 129}]
)
async def test_a_wrong_search_is_refused(make: Maker, query: dict[str, Any]) -> None:
    admin = await make.user(admin=True)
    answer = await make.api.get(f"{POINTS}/ledger", params=query, headers=admin.headers)
    assert refusal(answer)[:2] == (400, "INVALID_PARAMETER")


async def test_codes_from_their_creation_to_their_end(make: Maker) -> None:
    admin, user = await make.user(admin=True), await make.user()
    made = data(await post(make, admin, "/codes", **CODES, lotDays=30, ref="c-1"))
    assert (made["batch"], made["count"], len(made["codes"]), made["applied"]) == ("spring", 2, 2, True)
    again = data(await post(make, admin, "/codes", **CODES, lotDays=30, ref="c-1"))
    assert (again["codes"], again["applied"]) == ([], False)
    redeemed = await make.api.post("/user/points/redeem", json={"code": made["codes"][0]}, headers=user.headers)
    assert data(redeemed)["points"] == 50
    voided = data(await post(make, admin, "/codes/void", batch="spring", reason="泄露"))
    assert voided == {"batch": "spring", "voided": 1, "applied": True}
    (batch,) = (await read(make, admin, "/codes/batches"))["records"]
    assert (batch["total"], batch["redeemed"], batch["void"], batch["unused"]) == (2, 1, 1, 0)
    export = await make.api.get(f"{POINTS}/codes/export", params={"batch": "spring"}, headers=admin.headers)
    assert (export.status_code, export.headers["content-type"]) == (200, "text/csv; charset=utf-8")
    rows = list(csv.DictReader(io.StringIO(export.content.decode("utf-8-sig"))))
    assert sorted((row["status"], row["redeemedBy"]) for row in rows) == [("redeemed", str(user.id)), ("void", "")]
    assert {row["prefix"] for row in rows} == {code[:5] for code in made["codes"]}
    assert not any(code in export.text for code in made["codes"])
    assert [act["action"] for act in await acts(make, admin)] == ["codes.void", "codes.create"]
    shown = str(await acts(make, admin))
    assert not any(code in shown for code in made["codes"])


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/codes", CODES | {"count": 0}, "count"),
        ("/codes", CODES | {"count": 10_001}, "count"),
        ("/codes", CODES | {"points": 0}, "points"),
        ("/codes", CODES | {"points": "5"}, "points"),
        ("/codes", CODES | {"batch": ""}, "batch"),
        ("/codes", CODES | {"batch": " x"}, "batch"),
        ("/codes", CODES | {"batch": "x" * 65}, "batch"),
        ("/codes", CODES | {"batch": "\x00"}, "batch"),
        ("/codes", CODES | {"expires": "2020-01-01"}, "expires"),
        ("/codes", CODES | {"expires": "soon"}, "expires"),
        ("/codes", CODES | {"lotDays": 0}, "lotDays"),
        ("/codes", CODES | {"lotDays": 3651}, "lotDays"),
        ("/codes", CODES | {"ref": ""}, "ref"),
        ("/codes", CODES | {"code": "x"}, "code"),
        ("/codes/void", {}, "batch"),
        ("/codes/void", {"batch": "spring", "all": True}, "all"),
    ],
)
@pytest.mark.worlds("embedded")
async def test_a_wrong_body_makes_no_codes(make: Maker, path: str, body: dict[str, Any], field: str) -> None:
    admin = await make.user(admin=True)
    status, code, message = refusal(await post(make, admin, path, **body))
    assert (status, code) == (400, "INVALID_PARAMETER")
    assert field in message
    assert (await read(make, admin, "/codes/batches"))["total"] == 0
    assert await acts(make, admin) == []


async def test_an_unknown_batch_is_not_found(make: Maker) -> None:
    admin = await make.user(admin=True)
    export = await make.api.get(f"{POINTS}/codes/export", params={"batch": "none"}, headers=admin.headers)
    for answer in (export, await post(make, admin, "/codes/void", batch="none")):
        assert refusal(answer) == (404, "NOT_FOUND", "批次不存在")


async def test_the_audit_is_read_and_run(make: Maker) -> None:
    admin = await make.user(admin=True, points=5)
    assert await read(make, admin, "/audit") == {"completedTime": None, "violations": None, "running": False}
    assert data(await post(make, admin, "/audit")) == {"ok": True, "violations": []}
    state = await read(make, admin, "/audit")
    assert (state["violations"], state["running"], state["completedTime"] is None) == (0, False, False)
    version = await acquire_job(make.runtime.database, "audit", 60, only_due=False)
    assert version is not None
    assert (await read(make, admin, "/audit"))["running"]
    assert refusal(await post(make, admin, "/audit")) == (409, "ACTION_CONFLICT", "审计正在进行，请稍后查看结果")
    await release_job(make.runtime.database, "audit", version, 0.0)
