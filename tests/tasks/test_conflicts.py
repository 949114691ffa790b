"""A submit that meets a locked account, a deadlock or a lock timeout is repeated, and becomes one task."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import text

from app.database import Connection
from app.runtime import Runtime
from app.tasks.submit import batch
from tests.support.makers import Maker, User
from tests.support.sql import run_sql
from tests.support.waiting import until
from tests.support.worlds import execute

pytestmark = [pytest.mark.anyio, pytest.mark.worlds("real")]
WEIGHT = 300  # rows: in a deadlock the transaction that changed fewer is rolled back
# In this database: other tests use the server at the same time. INNODB_TRX would not do: it is renewed only if nobody
# has read it for a tenth of a second.
INSERTING = """SELECT COUNT(*) FROM information_schema.PROCESSLIST
 WHERE DB = DATABASE() AND INFO LIKE 'INSERT INTO tasks%%'"""


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """One entry for each transaction of a submit: whether it waits for accounts that others hold."""
    seen: list[bool] = []
    real = batch.lock_accounts

    async def lock_accounts(connection: Connection, user_ids: Any, *, waits: bool) -> Any:
        seen.append(waits)
        return await real(connection, user_ids, waits=waits)

    monkeypatch.setattr(batch, "lock_accounts", lock_accounts)
    return seen


@asynccontextmanager
async def holding(runtime: Runtime, user: User) -> AsyncIterator[Connection]:
    """Another transaction that holds the lock of the user's account. It changes nothing."""
    async with runtime.database.begin() as connection:
        lock = text("SELECT user_id FROM points_accounts WHERE user_id = :user FOR UPDATE")
        await connection.execute(lock, {"user": user.id})
        yield connection


async def one_task_for(make: Maker, user: User, answer: Any) -> None:
    assert answer.status_code == 200, answer.text
    found = await make.api.get("/user/ai/tasks/list", headers=user.headers)
    assert [record["taskNo"] for record in found.json()["data"]["records"]] == [answer.json()["data"]["taskNo"]]
    assert await make.balance(user) == (70, 30)


async def test_a_locked_account_delays_its_own_user_alone(make: Maker, runtime: Runtime, tries: list[bool]) -> None:
    user, others = await make.user(points=100), [await make.user(points=100) for _ in range(5)]
    async with holding(runtime, user):
        submitting = asyncio.create_task(make.submit(user))
        await until("it waits", lambda: True in tries)
        for other in others:
            await one_task_for(make, other, await make.submit(other))
        assert not submitting.done()
    await one_task_for(make, user, await submitting)


async def test_a_lock_not_had_in_time_is_waited_for_again(make: Maker, runtime: Runtime, tries: list[bool]) -> None:
    user = await make.user(points=100)
    async with holding(runtime, user):
        submitting = asyncio.create_task(make.submit(user))
        await until("another try", lambda: tries.count(True) >= 2, 30)  # longer than the lock timeout
    await one_task_for(make, user, await submitting)


async def test_the_victim_of_a_deadlock_is_repeated(make: Maker, runtime: Runtime, tries: list[bool]) -> None:
    user, other = await make.user(points=100), await make.user(points=100)
    template = await make.task_no(other)
    tries.clear()
    rows = ", ".join(f"({10**9 + number}, 0, 0, 0, 0, 0, 0, UTC_TIMESTAMP())" for number in range(WEIGHT))
    columns = "user_id, available, held, granted, spent, expired, seq, updated_at"
    copied = "model_name, task_type, action, prompt, params, upstream_request, points_cost, status, step, next_run_at,"
    copied += " deadline_at, history, created_at, updated_at"
    async with runtime.database.begin() as connection:
        await connection.execute(text(f"INSERT INTO points_accounts ({columns}) VALUES {rows}"))
        # The other transaction has a task with the same key …
        await connection.execute(
            text(
                f"INSERT INTO tasks (task_no, user_id, idempotency_key, {copied})"
                f" SELECT 'T-other', :user, 'k', {copied} FROM tasks WHERE task_no = :template"
            ),
            {"user": user.id, "template": template},
        )
        headers = user.headers | {"Idempotency-Key": "k"}
        body = {"modelName": "sc_soraimg_text_1x1", "prompt": "一只猫"}
        submitting = asyncio.create_task(make.api.post("/user/ai/tasks/submit", json=body, headers=headers))
        url = runtime.settings.database_url
        await until("the submit waits for the key", lambda: run_sql(url, INSERTING))  # and holds the account
        # … and waits for the account: a deadlock, in which the submit has changed fewer rows.
        await connection.execute(
            text("UPDATE points_accounts SET updated_at = updated_at + INTERVAL 1 SECOND WHERE user_id = :user"),
            {"user": user.id},
        )
        await connection.execute(text("DELETE FROM tasks WHERE task_no = 'T-other'"))
        await connection.execute(text("DELETE FROM points_accounts WHERE user_id >= 1000000000"))
    await one_task_for(make, user, await submitting)
    assert True in tries, "no submit was repeated"


async def test_the_books_hold_if_the_account_is_busy(make: Maker, runtime: Runtime, tries: list[bool]) -> None:
    user = await make.user(points=300)
    async with holding(runtime, user):
        submitting = [asyncio.create_task(make.submit(user, f"{number}")) for number in range(12)]
        await until("they wait", lambda: True in tries)
    answers = await asyncio.gather(*submitting)
    assert sorted(answer.status_code for answer in answers) == [200] * 10 + [402] * 2
    assert await make.balance(user) == (0, 300)
    assert (await execute(runtime, "SELECT COUNT(*) FROM tasks")).scalar() == 10
