"""`/user/points/consumption/records`: the caller's own ledger entries, newest first, in pages."""

from typing import Any

import pytest

from app.points import ledger
from app.runtime import Runtime
from tests.support.lots import later, lot
from tests.support.makers import Maker, User
from tests.support.responses import data, refusal

pytestmark = [pytest.mark.anyio, pytest.mark.both_worlds]
RECORDS = "/user/points/consumption/records"
FIELDS = {"id", "kind", "points", "balanceAfter", "taskNo", "remark", "createTime"}


async def page(make: Maker, user: User, **query: Any) -> dict[str, Any]:
    return dict(data(await make.api.get(RECORDS, params=query, headers=user.headers)))


async def test_every_ledger_entry_is_shown(make: Maker, runtime: Runtime, working: None) -> None:
    user = await make.user(points=100)
    good = await make.task_no(user)
    await make.ended(user, good)
    bad = await make.task_no(user, '失败 [[sandbox: {"end": "failed"}]]')
    await make.ended(user, bad)
    await lot(runtime.database, user.id, 5, 1, "lapsing")
    await later(runtime.database, 2)
    await make.task_no(user)
    payload = await page(make, user)
    assert {name: payload[name] for name in ("total", "page", "size", "pages")} == {
        **{"total": 8, "page": 1, "size": 10, "pages": 1},
    }
    assert all(set(record) == FIELDS for record in payload["records"])
    moved = [(one["kind"], one["points"], one["balanceAfter"], one["taskNo"]) for one in reversed(payload["records"])]
    assert moved[:-1] == [
        ("grant", 100, 100, None),
        ("deduct", -30, 70, good),
        ("settle", 0, 70, good),
        ("deduct", -30, 40, bad),
        ("refund", 30, 70, bad),
        ("grant", 5, 75, None),
        ("expire", -5, 70, None),
    ]
    assert moved[-1][:3] == ("deduct", -30, 40)
    remarks = {one["kind"]: one["remark"] for one in payload["records"]}
    assert (remarks["refund"], remarks["expire"]) == (f"任务失败退还 {bad}", "积分到期")
    of_task = (await page(make, user, taskNo=bad))["records"]
    assert [one["kind"] for one in of_task] == ["refund", "deduct"]
    assert [one["points"] for one in (await page(make, user, kind="settle"))["records"]] == [0]
    assert (await page(make, user, kind="settle", taskNo=bad))["total"] == 0
    assert (await page(make, user, kind="", taskNo=""))["total"] == 8


async def test_pages_hold_each_record_once(make: Maker, runtime: Runtime) -> None:
    user = await make.user()
    for number in range(7):
        await ledger.grant(
            runtime.database, user_id=user.id, points=number + 1, ref=f"n{number}", remark=f"第{number}笔"
        )
    pages = [await page(make, user, page=number, size=3) for number in (1, 2, 3, 4)]
    assert [[one["points"] for one in payload["records"]] for payload in pages] == [[7, 6, 5], [4, 3, 2], [1], []]
    assert {(payload["total"], payload["pages"], payload["size"]) for payload in pages} == {(7, 3, 3)}
    assert pages[0]["records"][0]["remark"] == "第6笔"
    ids = [one["id"] for payload in pages for one in payload["records"]]
    assert ids == sorted(set(ids), reverse=True)


async def test_nobody_reads_anothers_records(make: Maker) -> None:
    owner, stranger = await make.user(points=100), await make.user(points=7)
    task_no = await make.task_no(owner)
    assert [one["points"] for one in (await page(make, stranger))["records"]] == [7]
    assert (await page(make, stranger, taskNo=task_no))["records"] == []
    assert (await page(make, await make.user()))["total"] == 0
    assert refusal(await make.api.get(RECORDS))[:2] == (401, "UNAUTHENTICATED")


@pytest.mark.parametrize(
    "query",
    [
        {"page": 0},
        {"page": -1},
        {"size": 0},
        {"size": 101},
        {"page": 1_000_001},
        {"kind": "gift"},
        {"taskNo": "x" * 41},
    ],
)
async def test_invalid_pages_are_refused(make: Maker, query: dict[str, Any]) -> None:
    user = await make.user()
    answer = await make.api.get(RECORDS, params=query, headers=user.headers)
    status, code, message = refusal(answer)
    assert (status, code) == (400, "INVALID_PARAMETER")
    assert next(iter(query)) in message
