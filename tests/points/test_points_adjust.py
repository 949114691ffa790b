"""Corrections of points: more or fewer, once for each reference, never below zero, and the books stay clean."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import select

from app.database import UniqueViolation
from app.errors import InsufficientPoints, InvalidParameter
from app.points import ledger
from app.points.audit.checks import audit
from app.points.expiry import expire_lots
from app.runtime import Runtime
from app.tables import points_accounts, points_ledger
from tests.support.lots import later, lot, remaining
from tests.support.makers import Maker

pytestmark = [pytest.mark.anyio, pytest.mark.both_worlds]
USER = 5


async def adjust(runtime: Runtime, points: int, ref: str = "fix-1", user_id: int = USER, remark: str = "更正") -> None:
    async with runtime.database.begin() as connection:
        await ledger.adjust(connection, user_id=user_id, points=points, ref=ref, remark=remark)


async def grant(runtime: Runtime, points: int, ref: str = "g-1") -> None:
    assert (await ledger.grant(runtime.database, user_id=USER, points=points, ref=ref))[0]


async def account(runtime: Runtime) -> tuple[int, int, int, int, int]:
    """available, held, granted, spent, expired"""
    async with runtime.database.read() as connection:
        row = (await connection.execute(select(points_accounts).where(points_accounts.c.user_id == USER))).one_or_none()
    return (0, 0, 0, 0, 0) if row is None else (row.available, row.held, row.granted, row.spent, row.expired)


async def entries(runtime: Runtime) -> list[tuple[str, int, int]]:
    async with runtime.database.read() as connection:
        rows = await connection.execute(select(points_ledger).order_by(points_ledger.c.seq))
        return [(row.kind, row.points, row.balance_after) for row in rows]


async def test_more_points(runtime: Runtime) -> None:
    await adjust(runtime, 50)
    assert await account(runtime) == (50, 0, 50, 0, 0)
    assert await entries(runtime) == [("adjust", 50, 50)]


async def test_fewer_points(runtime: Runtime) -> None:
    await grant(runtime, 100)
    await adjust(runtime, -30)
    assert await account(runtime) == (70, 0, 70, 0, 0)
    await adjust(runtime, -70, "fix-2")
    assert await account(runtime) == (0, 0, 0, 0, 0)
    assert await entries(runtime) == [("grant", 100, 100), ("adjust", -30, 70), ("adjust", -70, 0)]


@pytest.mark.parametrize("granted", [0, 29])
async def test_never_below_zero(runtime: Runtime, granted: int) -> None:
    if granted:
        await grant(runtime, granted)
    with pytest.raises(InsufficientPoints, match=f"当前余额 {granted}，本次需要 30"):
        await adjust(runtime, -30)
    assert (await account(runtime))[0] == granted


async def test_points_of_running_tasks_are_not_taken(runtime: Runtime, make: Maker) -> None:
    user = await make.user(points=50)
    await make.task_no(user)
    with pytest.raises(InsufficientPoints):
        await adjust(runtime, -21, user_id=user.id)
    await adjust(runtime, -20, user_id=user.id)
    assert await make.balance(user) == (0, 30)


@pytest.mark.parametrize("points", [5, -5])
async def test_a_known_reference_changes_nothing(runtime: Runtime, points: int) -> None:
    await grant(runtime, 100)
    for ref in ("g-1", "fix-1"):
        if ref == "fix-1":
            await adjust(runtime, points)
        before = await account(runtime)
        with pytest.raises(UniqueViolation):
            await adjust(runtime, points, ref)
        assert await account(runtime) == before


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"points": 0}, "points"),
        ({"points": 2**53 + 1}, "points"),
        ({"points": -(2**53) - 1}, "points"),
        ({"ref": ""}, "ref"),
        ({"ref": " x"}, "ref"),
        ({"ref": "code:1"}, "ref"),
        ({"ref": "expire:1"}, "ref"),
        ({"remark": "x" * 256}, "remark"),
    ],
)
@pytest.mark.worlds("embedded")
async def test_invalid_corrections_change_nothing(runtime: Runtime, changes: dict[str, Any], field: str) -> None:
    await grant(runtime, 100)
    for points in (5, -5):
        with pytest.raises(InvalidParameter, match=field):
            await adjust(runtime, **({"points": points} | changes))
    assert await account(runtime) == (100, 0, 100, 0, 0)


async def test_an_account_has_a_limit(runtime: Runtime) -> None:
    await grant(runtime, ledger.MAX_POINTS)
    with pytest.raises(ledger.AccountLimitExceeded):
        await adjust(runtime, 1)
    await adjust(runtime, -5)
    await adjust(runtime, 5, "fix-2")
    assert (await account(runtime))[0] == ledger.MAX_POINTS


# ------------------------------------------------------------------ points that expire


async def test_points_that_expire_soonest_are_taken_first(runtime: Runtime) -> None:
    await grant(runtime, 100)
    await lot(runtime.database, USER, 40, 48, "late")
    await lot(runtime.database, USER, 20, 24, "soon")
    await adjust(runtime, -30)
    assert await remaining(runtime.database) == [30, 0]
    assert await account(runtime) == (130, 0, 130, 0, 0)
    await adjust(runtime, -50, "fix-2")
    assert await remaining(runtime.database) == [0, 0]
    assert await audit(runtime.database) == []
    await later(runtime.database, 100)
    assert (await expire_lots(runtime.database)).points == 0
    assert await account(runtime) == (80, 0, 80, 0, 0)


async def test_the_rest_of_a_lot_expires(runtime: Runtime) -> None:
    await lot(runtime.database, USER, 40, 24, "l")
    await adjust(runtime, -30)
    await later(runtime.database, 25)
    assert (await expire_lots(runtime.database)).points == 10
    assert await account(runtime) == (0, 0, 10, 0, 10)


async def test_points_that_have_expired_are_not_there(runtime: Runtime) -> None:
    await grant(runtime, 10)
    await lot(runtime.database, USER, 40, 24, "l")
    await later(runtime.database, 25)
    with pytest.raises(InsufficientPoints, match="当前余额 10，"):
        await adjust(runtime, -11)
    await adjust(runtime, -10)
    assert await account(runtime) == (0, 0, 40, 0, 40)
    assert [kind for kind, *_ in await entries(runtime)] == ["grant", "grant", "expire", "adjust"]


async def test_added_points_never_expire(runtime: Runtime) -> None:
    await lot(runtime.database, USER, 40, 24, "l")
    await adjust(runtime, 5)
    await later(runtime.database, 25)
    await expire_lots(runtime.database)
    assert await account(runtime) == (5, 0, 45, 0, 40)


async def test_a_refund_does_not_bring_adjusted_points_back(runtime: Runtime, make: Maker) -> None:
    """The task and the correction share a lot. The refund returns the task's part only."""
    user = await make.user()
    await lot(runtime.database, user.id, 100, 24, "l")
    task_no = await make.task_no(user)
    await adjust(runtime, -70, user_id=user.id)
    assert await remaining(runtime.database) == [0]
    answer = await make.api.post(f"/user/ai/tasks/{task_no}/cancel", headers=user.headers)
    assert answer.status_code == 200
    assert await remaining(runtime.database) == [30]
    assert await make.balance(user) == (30, 0)


# ------------------------------------------------------------------ at once


async def test_corrections_and_submits_at_once_share_the_points(runtime: Runtime, make: Maker) -> None:
    """Of 300 points, ten submits of 30 and ten corrections of -30 get ten shares."""
    user = await make.user(points=200)
    await lot(runtime.database, user.id, 100, 24, "l")
    submits = [make.submit(user) for _ in range(10)]
    corrections = [adjust(runtime, -30, f"fix-{number}", user.id) for number in range(10)]
    results = await asyncio.gather(*submits, *corrections, return_exceptions=True)
    accepted = sum(result.status_code == 200 for result in results[:10])
    assert {result.status_code for result in results[:10]} <= {200, 402}
    taken = sum(result is None for result in results[10:])
    assert all(result is None or isinstance(result, InsufficientPoints) for result in results[10:])
    assert accepted + taken == 10
    assert await make.balance(user) == (0, 30 * accepted)
