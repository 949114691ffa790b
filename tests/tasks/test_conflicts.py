"""A submit that meets a deadlock or a lock timeout is repeated, and becomes one task."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import text

from app.database import Connection
from app.points import ledger
from app.runtime import Runtime
from app.tasks import submit as submit_module
from tests.support.makers import Maker, User
from tests.support.waiting import until
from tests.support.worlds import execute

pytestmark = [pytest.mark.anyio, pytest.mark.worlds("real")]
WEIGHT = 300  # rows: in a deadlock the transaction that changed fewer is rolled back


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One line for each transaction that a submit began."""
    seen: list[str] = []
    real = submit_module.new_task_row

    def new_task_row(*args: Any) -> Any:
        row = real(*args)
        seen.append(row["task_no"])
        return row

    monkeypatch.setattr(submit_module, "new_task_row", new_task_row)
    return seen


@asynccontextmanager
async def holding(runtime: Runtime, user: User) -> AsyncIterator[Connection]:
    """Another transaction that holds the lock of the user's account and has changed many rows."""
    async with runtime.database.begin() as connection:
        await connection.execute(text("UPDATE points_accounts SET updated_at = updated_at + INTERVAL 1 SECOND"))
        yield connection
        assert user.id


async def one_task_for(make: Maker, user: User, answer: Any) -> None:
    assert answer.status_code == 200, answer.text
    found = await make.api.get("/user/ai/tasks/list", headers=user.headers)
    assert [record["taskNo"] for record in found.json()["data"]["records"]] == [answer.json()["data"]["taskNo"]]
    assert await make.balance(user) == (70, 30)


async def test_the_victim_of_a_deadlock_is_repeated(
    make: Maker, runtime: Runtime, tries: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, real = [], ledger.deduct

    async def deduct(*args: Any, **money: Any) -> Any:
        stored.append(money)
        return await real(*args, **money)

    monkeypatch.setattr(ledger, "deduct", deduct)
    user = await make.user(points=100)
    rows = ", ".join(f"({10**9 + number}, 0, 0, 0, 0, 0, 0, UTC_TIMESTAMP())" for number in range(WEIGHT))
    columns = "user_id, available, held, granted, spent, expired, seq, updated_at"
    await execute(runtime, f"INSERT INTO points_accounts ({columns}) VALUES {rows}")
    async with holding(runtime, user) as connection:
        submitting = asyncio.create_task(make.submit(user))
        await until("its try", lambda: tries)
        await until("its task is stored", lambda: stored)  # the submit waits for the account, or soon will
        assert len(tries) == 1
        # … and this waits for the submit's task: a deadlock, in which the submit has changed fewer rows.
        await connection.execute(text("UPDATE tasks SET progress = progress WHERE user_id = :user"), {"user": user.id})
    await one_task_for(make, user, await submitting)
    assert len(tries) > 1
    await execute(runtime, "DELETE FROM points_accounts WHERE user_id >= 1000000000")


async def test_a_lock_not_had_in_time_is_waited_for_again(make: Maker, runtime: Runtime, tries: list[str]) -> None:
    user = await make.user(points=100)
    async with holding(runtime, user):
        submitting = asyncio.create_task(make.submit(user))
        await until("another try", lambda: len(tries) >= 2, 20)  # longer than the lock timeout
    await one_task_for(make, user, await submitting)
