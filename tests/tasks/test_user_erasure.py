"""Erasing a user: access ends at once, works, uploads and the name go, the account and the ledger stay."""

import asyncio
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select

from app.accounts.credentials import sign_token
from app.accounts.users import create_user
from app.errors import NotFound
from app.files.deletions import delete_files
from app.jobs.scheduler import erase, periodic_jobs
from app.points.balance import get_balance
from app.runtime import Runtime
from app.tables import (
    api_keys,
    end_user_budgets,
    file_deletions,
    points_ledger,
    uploads,
    users,
    webhook_deliveries,
    webhook_endpoints,
    webhook_secrets,
)
from app.tasks.erasure import continue_erasures
from app.tasks.erasure import user as user_module
from tests.support.ended_tasks import complete, completed, row, start, stored
from tests.support.makers import IMAGE_MODEL, Maker, User
from tests.support.media_files import image
from tests.support.responses import BALANCE, LIST, data, refusal
from tests.support.webhook_calls import HOOK, post
from tests.support.worlds import execute

pytestmark = [pytest.mark.anyio, pytest.mark.both_worlds]


async def erase_all(make: Maker, user: User, body: Any = None, **headers: Any) -> httpx.Response:
    sent = {"confirm": "ERASE"} if body is None else body
    return await make.api.post("/user/erase", json=sent, headers=headers or user.headers)


async def count(runtime: Runtime, table: Any, user: User) -> int:
    async with runtime.database.read() as connection:
        mine = select(func.count()).select_from(table).where(table.c.user_id == user.id)
        return int(await connection.scalar(mine) or 0)


async def user_row(runtime: Runtime, user: User) -> Any:
    async with runtime.database.read() as connection:
        return (await connection.execute(select(users).where(users.c.id == user.id))).one()


async def queued(runtime: Runtime) -> set[str]:
    async with runtime.database.read() as connection:
        return set(await connection.scalars(select(file_deletions.c.object_key)))


async def run_job(runtime: Runtime, *, minutes_later: int = 0) -> None:
    """The job, after so many minutes: the erasures are made older."""
    if minutes_later:
        await execute(runtime, "UPDATE file_deletions SET next_attempt_at = '2020-01-01 00:00:00'")
    await erase(runtime)


async def settle(runtime: Runtime) -> None:
    """Makes the erasure older than any transaction that was on its way."""
    await execute(runtime, "UPDATE tasks SET created_at = '2020-01-01 00:00:00'")
    await execute(runtime, "UPDATE uploads SET created_at = '2020-01-01 00:00:00'")
    await execute(runtime, "UPDATE users SET erased_at = '2020-01-02 00:00:00' WHERE erased_at IS NOT NULL")


async def test_all_is_gone_but_the_account_and_the_ledger(make: Maker, runtime: Runtime) -> None:
    user, other = await make.user(points=500, username="ann"), await make.user(points=100)
    form = {"file": ("a", image("PNG"))}
    link = data(await make.api.post("/user/files/upload", files=form, headers=user.headers))["url"]
    task_no, keys = await completed(make, user, model=IMAGE_MODEL, imageUrl=link, callbackUrl=HOOK)
    others, other_keys = await completed(make, other)
    data(await post(make, user, "endpoints", url=HOOK))
    data(await make.api.get("/user/webhooks/secret", headers=user.headers))
    cancellable = await make.task_no(user)
    answer = data(await erase_all(make, user))
    assert answer == {"erasedTasks": 2, "runningTasks": 0, "isComplete": True, "balance": 465, "held": 0}
    for headers in (user.headers, user.key_headers):
        assert refusal(await make.api.get(BALANCE, headers=headers))[0] == 401
    assert refusal(await erase_all(make, user))[0] == 401, "twice"
    found = await user_row(runtime, user)
    assert (found.username, found.username_key, found.password_hash, found.totp_secret) == (None, None, None, None)
    assert found.erased_at is not None
    assert await create_user(runtime.database, username="ann") != user.id, "the name is free"
    for table in (webhook_endpoints, webhook_deliveries, webhook_secrets):
        assert await count(runtime, table, user) == 0
    for number in (task_no, cancellable):
        assert (await row(runtime, number))["erased_at"] is not None
        assert "secret" not in repr(await row(runtime, number))
    key = runtime.store.key_from_url(link) or ""
    assert {key, *keys, f"users/{user.id}"} <= await queued(runtime)
    await run_job(runtime)
    assert await stored(runtime, [*keys, key]) == [False] * 3
    assert await stored(runtime, other_keys) == [True] * 2
    assert (await make.task(other, others))["status"] == "completed"
    assert (await get_balance(runtime.database, user.id)).available == 465
    assert await count(runtime, points_ledger, user) == 5
    assert await queued(runtime) == {f"users/{user.id}"}, "a submit may have been on its way"
    await settle(runtime)
    await run_job(runtime, minutes_later=2)
    assert await queued(runtime) == set()


async def test_a_task_that_cannot_be_cancelled_is_erased_when_it_ends(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=100)
    task_no = await make.task_no(user, "secret words")
    claimed = (await start(runtime))[task_no]
    answer = data(await erase_all(make, user))
    assert (answer["erasedTasks"], answer["runningTasks"], answer["held"], answer["balance"]) == (0, 1, 30, 70)
    await run_job(runtime, minutes_later=2)
    assert (await row(runtime, task_no))["prompt"] == "secret words"
    keys = await complete(runtime, claimed)
    await run_job(runtime, minutes_later=2)
    assert "secret" not in repr(await row(runtime, task_no))
    await run_job(runtime, minutes_later=2)
    assert await stored(runtime, keys) == [False, False]
    assert await get_balance(runtime.database, user.id) == type(await get_balance(runtime.database, user.id))(70, 0)
    await settle(runtime)
    await run_job(runtime, minutes_later=2)
    assert await queued(runtime) == set()


async def test_the_job_goes_on_after_a_crash_and_with_many_works(
    make: Maker, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_module, "MAX_BATCHES_OF_REQUEST", 1)
    monkeypatch.setattr(user_module, "_ENDED", user_module._ENDED.limit(2))
    user = await make.user(points=500)
    numbers = [await make.task_no(user) for _ in range(5)]
    for task in (await start(runtime)).values():
        await complete(runtime, task)
    answer = data(await erase_all(make, user))
    assert (answer["erasedTasks"], answer["runningTasks"], answer["isComplete"]) == (2, 0, False)

    async def dies(*_: Any) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(user_module, "_cancel_and_erase", dies)
        with pytest.raises(RuntimeError):
            await continue_erasures(runtime)
    await run_job(runtime, minutes_later=2)
    assert all([(await row(runtime, number))["erased_at"] is not None for number in numbers])
    assert await delete_files(runtime) + await count(runtime, uploads, user) == 0


async def test_what_a_user_who_came_back_makes_is_kept(make: Maker, runtime: Runtime) -> None:
    """A log-in service may give out a new token for the same account."""
    user = await make.user(points=100)
    old, _ = await completed(make, user)
    data(await erase_all(make, user))
    await execute(runtime, "UPDATE users SET tokens_valid_from = '2020-01-01 00:00:00', erased_at = created_at")
    await execute(runtime, "UPDATE tasks SET created_at = '2020-01-01 00:00:00'")
    back = User(user.id, {"Authorization": f"Bearer {sign_token(runtime.settings, user.id)}"}, {}, "", "")
    new = await make.task_no(back)
    await complete(runtime, (await start(runtime))[new])
    await run_job(runtime, minutes_later=2)
    assert [one["taskNo"] for one in data(await make.api.get(LIST, headers=back.headers))["records"]] == [new]
    assert refusal(await make.api.get(f"/user/ai/tasks/{old}", headers=back.headers))[0] == 404
    assert (await make.balance(back)) == (40, 0)


async def test_many_at_once_are_one_erasure(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=300)
    for _ in range(3):
        await completed(make, user)
    waiting = await make.task_no(user)
    answers = await asyncio.gather(*[erase_all(make, user) for _ in range(4)], return_exceptions=False)
    assert {answer.status_code for answer in answers} <= {200, 401}
    assert 200 in {answer.status_code for answer in answers}
    assert (await row(runtime, waiting))["erased_at"] is not None
    assert (await get_balance(runtime.database, user.id)).available == 210


async def test_the_names_of_end_users_go_at_the_end(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=100)
    task_no, _ = await completed(make, user)
    await execute(runtime, "UPDATE tasks SET end_user = 'bob@example.com'")
    await execute(
        runtime, "INSERT INTO key_budgets (id, user_id, updated_at) VALUES (7, :user, '2026-01-01')", user=user.id
    )
    await execute(
        runtime, "INSERT INTO end_user_budgets (budget_id, end_user, updated_at) VALUES (7, 'bob', '2026-01-01')"
    )
    data(await erase_all(make, user))
    assert (await row(runtime, task_no))["end_user"] is None
    await settle(runtime)
    await run_job(runtime, minutes_later=2)
    async with runtime.database.read() as connection:
        assert await connection.scalar(select(func.count()).select_from(end_user_budgets)) == 0


@pytest.mark.worlds("embedded")
async def test_it_wants_the_word_and_a_jwt(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=100, username="ann")
    task_no = await make.task_no(user)
    for body in (
        {},
        {"confirm": "erase"},
        {"confirm": True},
        {"confirm": None},
        {"confirm": "ERASE", "all": 1},
        [],
        "ERASE",
    ):
        assert refusal(await erase_all(make, user, body))[:2] == (400, "INVALID_PARAMETER")
    assert refusal(await erase_all(make, user, **user.key_headers))[:2] == (403, "FORBIDDEN")
    assert refusal(await make.api.post("/user/erase", json={"confirm": "ERASE"}))[0] == 401
    assert (await make.task(user, task_no))["status"] == "created"
    assert (await user_row(runtime, user)).username == "ann"
    assert "erasure" in {job.name for job in periodic_jobs(runtime.settings)}


@pytest.mark.worlds("embedded")
async def test_a_row_for_a_user_who_is_not_erased_erases_nothing(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=100)
    task_no, _ = await completed(make, user)
    times = "'2020-01-01 00:00:00', '2020-01-01 00:00:00'"
    await execute(
        runtime,
        f"INSERT INTO file_deletions (object_key, next_attempt_at, created_at) VALUES ('users/{user.id}', {times})",
    )
    await run_job(runtime)
    assert (await make.task(user, task_no))["status"] == "completed"
    assert await queued(runtime) == set()
    with pytest.raises(NotFound):
        await user_module._read_user(runtime.database, user.id)
    assert await count(runtime, api_keys, user) == 1
