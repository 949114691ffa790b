"""The second factor: codes and recovery codes are used once, and in production an admin has no rights without one."""

import asyncio
import time
from dataclasses import replace
from datetime import UTC, datetime

import pyotp
import pytest
from sqlalchemy import func, select, update

from app.accounts.authentication import authenticate
from app.accounts.credentials import sign_token
from app.accounts.log_in import sessions, totp
from app.accounts.log_in.sessions import Session
from app.accounts.users import create_user, get_token_version
from app.errors import Forbidden, InvalidParameter, NotFound, SecondFactorRequired, Unauthenticated
from app.runtime import Runtime
from app.tables import recovery_codes, users
from tests.support.log_ins import PASSWORD, log_in, sign_up

pytestmark = [pytest.mark.anyio, pytest.mark.both_worlds]
NOW = datetime(2026, 1, 1, 12, 0, 10, tzinfo=UTC)


def code_of(secret: str, steps: int = 0) -> str:
    """The code of the present step, or of one so many steps later."""
    return pyotp.TOTP(secret).generate_otp(int(time.time()) // 30 + steps)


async def forget_steps(runtime: Runtime, user_id: int) -> None:
    """As if the newest used step were long ago: the user need not wait for the next one."""
    async with runtime.database.begin() as connection:
        await connection.execute(update(users).where(users.c.id == user_id).values(totp_step=1))


async def enrolled(runtime: Runtime) -> tuple[Session, str, list[str]]:
    """A user who has just enrolled: the session, the secret and the recovery codes."""
    session = await sign_up(runtime)
    made = await totp.begin_enrolment(runtime.database, session.user_id)
    codes = await totp.confirm_enrolment(runtime.database, session.user_id, code_of(made.secret))
    await forget_steps(runtime, session.user_id)
    return session, made.secret, codes


def test_a_code_counts_in_its_own_step_and_in_the_ones_beside_it() -> None:
    secret = pyotp.random_base32()
    present = int(NOW.timestamp()) // 30
    for offset in range(-3, 4):
        found = totp.find_step(secret, pyotp.TOTP(secret).generate_otp(present + offset), NOW)
        assert found == (present + offset if abs(offset) <= 1 else None)
    code = pyotp.TOTP(secret).at(NOW)
    assert totp.find_step(secret, f" {code[:3]} {code[3:]} ", NOW) == present
    for wrong in ("", code[:5], code + "0", "x" * 6, "\ud800" * 6, "١٢٣٤٥٦", "0" * 5000):
        assert totp.find_step(secret, wrong, NOW) is None


async def test_an_enrolment_counts_once_a_code_has_confirmed_it(runtime: Runtime) -> None:
    session = await sign_up(runtime)
    with pytest.raises(InvalidParameter):
        await totp.confirm_enrolment(runtime.database, session.user_id, "123456")
    abandoned = await totp.begin_enrolment(runtime.database, session.user_id)
    made = await totp.begin_enrolment(runtime.database, session.user_id)
    assert made.url.startswith("otpauth://totp/1818ai:alice?secret=" + made.secret)
    await log_in(runtime)  # nothing is confirmed yet
    for wrong in ("000000", code_of(abandoned.secret), "", "abcd-efgh-ijkl-mnop"):
        if wrong != code_of(made.secret):
            with pytest.raises(InvalidParameter):
                await totp.confirm_enrolment(runtime.database, session.user_id, wrong)
    codes = await totp.confirm_enrolment(runtime.database, session.user_id, code_of(made.secret))
    assert len(set(codes)) == 10
    assert (await sessions.get_profile(runtime.database, session.user_id)).has_second_factor
    with pytest.raises(SecondFactorRequired):
        await log_in(runtime)
    with pytest.raises(Forbidden):
        await totp.begin_enrolment(runtime.database, session.user_id)
    with pytest.raises(Forbidden):
        await totp.confirm_enrolment(runtime.database, session.user_id, code_of(made.secret, 1))


async def test_the_code_of_the_confirmation_is_used_up(runtime: Runtime) -> None:
    session = await sign_up(runtime)
    made = await totp.begin_enrolment(runtime.database, session.user_id)
    code = code_of(made.secret)
    await totp.confirm_enrolment(runtime.database, session.user_id, code)
    with pytest.raises(SecondFactorRequired):
        await log_in(runtime, code=code)


async def test_a_log_in_wants_the_password_first_and_then_the_code(runtime: Runtime) -> None:
    _, secret, _ = await enrolled(runtime)
    with pytest.raises(Unauthenticated, match="用户名或密码错误"):  # a stranger does not learn of the second factor
        await log_in(runtime, password="wrong", code=code_of(secret))
    with pytest.raises(SecondFactorRequired, match="请输入动态验证码"):
        await log_in(runtime)
    with pytest.raises(SecondFactorRequired, match="错误或已使用"):
        await log_in(runtime, code="000000" if code_of(secret) != "000000" else "111111")
    assert isinstance(await log_in(runtime, code=code_of(secret)), Session)


async def test_a_step_is_used_once_also_by_many_at_once(runtime: Runtime) -> None:
    _, secret, _ = await enrolled(runtime)
    code = code_of(secret)
    results = await asyncio.gather(*(log_in(runtime, code=code) for _ in range(6)), return_exceptions=True)
    assert sum(isinstance(one, Session) for one in results) == 1
    assert sum(isinstance(one, SecondFactorRequired) for one in results) == 5
    with pytest.raises(SecondFactorRequired):
        await log_in(runtime, code=code_of(secret, -1))  # an older step than the newest used one
    assert isinstance(await log_in(runtime, code=code_of(secret, 1)), Session)


async def test_a_recovery_code_is_used_once_also_by_many_at_once(runtime: Runtime) -> None:
    session, _, codes = await enrolled(runtime)
    results = await asyncio.gather(*(log_in(runtime, code=codes[0]) for _ in range(6)), return_exceptions=True)
    assert sum(isinstance(one, Session) for one in results) == 1
    assert isinstance(await log_in(runtime, code=codes[1].upper().replace("-", "")), Session)
    async with runtime.database.read() as connection:
        rows = (await connection.execute(select(recovery_codes))).all()
    assert sum(row.used_at is not None for row in rows) == 2
    assert not any(code in str(rows) for code in codes)
    assert {row.user_id for row in rows} == {session.user_id}


async def test_somebody_elses_recovery_code_does_not_work(runtime: Runtime) -> None:
    _, _, codes = await enrolled(runtime)
    other = await sign_up(runtime, "bobby")
    await totp.enrol(runtime.database, other.user_id)
    with pytest.raises(SecondFactorRequired):
        await log_in(runtime, "bobby", code=codes[0])


async def test_only_a_code_ends_the_enrolment(runtime: Runtime) -> None:
    session, secret, codes = await enrolled(runtime)
    for wrong in ("", "abcdef", codes[0][:-1]):
        with pytest.raises(InvalidParameter):
            await totp.disable(runtime.database, session.user_id, wrong)
    await totp.disable(runtime.database, session.user_id, code_of(secret))
    await log_in(runtime)
    async with runtime.database.read() as connection:
        assert await connection.scalar(select(func.count()).select_from(recovery_codes)) == 0
    with pytest.raises(InvalidParameter):
        await totp.disable(runtime.database, session.user_id, codes[0])


async def test_an_operator_enrols_a_user_at_once_and_ends_an_earlier_enrolment(runtime: Runtime) -> None:
    session, old_secret, old_codes = await enrolled(runtime)
    made, codes = await totp.enrol(runtime.database, session.user_id)
    for gone in (code_of(old_secret), old_codes[0]):
        with pytest.raises(SecondFactorRequired):
            await log_in(runtime, code=gone)
    await log_in(runtime, code=code_of(made.secret))
    await log_in(runtime, code=codes[0])
    with pytest.raises(NotFound):
        await totp.enrol(runtime.database, 424242)


async def test_in_production_an_admin_without_a_second_factor_is_no_admin(runtime: Runtime) -> None:
    admin = await create_user(runtime.database, username="root", admin=True)
    await sessions.set_password(runtime.database, admin, PASSWORD)
    async with runtime.database.begin() as connection:  # as if the password were older than the token without a version
        await connection.execute(update(users).where(users.c.id == admin).values(tokens_valid_from=None))
    token = sign_token(runtime.settings, admin, version=await get_token_version(runtime.database, admin))
    foreign = sign_token(runtime.settings, admin)  # signed by somebody else who has the secret
    production = replace(runtime, settings=runtime.settings.model_copy(update={"environment": "production"}))
    assert not (await authenticate(runtime, token)).lacks_second_factor
    assert (await authenticate(production, token)).lacks_second_factor
    assert not (await authenticate(production, foreign)).lacks_second_factor
    await totp.begin_enrolment(runtime.database, admin)
    assert (await authenticate(production, token)).lacks_second_factor, "not confirmed"
    made, _ = await totp.enrol(runtime.database, admin)
    assert not (await authenticate(production, token)).lacks_second_factor
    session = await log_in(runtime, "root", code=code_of(made.secret))
    assert not (await authenticate(production, session.access_token)).lacks_second_factor
