"""Callers, tasks and balances of one moment share a query, and nothing is remembered from one moment to the next."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
from sqlalchemy import text

from app.accounts.api_keys import revoke_key
from app.accounts.credentials import PREFIX_LENGTH
from app.admin.actions import COMMAND_LINE
from app.admin.users import set_status
from app.database import Connection
from app.points import ledger
from app.runtime import Runtime
from tests.support.lots import later, lot
from tests.support.makers import Maker, User
from tests.support.responses import BALANCE, data
from tests.support.worlds import REAL, execute

pytestmark = [pytest.mark.anyio, pytest.mark.both_worlds(usually=REAL)]
CALLERS, REQUESTS = 24, 20


async def race(call: Callable[[], Awaitable[Any]], change: Callable[[], Awaitable[Any]]) -> tuple[set[int], set[int]]:
    """The statuses of requests that began before the change was committed, and of those that began after it."""
    is_changed = False
    before, after = set[int](), set[int]()

    async def caller() -> None:
        for _ in range(REQUESTS):
            seen = after if is_changed else before
            seen.add((await call()).status_code)

    async def changing() -> None:
        nonlocal is_changed
        while not before:
            await asyncio.sleep(0)
        await change()
        is_changed = True
        for _ in range(3):
            after.add((await call()).status_code)

    await asyncio.gather(changing(), *(caller() for _ in range(CALLERS)))
    return before, after


async def test_a_ban_counts_at_once(make: Maker, runtime: Runtime) -> None:
    for kind in ("headers", "key_headers"):
        user = await make.user()
        headers = getattr(user, kind)
        before, after = await race(
            partial(make.api.get, BALANCE, headers=headers),
            partial(set_status, runtime.database, COMMAND_LINE, user.id, "banned"),
        )
        assert 200 in before
        assert after == {401}


async def test_a_revoked_key_counts_at_once(make: Maker, runtime: Runtime) -> None:
    user = await make.user()
    before, after = await race(
        lambda: make.api.get(BALANCE, headers=user.key_headers),
        lambda: revoke_key(runtime.database, user.api_key[:PREFIX_LENGTH], user.id),
    )
    assert 200 in before
    assert after == {401}


async def test_a_changed_role_counts_at_once(make: Maker, runtime: Runtime) -> None:
    user = await make.user(admin=True)
    body = {"userId": user.id, "points": 1, "ref": "once"}
    before, after = await race(
        lambda: make.api.post("/admin/points/grants", json=body, headers=user.headers),
        lambda: execute(runtime, "UPDATE users SET role = 'user' WHERE id = :user", user=user.id),
    )
    assert 200 in before
    assert after == {403}


async def test_a_balance_is_never_older_than_the_question(make: Maker, runtime: Runtime) -> None:
    users = [await make.user() for _ in range(8)]

    async def grow(user: User) -> None:
        for points in range(1, 11):
            await ledger.grant(runtime.database, user_id=user.id, points=1, ref=f"{user.id}.{points}")
            assert await make.balance(user) == (points, 0)

    await asyncio.gather(*(grow(user) for user in users))


async def test_questions_of_one_moment_share_a_query_and_get_their_own_answers(
    make: Maker, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = [await make.user(points=30 + number) for number in range(20)]
    numbers = [await make.task_no(user, f"猫 {user.id}") for user in users]
    queries = 0
    real = Connection.execute

    async def counted(self: Connection, *args: Any, **options: Any) -> Any:
        nonlocal queries
        queries += 1
        return await real(self, *args, **options)

    monkeypatch.setattr(Connection, "execute", counted)
    answers = await asyncio.gather(
        *(make.api.get(f"/user/ai/tasks/{no}", headers=user.headers) for user, no in zip(users, numbers, strict=True)),
        *(make.api.get(f"/user/ai/tasks/{numbers[0]}", headers=user.headers) for user in users[1:]),
    )
    assert [data(answer)["prompt"] for answer in answers[:20]] == [f"猫 {user.id}" for user in users]
    assert {answer.status_code for answer in answers[20:]} == {404}, "another user's task was shown"
    assert queries < len(answers), "39 callers and 39 tasks would be 78 queries"


async def test_a_broken_question_is_nobody_elses(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=30)
    task_no = await make.task_no(user)
    paths = [task_no, "%00", "%ff%fe", "x" * 41, "猫", "' OR 1=1", task_no.lower(), task_no + "%20"]
    answers = await asyncio.gather(*(make.api.get(f"/user/ai/tasks/{path}", headers=user.headers) for path in paths))
    assert [answer.status_code for answer in answers] == [200] + [404] * (len(paths) - 1)


async def test_the_database_still_answers_after_a_failed_read(make: Maker, runtime: Runtime) -> None:
    async def broken(connection: Connection, keys: set[int]) -> dict[int, int]:
        await connection.execute(text("SELECT * FROM no_such_table"))
        return {}

    for _ in range(3):
        answers = await asyncio.gather(*(runtime.database.load(broken, n) for n in range(5)), return_exceptions=True)
        assert all(isinstance(answer, Exception) for answer in answers)
    assert await make.balance(await make.user(points=5)) == (5, 0)


async def test_points_that_are_due_are_subtracted_from_their_own_account(make: Maker, runtime: Runtime) -> None:
    """Also in a query for many accounts, and while the lots of others are due."""
    users = [await make.user(points=number + 1) for number in range(6)]
    for number, user in enumerate(users):
        await lot(runtime.database, user.id, 10 * (number + 1), 1 if number % 2 else 48, f"lot {number}")
    await later(runtime.database, 2)
    balances = await asyncio.gather(*(make.balance(user) for user in users))
    assert balances == [(11, 0), (2, 0), (33, 0), (4, 0), (55, 0), (6, 0)]
