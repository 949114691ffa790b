"""Registration, log-in, log-out and passwords: what they change, and that they tell strangers nothing."""

import asyncio
from typing import Any

import pytest
from argon2 import PasswordHasher
from sqlalchemy import func, select, update

from app.accounts.authentication import authenticate
from app.accounts.credentials import sign_token
from app.accounts.log_in import passwords, sessions
from app.accounts.log_in.sessions import Session
from app.accounts.tickets import make_ticket, redeem_ticket
from app.accounts.users import create_user, get_token_version
from app.admin.actions import COMMAND_LINE
from app.admin.users import set_status
from app.errors import InvalidParameter, RegistrationClosed, Unauthenticated, UsernameTaken
from app.points import ledger
from app.runtime import Runtime
from app.tables import points_accounts, refresh_tokens, users
from tests.support.log_ins import LAPTOP, PASSWORD, log_in, renew, sign_up

pytestmark = [pytest.mark.anyio, pytest.mark.both_worlds]
OTHER_PASSWORD = "another-long-password"


async def count(runtime: Runtime, table: Any) -> int:
    async with runtime.database.read() as connection:
        return int(await connection.scalar(select(func.count()).select_from(table)) or 0)


# ------------------------------------------------------------------ registration


async def test_who_registers_can_log_in_by_name_in_any_case_and_by_id(runtime: Runtime) -> None:
    session = await sign_up(runtime, "Alice")
    for name in ("Alice", "alice", "ＡＬＩＣＥ", str(session.user_id)):
        assert (await log_in(runtime, name)).user_id == session.user_id
    profile = await sessions.get_profile(runtime.database, session.user_id)
    assert (profile.username, profile.role, profile.has_password) == ("Alice", "user", True)
    assert session.expires_in == 30 * 60


async def test_a_name_belongs_to_one_user_only(runtime: Runtime) -> None:
    results = await asyncio.gather(
        *(sign_up(runtime, name) for name in ("bob", "Bob", "BOB", "ＢＯＢ")), return_exceptions=True
    )
    assert sum(isinstance(one, Session) for one in results) == 1
    assert sum(isinstance(one, UsernameTaken) for one in results) == 3
    with pytest.raises(UsernameTaken):
        await sign_up(runtime, "boB")
    assert await count(runtime, users) == 1
    assert await count(runtime, refresh_tokens) == 1
    with pytest.raises(InvalidParameter, match="已存在"):
        await create_user(runtime.database, username="bOB")


async def test_a_registration_that_fails_leaves_nothing(runtime: Runtime) -> None:
    async def fail(*_: Any) -> None:
        raise RuntimeError("the grant fails")

    with pytest.raises(RuntimeError):
        await sessions.register(
            runtime.database, runtime.settings, username="carol", password=PASSWORD, client=LAPTOP, then=fail
        )
    assert await count(runtime, users) == await count(runtime, refresh_tokens) == 0
    await sign_up(runtime, "carol")


async def test_the_points_of_a_registration_come_with_the_user(runtime: Runtime) -> None:
    async def grant(connection: Any, user_id: int) -> None:
        ref = f"signup:{user_id}"
        await ledger.grant_in_transaction(connection, user_id=user_id, points=50, ref=ref, remark="注册赠送")

    session = await sessions.register(
        runtime.database, runtime.settings, username="dora", password=PASSWORD, client=LAPTOP, then=grant
    )
    async with runtime.database.read() as connection:
        assert await ledger.balance_of(connection, session.user_id) == 50
    with pytest.raises(InvalidParameter, match="ref"):  # nobody else can use this reference up
        await ledger.grant(runtime.database, user_id=session.user_id, points=1, ref="signup:7")
    assert await count(runtime, points_accounts) == 1


@pytest.mark.settings(registration="closed")
async def test_nobody_registers_where_registration_is_closed(runtime: Runtime) -> None:
    with pytest.raises(RegistrationClosed):
        await sign_up(runtime)
    assert await count(runtime, users) == 0


# ------------------------------------------------------------------ enumeration


async def test_every_failed_log_in_has_one_text_and_one_hash(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    session = await sign_up(runtime, "alice")
    banned = await sign_up(runtime, "banned")
    await set_status(runtime.database, COMMAND_LINE, banned.user_id, "banned")
    without_password = await create_user(runtime.database, username="nobody")
    works: list[Any] = []
    run = passwords._run

    async def counted(work: Any, address: str) -> Any:
        works.append(work)
        return await run(work, address)

    monkeypatch.setattr(passwords, "_run", counted)
    tries = [
        ("alice", OTHER_PASSWORD),
        ("alice", ""),
        ("unknown", PASSWORD),
        ("' OR 1=1 --", PASSWORD),
        ("\x00", PASSWORD),
        (str(2**62), PASSWORD),
        (str(session.user_id), OTHER_PASSWORD),
        ("banned", PASSWORD),
        ("banned", OTHER_PASSWORD),
        ("nobody", PASSWORD),
        (str(without_password), PASSWORD),
    ]
    answers = set()
    for username, password in tries:
        works.clear()
        with pytest.raises(Unauthenticated) as refused:
            await log_in(runtime, username, password)
        answers.add((refused.value.message, refused.value.error_code, len(works)))
    assert answers == {("未登录: 用户名或密码错误", "UNAUTHENTICATED", 1)}


async def test_a_hash_of_old_parameters_is_replaced_at_the_next_log_in(runtime: Runtime) -> None:
    session = await sign_up(runtime)
    old = PasswordHasher(time_cost=1, memory_cost=8192, parallelism=1).hash(PASSWORD)
    statement = update(users).where(users.c.id == session.user_id)
    async with runtime.database.begin() as connection:
        await connection.execute(statement.values(password_hash=old))
    for _ in range(2):
        await log_in(runtime)
    async with runtime.database.read() as connection:
        stored = await connection.scalar(select(users.c.password_hash).where(users.c.id == session.user_id))
    assert stored != old
    assert not passwords.needs_rehash(str(stored))


async def test_a_password_that_changes_during_a_log_in_ends_it(runtime: Runtime) -> None:
    session = await sign_up(runtime)
    verified = await sessions.verify_log_in(runtime.database, "alice", PASSWORD, LAPTOP)
    await sessions.set_password(runtime.database, session.user_id, OTHER_PASSWORD)
    with pytest.raises(Unauthenticated):
        await sessions.begin_session(runtime.database, runtime.settings, verified, None, LAPTOP, is_cookie=False)


# ------------------------------------------------------------------ the ends of sessions


async def test_a_log_out_ends_one_session(runtime: Runtime) -> None:
    first, second = await sign_up(runtime), await log_in(runtime)
    newer = await renew(runtime, first.refresh_token)
    await sessions.log_out(runtime.database, first.refresh_token)  # an old token of the session will do
    await sessions.log_out(runtime.database, "unknown")
    with pytest.raises(Unauthenticated):
        await renew(runtime, newer.refresh_token)
    await renew(runtime, second.refresh_token)


@pytest.mark.parametrize("end", ["log-out everywhere", "password", "ban and unban"])
async def test_a_log_in_of_the_same_second_works_and_no_earlier_one(runtime: Runtime, end: str) -> None:
    earlier = [await sign_up(runtime), await log_in(runtime)]
    user_id, password = earlier[0].user_id, PASSWORD
    foreign = sign_token(runtime.settings, user_id)  # without a version: the time decides
    ticket = await make_ticket(runtime, await authenticate(runtime, earlier[0].access_token))
    later = []
    if end == "log-out everywhere":
        await sessions.log_out_everywhere(runtime.database, user_id)
    elif end == "password":
        password = OTHER_PASSWORD
        changed = {"old": PASSWORD, "new": password, "client": LAPTOP}
        later.append(await sessions.change_password(runtime.database, runtime.settings, user_id, **changed))
    else:
        await set_status(runtime.database, COMMAND_LINE, user_id, "banned")
        with pytest.raises(Unauthenticated):
            await log_in(runtime)
        await set_status(runtime.database, COMMAND_LINE, user_id, "active")
    later.append(await log_in(runtime, password=password))
    for session in later:
        assert (await authenticate(runtime, session.access_token)).user_id == user_id
        await renew(runtime, session.refresh_token)
    for session in earlier:
        with pytest.raises(Unauthenticated):
            await authenticate(runtime, session.access_token)
        with pytest.raises(Unauthenticated):
            await renew(runtime, session.refresh_token)
    with pytest.raises(Unauthenticated):
        await authenticate(runtime, foreign)
    with pytest.raises(Unauthenticated):
        await redeem_ticket(runtime, ticket)


async def test_a_token_of_another_version_is_refused(runtime: Runtime) -> None:
    session = await sign_up(runtime)
    version = await get_token_version(runtime.database, session.user_id)
    for other in (version - 1, version + 1, 2**70):
        with pytest.raises(Unauthenticated):
            await authenticate(runtime, sign_token(runtime.settings, session.user_id, version=other))
    await authenticate(runtime, sign_token(runtime.settings, session.user_id, version=version))


async def test_a_wrong_old_password_changes_nothing(runtime: Runtime) -> None:
    session = await sign_up(runtime)
    other = await create_user(runtime.database, username="nobody")
    for user_id, old, new, field in (
        (session.user_id, OTHER_PASSWORD, "a new long password", "oldPassword"),
        (session.user_id, PASSWORD, "password", "newPassword"),
        (session.user_id, PASSWORD, "short", "newPassword"),
        (other, PASSWORD, OTHER_PASSWORD, "oldPassword"),
        (424242, PASSWORD, OTHER_PASSWORD, "oldPassword"),
    ):
        with pytest.raises(InvalidParameter) as refused:
            await sessions.change_password(runtime.database, runtime.settings, user_id, old=old, new=new, client=LAPTOP)
        assert refused.value.field == field
    await authenticate(runtime, session.access_token)
    await renew(runtime, session.refresh_token)
    await log_in(runtime)


async def test_of_two_password_changes_at_once_one_wins(runtime: Runtime) -> None:
    session = await sign_up(runtime)
    changes = [
        sessions.change_password(
            runtime.database,
            runtime.settings,
            session.user_id,
            old=PASSWORD,
            new=f"{OTHER_PASSWORD}-{n}",
            client=LAPTOP,
        )
        for n in range(4)
    ]
    results = await asyncio.gather(*changes, return_exceptions=True)
    won = [n for n, one in enumerate(results) if isinstance(one, Session)]
    assert len(won) == 1
    assert all(isinstance(one, InvalidParameter) for n, one in enumerate(results) if n not in won)
    await log_in(runtime, password=f"{OTHER_PASSWORD}-{won[0]}")
