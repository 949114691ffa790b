"""Points that expire: the soonest are spent first, refunds go to their lot, expired points are never spent."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import event

from app.errors import InsufficientPoints, InvalidParameter
from app.points import ledger
from app.points.balance import get_balance, list_records
from app.points.expiry import ExpiryResult, expire_lots
from app.runtime import Runtime, open_runtime
from app.settings import Settings
from app.tasks.cancel import cancel_task
from app.tasks.submit import submit_task
from app.tasks.validation import Submission
from tests.support.lots import all_lots, in_hours, later, lot, remaining
from tests.support.makers import TEXT_MODEL, Maker, User
from tests.support.workers import stepping
from tests.support.worlds import execute

pytestmark = [pytest.mark.anyio, pytest.mark.both_worlds]


async def submit(runtime: Runtime, user: User) -> dict[str, Any]:
    return (await submit_task(runtime, user.id, Submission(TEXT_MODEL, "一只猫"))).row


async def end(runtime: Runtime, row: dict[str, Any], *, failed: bool, grace_days: int = 7) -> None:
    """Ends the task without a worker: updates its row and writes its settle or refund."""
    money = {"user_id": row["user_id"], "task_id": row["id"], "cost": row["points_cost"]}
    status = "status = 'failed', error_code = 'X'" if failed else "status = 'completed', results = '[1]'"
    await execute(
        runtime,
        f"UPDATE tasks SET {status}, step = 'done', next_run_at = NULL, completed_at = created_at WHERE id = :id",
        id=row["id"],
    )
    async with runtime.database.begin() as connection:
        if failed:
            await ledger.refund(connection, **money, remark="", grace_days=grace_days)
        else:
            await ledger.settle(connection, **money)


async def kinds(runtime: Runtime, user: User) -> list[tuple[str, int]]:
    rows, _ = await list_records(runtime.database, user.id, kind=None, task_no=None, page=1, size=100)
    return [(row["kind"], row["points"]) for row in reversed(rows)]


# ------------------------------------------------------------------ spending


async def test_points_that_expire_soonest_are_spent_first_then_permanent_ones(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=50)
    await lot(runtime.database, user.id, 40, 48, "late")
    await lot(runtime.database, user.id, 20, 24, "soon")
    await submit(runtime, user)
    assert await remaining(runtime.database) == [30, 0]
    await submit(runtime, user)
    assert await remaining(runtime.database) == [0, 0]
    await submit(runtime, user)
    assert await make.balance(user) == (20, 90)
    with pytest.raises(InsufficientPoints, match=r"当前余额 20，本次需要 30"):
        await submit(runtime, user)


async def test_expire_time_is_that_of_the_next_points_to_expire(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=50)
    soon, late = in_hours(24), in_hours(48)
    assert (await get_balance(runtime.database, user.id)).expires is None
    for ref, moment in (("late", late), ("soon", soon)):
        await ledger.grant(runtime.database, user_id=user.id, points=30, ref=ref, expires=moment)
    for moment in (soon, late):
        expected = moment.astimezone(runtime.settings.zone).isoformat(timespec="seconds")[:19]
        answer = await make.api.get("/user/points/consumption/balance", headers=user.headers)
        assert answer.json()["data"]["expireTime"] == expected
        await submit(runtime, user)
    assert (await get_balance(runtime.database, user.id)).expires is None


@pytest.mark.parametrize("moment", [datetime(2020, 1, 1, tzinfo=UTC), datetime(9999, 6, 1, tzinfo=UTC)])
async def test_an_expiry_in_the_past_or_beyond_the_calendar_is_refused(
    make: Maker, runtime: Runtime, moment: datetime
) -> None:
    user = await make.user()
    with pytest.raises(InvalidParameter, match="expires"):
        await ledger.grant(runtime.database, user_id=user.id, points=5, ref="r", expires=moment)
    assert await make.balance(user) == (0, 0)


async def test_a_repeated_grant_makes_one_lot_and_may_come_after_its_expiry(make: Maker, runtime: Runtime) -> None:
    user = await make.user()
    top_up = {"user_id": user.id, "points": 50, "ref": "order-1", "expires": in_hours(1)}
    applied = await asyncio.gather(*[ledger.grant(runtime.database, **top_up) for _ in range(20)])
    assert sorted(one for one, _ in applied) == [False] * 19 + [True]
    assert await remaining(runtime.database) == [50]
    await later(runtime.database, 2)
    over = top_up["expires"] - timedelta(hours=2)
    assert await ledger.grant(runtime.database, **(top_up | {"expires": over})) == (False, 0)


async def test_expire_time_is_never_that_of_points_that_have_expired(make: Maker, runtime: Runtime) -> None:
    user = await make.user()
    await lot(runtime.database, user.id, 5, 1, "lapsing")
    await later(runtime.database, 2)
    assert (await get_balance(runtime.database, user.id)).expires is None
    await lot(runtime.database, user.id, 7, 24, "living")
    balance = await get_balance(runtime.database, user.id)
    assert balance.available == 7
    assert balance.expires is not None
    assert abs(balance.expires - in_hours(24)) < timedelta(minutes=5)


async def test_parallel_submits_on_lots_for_ten(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=100)
    for number in range(5):
        await lot(runtime.database, user.id, 45, 24 + number, f"n{number}")

    async def one() -> bool:
        try:
            await submit(runtime, user)
        except InsufficientPoints:
            return False
        return True

    taken = await asyncio.gather(*[one() for _ in range(60)])
    assert sum(taken) == 10  # 325 points
    assert await make.balance(user) == (25, 300)
    assert await remaining(runtime.database) == [0] * 5


async def statements_of(runtime: Runtime, user: User) -> list[str]:
    """The first words of the SQL statements of one submit."""
    said: list[str] = []

    def listen(_c: Any, _k: Any, statement: str, *_: Any) -> None:
        said.append(statement.split(maxsplit=1)[0])

    engine = runtime.database.writers.sync_engine
    event.listen(engine, "before_cursor_execute", listen)
    await submit(runtime, user)
    event.remove(engine, "before_cursor_execute", listen)
    return said


async def test_users_without_expiring_points_need_no_extra_statement(make: Maker, runtime: Runtime) -> None:
    """Five statements and COMMIT, also for a user whose lots are used up."""
    plain, former = await make.user(points=60), await make.user(points=60)
    await lot(runtime.database, former.id, 30, 24, "gone")
    for user in (plain, former):
        await submit(runtime, user)
        said = [word for word in await statements_of(runtime, user) if word not in {"SET", "BEGIN"}]
        assert said == ["SELECT", "SELECT", "INSERT", "UPDATE", "INSERT"]


# ------------------------------------------------------------------ expiry


async def test_expired_points_are_not_shown_and_not_spent(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=40)
    await lot(runtime.database, user.id, 100, 1, "lapsing")
    await lot(runtime.database, user.id, 30, 48, "living")
    await later(runtime.database, 2)
    assert await make.balance(user) == (70, 0)
    answer = await make.submit(user)
    assert answer.json()["data"]["balance"] == 40
    assert await kinds(runtime, user) == [
        *(("grant", 40), ("grant", 100), ("grant", 30), ("expire", -100), ("deduct", -30)),
    ]
    assert await remaining(runtime.database) == [0, 0]


async def test_a_refusal_names_the_spendable_points(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=10)
    await lot(runtime.database, user.id, 100, 1, "lapsing")
    await later(runtime.database, 2)
    answer = await make.submit(user)
    assert (answer.status_code, answer.json()["message"]) == (402, "积分不足，当前余额 10，本次需要 30")
    assert await remaining(runtime.database) == [100], "a refused submit changes nothing"
    assert await make.balance(user) == (10, 0)
    assert await ledger.grant(runtime.database, user_id=user.id, points=5, ref="more") == (True, 15)


async def test_a_free_task_shows_no_expired_points(make: Maker, runtime: Runtime) -> None:
    await execute(runtime, "UPDATE points_config SET points_cost = 0")
    user = await make.user(points=10)
    await lot(runtime.database, user.id, 100, 1, "lapsing")
    await later(runtime.database, 2)
    assert (await make.submit(user)).json()["data"]["balance"] == 10
    quote = await make.api.post(
        "/user/ai/tasks/quote", json={"modelName": TEXT_MODEL, "prompt": "a"}, headers=user.headers
    )
    assert quote.json()["data"]["balance"] == 10


async def test_parallel_sweeps_expire_a_lot_once(make: Maker, runtime: Runtime) -> None:
    users = [await make.user(points=30) for _ in range(4)]
    for number, user in enumerate(users):
        await lot(runtime.database, user.id, 40, 1, f"a{number}")
        await lot(runtime.database, user.id, 5, 1.5, f"b{number}")
        await lot(runtime.database, user.id, 7, 48, f"c{number}")
    await later(runtime.database, 2)
    swept = await asyncio.gather(*[expire_lots(runtime.database, batch_size=3) for _ in range(10)])
    assert sum(one.lots for one in swept) == 8
    assert sum(one.points for one in swept) == 4 * 45
    assert await expire_lots(runtime.database) == ExpiryResult()
    for user in users:
        assert await make.balance(user) == (37, 0)
        assert (await kinds(runtime, user))[-2:] == [("expire", -40), ("expire", -5)]


async def test_parallel_sweeps_and_submits_keep_the_books(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=300)
    for number in range(6):
        await lot(runtime.database, user.id, 50, 1 + number % 2 * 48, f"n{number}")
    await later(runtime.database, 2)
    await asyncio.gather(*[submit(runtime, user) for _ in range(8)], *[expire_lots(runtime.database) for _ in range(4)])
    assert await make.balance(user) == (300 + 150 - 240, 240)


async def test_expiry_leaves_what_tasks_hold(make: Maker, runtime: Runtime) -> None:
    user = await make.user()
    await lot(runtime.database, user.id, 50, 1, "lapsing")
    row = await submit(runtime, user)
    await later(runtime.database, 2)
    assert (await expire_lots(runtime.database)).points == 20
    assert await make.balance(user) == (0, 30)
    await end(runtime, row, failed=False)
    assert await make.balance(user) == (0, 0)


async def test_one_account_with_wrong_books_does_not_delay_the_others(make: Maker, runtime: Runtime) -> None:
    broken, audio = await make.user(), await make.user()
    for user in (broken, audio):
        await lot(runtime.database, user.id, 50, 1, f"of{user.id}")
    await later(runtime.database, 2)
    decision = "UPDATE points_accounts SET available = available {} 20, held = held {} 20 WHERE user_id = :user"
    await execute(runtime, decision.format("-", "+"), user=broken.id)
    assert await expire_lots(runtime.database) == ExpiryResult(users=1, lots=1, points=50, failed_users=1)
    await execute(runtime, decision.format("+", "-"), user=broken.id)
    assert await expire_lots(runtime.database) == ExpiryResult(users=1, lots=1, points=50)


async def test_a_lot_with_a_forged_expiry_does_not_delay_the_others(settings: Settings) -> None:
    """The entry of its expiry was forged: `expire:1` belongs to another user. This test skips the final audit."""
    async with open_runtime(settings) as runtime:
        for user_id in (1, 2, 3):
            await ledger.grant(runtime.database, user_id=user_id, points=9, ref=f"pool{user_id}")
        for user_id in (1, 2):
            await lot(runtime.database, user_id, 50, 1, f"of{user_id}")
        await later(runtime.database, 2)
        await execute(
            runtime,
            "INSERT INTO points_ledger (user_id, seq, kind, points, held, balance_after, ref, created_at)"
            " SELECT 3, 2, 'expire', -9, 0, 0, 'expire:1', created_at FROM points_lots WHERE ref = 'of1'",
        )
        assert await expire_lots(runtime.database) == ExpiryResult(users=1, lots=1, points=50, failed_users=1)


# ------------------------------------------------------------------ refunds


async def test_a_refund_goes_back_to_its_lots(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=100)
    await lot(runtime.database, user.id, 20, 24, "soon")
    await lot(runtime.database, user.id, 5, 48, "late")
    row = await submit(runtime, user)
    assert await remaining(runtime.database) == [0, 0]
    await end(runtime, row, failed=True)
    assert await remaining(runtime.database) == [20, 5]
    balance = await get_balance(runtime.database, user.id)
    assert balance.available == 125
    assert balance.expires is not None
    assert abs(balance.expires - in_hours(24)) < timedelta(minutes=1)


async def test_a_refund_by_a_worker_goes_back_to_its_lots(make: Maker, runtime: Runtime, working: None) -> None:
    user = await make.user(points=10)
    await lot(runtime.database, user.id, 25, 24, "soon")
    task_no = await make.task_no(user, '失败 [[sandbox: {"end": "failed"}]]')
    assert (await make.ended(user, task_no))["pointsRefunded"] == 30
    assert await remaining(runtime.database) == [25]
    assert await make.balance(user) == (35, 0)


@pytest.mark.settings(refund_grace_days=3)
@pytest.mark.parametrize("by", ["worker", "cancel"])
async def test_the_grace_lasts_as_long_as_its_setting(make: Maker, runtime: Runtime, hurry: None, by: str) -> None:
    user = await make.user()
    await lot(runtime.database, user.id, 30, 1, "lapsing")
    task_no = await make.task_no(user, '失败 [[sandbox: {"end": "failed"}]]')
    await later(runtime.database, 2)
    if by == "cancel":
        await cancel_task(runtime, user.id, task_no)
    else:
        async with stepping(runtime):
            await make.ended(user, task_no)
    balance = await get_balance(runtime.database, user.id)
    assert balance.available == 30
    assert balance.expires is not None
    assert abs(balance.expires - in_hours(3 * 24)) < timedelta(minutes=5)


@pytest.mark.parametrize("swept", [False, True])
async def test_points_of_an_expired_lot_come_back_with_a_grace(make: Maker, runtime: Runtime, swept: bool) -> None:
    user = await make.user()
    await lot(runtime.database, user.id, 40, 1, "lapsing")
    await lot(runtime.database, user.id, 50, 48, "living")
    rows = [await submit(runtime, user), await submit(runtime, user)]  # 30 + 0, 10 + 20
    await later(runtime.database, 2)
    if swept:
        await expire_lots(runtime.database)
    for row in rows:
        await end(runtime, row, failed=True)
    lapsing, living, *graces = await all_lots(runtime.database)
    assert living.remaining == 50
    assert sorted(grace.remaining for grace in graces) == [10, 30]
    for grace in graces:
        assert grace.origin_lot_id == lapsing.id
        assert abs(grace.expires_at - in_hours(7 * 24)) < timedelta(minutes=1)
    assert await make.balance(user) == (90, 0)
    await later(runtime.database, 7 * 24 + 1)
    assert (await expire_lots(runtime.database)).points == 90
    assert await make.balance(user) == (0, 0)


async def test_grace_may_follow_grace(make: Maker, runtime: Runtime) -> None:
    user = await make.user()
    await lot(runtime.database, user.id, 30, 1, "lapsing")
    for _ in range(3):
        row = await submit(runtime, user)
        await later(runtime.database, 8 * 24)
        await end(runtime, row, failed=True)
    assert await remaining(runtime.database) == [0, 0, 0, 30]
    assert await make.balance(user) == (30, 0)


async def test_a_clock_set_back_does_not_reactivate_a_lot(make: Maker, runtime: Runtime) -> None:
    """An expired lot stays expired: its expiry is in the ledger. A refund creates a grace lot instead."""
    user = await make.user()
    await lot(runtime.database, user.id, 50, 1, "lapsing")
    row = await submit(runtime, user)
    await later(runtime.database, 2)
    await expire_lots(runtime.database)
    await later(runtime.database, -2)
    await end(runtime, row, failed=True)
    assert await remaining(runtime.database) == [0, 30]


async def test_a_grace_of_zero_days_expires_at_once(make: Maker, runtime: Runtime) -> None:
    user = await make.user()
    await lot(runtime.database, user.id, 30, 1, "lapsing")
    row = await submit(runtime, user)
    await later(runtime.database, 2)
    await end(runtime, row, failed=True, grace_days=0)
    assert await make.balance(user) == (0, 0)
    assert (await expire_lots(runtime.database)).points == 30
