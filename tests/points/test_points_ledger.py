"""Points with parallel, repeated and forged writes, in both worlds. The fixture audits the books after each test."""

import asyncio
import random

import pytest
from sqlalchemy.exc import DBAPIError

from app.database import UniqueViolation
from app.errors import GrantConflict, InsufficientPoints, InvalidParameter
from app.points import ledger
from app.points.balance import get_balance
from app.runtime import Runtime, open_runtime
from app.settings import Settings
from app.tasks.cancel import cancel_task
from app.tasks.submit import submit_task
from app.tasks.validation import Submission
from tests.support.makers import TEXT_MODEL, Maker
from tests.support.worlds import REAL, execute

pytestmark = [pytest.mark.anyio, pytest.mark.both_worlds]


async def test_twenty_parallel_repeats_of_a_grant_apply_it_once(make: Maker, runtime: Runtime) -> None:
    user = await make.user()
    answers = await asyncio.gather(
        *[ledger.grant(runtime.database, user_id=user.id, points=100, ref="order-1") for _ in range(20)]
    )
    assert sorted(applied for applied, _ in answers) == [False] * 19 + [True]
    assert await make.balance(user) == (100, 0)


async def test_a_reference_is_unique_over_all_users(make: Maker, runtime: Runtime) -> None:
    first, second = await make.user(), await make.user()
    assert await ledger.grant(runtime.database, user_id=first.id, points=5, ref="r") == (True, 5)
    for user_id, points in ((second.id, 5), (first.id, 6)):
        with pytest.raises(GrantConflict):
            await ledger.grant(runtime.database, user_id=user_id, points=points, ref="r")
    assert await ledger.grant(runtime.database, user_id=first.id, points=5, ref="r") == (False, 5)
    assert await make.balance(second) == (0, 0)


@pytest.mark.parametrize("points", [0, -1, 2**53 + 1])
async def test_an_invalid_grant_is_refused(make: Maker, runtime: Runtime, points: int) -> None:
    user = await make.user()
    with pytest.raises(InvalidParameter):
        await ledger.grant(runtime.database, user_id=user.id, points=points, ref="x")


@pytest.mark.parametrize("ref", ["", "  ", "x ", " x", "x" * 129])
async def test_a_grant_needs_a_usable_reference(make: Maker, runtime: Runtime, ref: str) -> None:
    with pytest.raises(InvalidParameter):
        await ledger.grant(runtime.database, user_id=1, points=1, ref=ref)


async def test_a_hundred_submits_on_a_balance_for_ten(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=300 + 29)

    async def one() -> bool:
        try:
            await submit_task(runtime, user.id, Submission(TEXT_MODEL, "并发"))
        except InsufficientPoints:
            return False
        return True

    taken = await asyncio.gather(*[one() for _ in range(100)])
    assert sum(taken) == 10
    assert await make.balance(user) == (29, 300)


@pytest.mark.both_worlds(usually=REAL)
async def test_submits_grants_and_ends_at_once_keep_the_books(make: Maker, runtime: Runtime, working: None) -> None:
    users = [await make.user(points=random.randint(0, 200)) for _ in range(4)]

    async def one(number: int) -> None:
        user = users[number % len(users)]
        if number % 5 == 0:
            await ledger.grant(runtime.database, user_id=user.id, points=30, ref=f"n{number}")
        answer = await make.submit(user, '失败 [[sandbox: {"end": "failed"}]]' if number % 3 == 0 else "成功")
        if answer.status_code == 200:
            await make.ended(user, answer.json()["data"]["taskNo"])

    await asyncio.gather(*[one(number) for number in range(40)])
    for user in users:
        assert (await make.balance(user))[1] == 0


async def test_the_database_closes_a_task_once_whatever_the_code_does(make: Maker, runtime: Runtime) -> None:
    """The database itself forbids the second close of a task and the second opening."""
    user = await make.user(points=90)
    row = (await submit_task(runtime, user.id, Submission(TEXT_MODEL, "a"))).row
    await submit_task(runtime, user.id, Submission(TEXT_MODEL, "b"))  # so that enough is held for a wrong second close
    money = {"user_id": user.id, "task_id": row["id"], "cost": 30}

    async def close_twice() -> None:
        async with runtime.database.begin() as connection:
            await ledger.refund(connection, **money, remark="", grace_days=7)
            await ledger.settle(connection, **money)

    with pytest.raises(UniqueViolation):
        await close_twice()
    with pytest.raises(UniqueViolation):
        async with runtime.database.begin() as connection:
            await ledger.deduct(connection, **money, remark="")
    with pytest.raises(ledger.LedgerInconsistency):
        async with runtime.database.begin() as connection:
            await ledger.refund(connection, user_id=user.id, task_id=row["id"], cost=61, remark="", grace_days=7)
    assert await make.balance(user) == (30, 60)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE points_ledger SET points = points + 1",
        "DELETE FROM points_ledger",
        "REPLACE INTO points_ledger SELECT * FROM points_ledger",
        "REPLACE INTO points_ledger (id, user_id, seq, kind, points, held, balance_after, ref, created_at)"
        " SELECT id, user_id, seq, kind, 5000, 0, 5000, ref, created_at FROM points_ledger",
        "UPDATE points_accounts SET available = -1",
        "UPDATE points_accounts SET available = available + 1",
        "UPDATE points_accounts SET held = -1, available = available + 1",
        "INSERT INTO points_ledger (user_id, seq, kind, points, held, balance_after, created_at)"
        " VALUES (1, 99, 'grant', 5, 0, 5, '2026-01-01')",
        "INSERT INTO points_ledger (user_id, seq, kind, points, held, balance_after, created_at)"
        " VALUES (1, 99, 'adjust', 5, 0, 5, '2026-01-01')",
        "INSERT INTO points_ledger (user_id, seq, kind, points, held, balance_after, created_at)"
        " VALUES (1, 99, 'expire', -5, 0, 5, '2026-01-01')",
        "INSERT INTO points_ledger (user_id, seq, kind, points, held, balance_after, ref, created_at)"
        " VALUES (1, 99, 'expire', 5, 0, 5, 'expire:1', '2026-01-01')",
        "INSERT INTO points_ledger (user_id, seq, kind, points, held, balance_after, phase, task_id, created_at)"
        " VALUES (1, 99, 'settle', 5, -5, 5, 'close', 7, '2026-01-01')",
        "INSERT INTO points_ledger (user_id, seq, kind, points, held, balance_after, ref, created_at)"
        " VALUES (1, 99, 'gift', 5, 0, 5, 'r', '2026-01-01')",
    ],
)
async def test_the_database_forbids_invalid_rows(make: Maker, runtime: Runtime, statement: str) -> None:
    await make.user(points=10)
    with pytest.raises((DBAPIError, UniqueViolation)):
        await execute(runtime, statement)


async def test_the_balance_is_seen_at_once_from_another_process(make: Maker, settings: Settings) -> None:
    user = await make.user(points=100)
    async with open_runtime(settings) as other:
        for left in (70, 40, 10):
            await make.task_no(user)
            assert (await get_balance(other.database, user.id)).available == left


async def test_a_free_model_moves_no_points(make: Maker, runtime: Runtime, working: None) -> None:
    await execute(runtime, "UPDATE points_config SET points_cost = 0")
    user = await make.user()
    task = await make.ended(user, await make.task_no(user))
    assert (task["status"], task["pointsCost"]) == ("completed", 0)
    assert await make.balance(user) == (0, 0)


@pytest.mark.settings(max_tasks_in_flight=5)
async def test_the_cap_on_running_tasks_is_exact_under_contention(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=3000)
    answers = await asyncio.gather(*[make.submit(user, "并发") for _ in range(30)])
    codes = sorted(answer.status_code for answer in answers)
    assert codes == [200] * 5 + [429] * 25
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["errorCode"] == "TOO_MANY_TASKS"
    assert refused.headers["Retry-After"] == "5"
    assert await make.balance(user) == (3000 - 150, 150)


@pytest.mark.settings(max_tasks_in_flight=5)
async def test_the_cap_is_as_exact_where_some_tasks_are_free(make: Maker, runtime: Runtime) -> None:
    await execute(runtime, "UPDATE points_config SET points_cost = 0 WHERE model_name = 'sc_soraimg_text_2x3'")
    user = await make.user(points=3000)
    models = (TEXT_MODEL, "sc_soraimg_text_2x3", "sc_soraimg_text_2x3")
    answers = await asyncio.gather(*[make.submit(user, "并发", model=models[number % 3]) for number in range(30)])
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [429] * 25
    poor = await make.user()
    answers = await asyncio.gather(*[make.submit(poor, "并发", model=models[1]) for _ in range(30)])
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [429] * 25


@pytest.mark.settings(max_tasks_in_flight=1)
async def test_the_cap_counts_no_task_that_has_ended(make: Maker) -> None:
    user = await make.user(points=90)
    for _ in range(3):
        task_no = await make.task_no(user)
        assert (await make.submit(user)).status_code == 429
        await cancel_task(make.runtime, user.id, task_no)
    assert await make.balance(user) == (90, 0)


async def test_a_remark_is_cut_to_its_column_on_every_database(make: Maker, runtime: Runtime) -> None:
    user = await make.user()
    with pytest.raises(InvalidParameter, match="remark"):
        await ledger.grant(runtime.database, user_id=user.id, points=5, ref="r", remark="注" * 256)
    assert await ledger.grant(runtime.database, user_id=user.id, points=5, ref="r", remark="注" * 255) == (True, 5)
