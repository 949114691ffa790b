"""Refresh tokens are used once. A second use ends the whole log-in, except for two tabs of one browser."""

import asyncio

import pytest
from sqlalchemy import func, select

from app.accounts.authentication import authenticate
from app.accounts.log_in import refresh_tokens, sessions
from app.accounts.log_in.refresh_tokens import GRACE_SECONDS, LIFETIME_SECONDS, find_token, purge_expired
from app.accounts.log_in.sessions import Session
from app.admin.actions import COMMAND_LINE
from app.admin.users import set_status
from app.errors import Unauthenticated
from app.jobs.scheduler import periodic_jobs
from app.runtime import Runtime, open_runtime
from app.tables import refresh_tokens as table
from tests.support.log_ins import LAPTOP, PHONE, log_in, move_back, renew, sign_up
from tests.support.worlds import REAL

pytestmark = [pytest.mark.anyio, pytest.mark.both_worlds(usually=REAL)]


async def refused(runtime: Runtime, token: str) -> bool:
    try:
        await renew(runtime, token)
    except Unauthenticated:
        return True
    return False


async def test_each_use_gives_the_next_token_of_the_same_family(runtime: Runtime) -> None:
    session = await sign_up(runtime)
    found = await find_token(runtime.database, session.refresh_token)
    assert found is not None
    tokens = {session.refresh_token}
    for _ in range(3):
        session = await renew(runtime, session.refresh_token)
        next_found = await find_token(runtime.database, session.refresh_token)
        assert next_found is not None
        assert (next_found.user_id, next_found.family) == (found.user_id, found.family)
        tokens.add(session.refresh_token)
    assert len(tokens) == 4
    assert all(len(token) >= 43 for token in tokens), "256 bits"
    assert (await authenticate(runtime, session.access_token)).user_id == found.user_id


async def test_the_database_holds_no_token(runtime: Runtime) -> None:
    session = await sign_up(runtime)
    async with runtime.database.read() as connection:
        rows = str((await connection.execute(select(table))).all())
    assert session.refresh_token not in rows
    assert refresh_tokens.digest_token(session.refresh_token) in rows


async def test_an_old_token_ends_the_whole_family_and_no_other(runtime: Runtime) -> None:
    stolen, other = await sign_up(runtime), await log_in(runtime)
    newest = await renew(runtime, (await renew(runtime, stolen.refresh_token)).refresh_token)
    await move_back(runtime, stolen.refresh_token, "used_at", GRACE_SECONDS + 1)
    assert await refused(runtime, stolen.refresh_token)
    assert await refused(runtime, newest.refresh_token)
    await renew(runtime, other.refresh_token)


async def test_two_tabs_may_use_the_same_token_within_ten_seconds(runtime: Runtime) -> None:
    session = await sign_up(runtime)
    first, second = await renew(runtime, session.refresh_token), await renew(runtime, session.refresh_token)
    assert first.refresh_token != second.refresh_token
    await renew(runtime, first.refresh_token)
    await renew(runtime, second.refresh_token)


async def test_another_client_may_not_even_at_once(runtime: Runtime) -> None:
    session = await sign_up(runtime)
    by_thief = await renew(runtime, session.refresh_token, PHONE)
    assert await refused(runtime, session.refresh_token)
    assert await refused(runtime, by_thief.refresh_token)


@pytest.mark.parametrize("client", [LAPTOP, PHONE])
async def test_of_many_uses_at_once_one_wins_or_all_are_the_same_client(
    runtime: Runtime, client: refresh_tokens.Client
) -> None:
    """In processes of their own, as a browser behind a balancer would reach them."""
    session = await sign_up(runtime)
    async with open_runtime(runtime.settings) as elsewhere:
        calls = [
            renew(one, session.refresh_token, LAPTOP if number % 2 else client)
            for number, one in enumerate([runtime, elsewhere] * 5)
        ]
        results = await asyncio.gather(*calls, return_exceptions=True)
    made = [one for one in results if isinstance(one, Session)]
    errors = [one for one in results if not isinstance(one, Session)]
    assert all(isinstance(one, Unauthenticated) for one in errors), errors
    if client is LAPTOP:
        assert len({one.refresh_token for one in made}) == 10
        return
    assert 1 <= len(made) <= 5
    for one in made:
        assert await refused(runtime, one.refresh_token), "the family of a stolen token lives on"


async def test_a_token_ends_after_thirty_days(runtime: Runtime) -> None:
    assert LIFETIME_SECONDS == 30 * 24 * 3600
    session = await sign_up(runtime)
    await move_back(runtime, session.refresh_token, "expires_at", 1)
    assert await refused(runtime, session.refresh_token)
    assert await purge_expired(runtime.database) == 1
    assert await find_token(runtime.database, session.refresh_token) is None
    assert await purge_expired(runtime.database) == 0


async def test_a_worker_deletes_expired_tokens_only(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refresh_tokens, "_EXPIRED", refresh_tokens._EXPIRED.limit(2))
    await sign_up(runtime)
    expired = [await log_in(runtime) for _ in range(5)]
    for session in expired:
        await move_back(runtime, session.refresh_token, "expires_at", 1)
    (job,) = [job for job in periodic_jobs(runtime.settings) if job.name == "refresh-tokens"]
    assert await job.work(runtime) == 5
    async with runtime.database.read() as connection:
        assert await connection.scalar(select(func.count()).select_from(table)) == 1


@pytest.mark.parametrize("end", ["ban", "log-out everywhere", "password"])
async def test_a_refresh_of_the_same_moment_does_not_survive_the_end(runtime: Runtime, end: str) -> None:
    """Either it comes first, and its new token ends with the others, or it is refused."""
    session = await sign_up(runtime)
    tokens = [session] + [await log_in(runtime) for _ in range(7)]
    ends = {
        "ban": lambda: set_status(runtime.database, COMMAND_LINE, session.user_id, "banned"),
        "log-out everywhere": lambda: sessions.log_out_everywhere(runtime.database, session.user_id),
        "password": lambda: sessions.set_password(runtime.database, session.user_id, "another long password"),
    }
    results = await asyncio.gather(
        *(renew(runtime, one.refresh_token) for one in tokens[:4]),
        ends[end](),
        *(renew(runtime, one.refresh_token) for one in tokens[4:]),
        return_exceptions=True,
    )
    if end == "ban":
        await set_status(runtime.database, COMMAND_LINE, session.user_id, "active")
    for one in [*tokens, *(result for result in results if isinstance(result, Session))]:
        assert await refused(runtime, one.refresh_token)
        with pytest.raises(Unauthenticated):
            await authenticate(runtime, one.access_token)
