"""What tests of the log-in share: clients, registered users, and times that have passed."""

from sqlalchemy import update

from app.accounts.log_in import sessions
from app.accounts.log_in.refresh_tokens import Client, digest_token, find_token
from app.accounts.log_in.sessions import Session
from app.database import utc_after
from app.runtime import Runtime
from app.tables import refresh_tokens

PASSWORD = "a-long-password-of-tests"
LAPTOP, PHONE = Client("192.0.2.1", "1" * 64), Client("192.0.2.2", "2" * 64)


async def sign_up(runtime: Runtime, username: str = "alice", password: str = PASSWORD) -> Session:
    return await sessions.register(
        runtime.database, runtime.settings, username=username, password=password, client=LAPTOP
    )


async def log_in(
    runtime: Runtime, username: str = "alice", password: str = PASSWORD, code: str | None = None
) -> Session:
    user = await sessions.verify_log_in(runtime.database, username, password, LAPTOP)
    return await sessions.begin_session(runtime.database, runtime.settings, user, code, LAPTOP, is_cookie=False)


async def renew(runtime: Runtime, token: str, client: Client = LAPTOP) -> Session:
    found = await find_token(runtime.database, token)
    assert found is not None
    return await sessions.refresh(runtime.database, runtime.settings, token, found, client)


async def move_back(runtime: Runtime, token: str, column: str, seconds: float) -> None:
    """A time of this token's row becomes so many seconds ago."""
    async with runtime.database.begin() as connection:
        changed = {column: utc_after(-seconds)}
        await connection.execute(
            update(refresh_tokens).where(refresh_tokens.c.digest == digest_token(token)).values(**changed)
        )
