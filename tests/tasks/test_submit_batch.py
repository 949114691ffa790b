"""Submits of the same moment share a transaction, and each caller gets its own right answer."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from app.catalog.models import set_model
from app.database import TransactionConflict, UniqueViolation
from app.errors import InsufficientPoints, InvalidParameter, ModelNotFound, TooManyTasks, Unavailable
from app.points import ledger
from app.points.balance import get_balance
from app.runtime import Runtime
from app.tables import points_ledger, tasks
from app.tasks.submit import SubmitResult, batch, submit_task
from app.tasks.submit import submit as submit_module
from app.tasks.validation import Submission
from tests.support.makers import IMAGE_MODEL, TEXT_MODEL, Maker, User

pytestmark = [pytest.mark.anyio, pytest.mark.both_worlds]


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of submits in each shared transaction.."""
    seen: list[int] = []
    real = submit_module.store_batch

    async def store_batch(runtime: Runtime, batch: list[Any]) -> Any:
        seen.append(len(batch))
        return await real(runtime, batch)

    monkeypatch.setattr(submit_module, "store_batch", store_batch)
    return seen


async def at_once(runtime: Runtime, *requested: tuple[User, Submission]) -> list[Any]:
    submits = [submit_task(runtime, user.id, submission) for user, submission in requested]
    return await asyncio.gather(*submits, return_exceptions=True)


def cat(number: int, **fields: Any) -> Submission:
    return Submission(TEXT_MODEL, f"猫 {number}", **fields)


async def entries_of(runtime: Runtime, user: User) -> list[tuple[Any, ...]]:
    columns = (points_ledger.c.seq, points_ledger.c.kind, points_ledger.c.points, points_ledger.c.balance_after)
    query = select(*columns).where(points_ledger.c.user_id == user.id).order_by(points_ledger.c.seq)
    async with runtime.database.read() as connection:
        return [tuple(row) for row in await connection.execute(query)]


async def test_each_of_a_full_batch_gets_its_own_answer(make: Maker, runtime: Runtime, sizes: list[int]) -> None:
    hot, poor, lots = await make.user(points=10_000), await make.user(points=10), await make.user()
    lot = {"points": 60, "ref": "lot", "expires": datetime.now(UTC) + timedelta(days=1)}
    await ledger.grant(runtime.database, user_id=lots.id, **lot)
    nobody, keyed, others = await make.user(), await make.user(points=100), [await make.user(30) for _ in range(30)]
    requested = [(hot, cat(number)) for number in range(25)]
    requested += [(poor, cat(100)), (lots, cat(101)), (lots, cat(102)), (lots, cat(103)), (nobody, cat(104))]
    requested += [(user, cat(200 + number)) for number, user in enumerate(others)]
    requested += [(hot, Submission("no such model", "猫")), (hot, cat(300, params={"nothing": 1}))]
    requested += [(keyed, cat(400, key="k")), (keyed, cat(400, key="k"))]
    answers = await at_once(runtime, *requested)
    assert max(sizes) > 50, "they did not share a transaction"
    for (user, submission), answer in zip(requested, answers, strict=True):
        if isinstance(answer, SubmitResult) and not answer.is_replay:
            assert (answer.row["user_id"], answer.row["prompt"]) == (user.id, submission.prompt)
    kinds = [type(answer) for answer in answers]
    assert kinds[:25] == [SubmitResult] * 25
    assert [answer.balance for answer in answers[:25]] == [10_000 - 30 * (number + 1) for number in range(25)]
    assert kinds[25] is InsufficientPoints
    assert sorted(kinds[26:29], key=str) == sorted([SubmitResult] * 2 + [InsufficientPoints], key=str)
    assert kinds[29] is InsufficientPoints
    assert kinds[30:60] == [SubmitResult] * 30
    assert kinds[60:62] == [ModelNotFound, InvalidParameter]
    assert answers[62].row["task_no"] == answers[63].row["task_no"]
    assert sorted(answer.is_replay for answer in answers[62:]) == [False, True]
    deducted = [(2 + number, "deduct", -30, 10_000 - 30 * (number + 1)) for number in range(25)]
    assert (await entries_of(runtime, hot))[1:] == deducted
    assert await entries_of(runtime, poor) == [(1, "grant", 10, 10)]
    assert [await make.balance(user) for user in (hot, poor, lots, keyed)] == [(9250, 750), (10, 0), (0, 60), (70, 30)]


async def test_a_caller_who_is_gone_changes_nothing_for_the_others(make: Maker, runtime: Runtime) -> None:
    gone, other = await make.user(points=30), await make.user(points=30)
    leaving = asyncio.create_task(submit_task(runtime, gone.id, cat(1)))
    staying = asyncio.create_task(submit_task(runtime, other.id, cat(2)))
    await asyncio.sleep(0)
    leaving.cancel()
    assert (await staying).row["prompt"] == "猫 2"
    with pytest.raises(asyncio.CancelledError):
        await leaving
    async with runtime.database.read() as connection:
        stored = list(await connection.scalars(select(tasks.c.prompt).order_by(tasks.c.id)))
    assert stored in (["猫 2"], ["猫 1", "猫 2"])
    assert (await get_balance(runtime.database, gone.id)).held == 30 * (len(stored) - 1)


@pytest.mark.settings(max_tasks_in_flight=3)
async def test_the_bound_of_running_tasks_counts_within_a_batch(
    make: Maker, runtime: Runtime, sizes: list[int]
) -> None:
    user, other = await make.user(points=1000), await make.user(points=1000)
    answers = await at_once(runtime, *[(who, cat(number)) for number in range(5) for who in (user, other)])
    assert max(sizes) == 10
    for mine in (answers[::2], answers[1::2]):
        assert [type(answer) for answer in mine] == [SubmitResult] * 3 + [TooManyTasks] * 2
    assert await make.balance(user) == (910, 90)


async def test_points_are_never_spent_twice_within_a_batch(make: Maker, runtime: Runtime, sizes: list[int]) -> None:
    user = await make.user(points=70)
    answers = await at_once(runtime, *[(user, cat(number)) for number in range(4)])
    assert sizes == [4]
    assert [type(answer) for answer in answers] == [SubmitResult] * 2 + [InsufficientPoints] * 2
    assert [answer.balance for answer in answers[:2]] == [40, 10]
    assert await make.balance(user) == (10, 60)


async def test_a_free_model_shares_the_transaction_and_writes_no_entry(
    make: Maker, runtime: Runtime, sizes: list[int]
) -> None:
    await set_model(runtime.database, IMAGE_MODEL, {"points_cost": 0, "task_type": "text_to_image"})
    rich, empty = await make.user(points=100), await make.user()
    free = Submission(IMAGE_MODEL, "免费")
    answers = await at_once(runtime, (rich, free), (empty, free), (rich, cat(1)))
    assert sizes == [3]
    assert [answer.balance for answer in answers] == [100, 0, 70]
    assert [entry[1] for entry in await entries_of(runtime, rich)] == ["grant", "deduct"]
    assert await entries_of(runtime, empty) == []


async def test_two_numbers_of_one_batch_are_never_the_same(
    make: Maker, runtime: Runtime, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    suffixes = iter(["000001"] * 4 + [f"{number:06d}" for number in range(2, 100)])
    monkeypatch.setattr("app.tasks.submit.batch.new_suffix", lambda: next(suffixes))
    user = await make.user(points=100)
    answers = await at_once(runtime, *[(user, cat(number)) for number in range(3)])
    assert sizes == [3]
    assert len({answer.row["task_no"] for answer in answers}) == 3


async def test_a_batch_that_is_repeated_writes_new_rows(
    make: Maker, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first try of each kind fails after its tasks were inserted, and is rolled back."""
    failures = {"shared": 1, "waiting": 1}
    real = batch.write_deductions

    async def write_deductions(*args: Any) -> None:
        await real(*args)
        for kind, left in failures.items():
            if left:
                failures[kind] -= 1
                raise TransactionConflict

    monkeypatch.setattr(batch, "write_deductions", write_deductions)
    user = await make.user(points=300)
    answers = await at_once(runtime, *[(user, cat(number)) for number in range(3)])
    assert [type(answer) for answer in answers] == [SubmitResult] * 3
    assert failures == {"shared": 0, "waiting": 0}
    async with runtime.database.read() as connection:
        rows = (await connection.execute(select(tasks.c.id, tasks.c.task_no).order_by(tasks.c.id))).all()
    assert sorted((answer.row["id"], answer.row["task_no"]) for answer in answers) == [tuple(row) for row in rows]
    assert await make.balance(user) == (210, 90)


async def test_what_is_stored_is_answered_so_although_another_one_fails(
    make: Maker, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After two violated constraints each submit has a transaction of its own. One of them fails."""
    failures: list[Exception | None] = [UniqueViolation("task_no"), UniqueViolation("task_no"), None, Unavailable()]
    real = batch.write_deductions

    async def write_deductions(*args: Any) -> None:
        await real(*args)
        failure = failures.pop(0) if failures else None
        if failure is not None:
            raise failure

    monkeypatch.setattr(batch, "write_deductions", write_deductions)
    user = await make.user(points=300)
    answers = await at_once(runtime, *[(user, cat(number)) for number in range(4)])
    assert [type(answer) for answer in answers] == [SubmitResult, Unavailable, SubmitResult, SubmitResult]
    assert failures == []
    assert await make.balance(user) == (210, 90)


async def test_a_damaged_account_is_the_fault_of_its_own_user_alone(
    make: Maker, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged, others = await make.user(points=30), [await make.user(points=30) for _ in range(5)]
    real = batch.write_deductions

    async def write_deductions(connection: Any, locked: Any, entries: Any) -> None:
        if damaged.id in {account.user_id for account in locked}:
            raise ledger.LedgerInconsistency("its entries say something else")
        await real(connection, locked, entries)

    monkeypatch.setattr(batch, "write_deductions", write_deductions)
    answers = await at_once(runtime, *[(user, cat(number)) for number, user in enumerate([damaged, *others])])
    assert [type(answer) for answer in answers] == [ledger.LedgerInconsistency] + [SubmitResult] * 5
    assert await make.balance(damaged) == (30, 0)


async def test_submits_with_one_key_that_are_refused_get_the_reason(make: Maker, runtime: Runtime) -> None:
    poor = await make.user(points=10)
    answers = await at_once(runtime, *[(poor, cat(1, key="k")) for _ in range(20)])
    assert {type(answer) for answer in answers} == {InsufficientPoints}
