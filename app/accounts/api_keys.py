"""API keys: made once, stored as a digest, revoked at once in every process."""

from datetime import datetime

from sqlalchemy import ColumnElement, insert, update

from app.accounts.credentials import PREFIX_LENGTH, digest_key, new_api_key
from app.database import Database, retry_on_conflict, utc_now
from app.errors import NotFound
from app.tables import api_keys

ALL_SCOPES = ("tasks", "points")
"""What a key may reach: `tasks` submits and reads tasks, `points` reads the balance and redeems codes."""
ADMIN_SCOPE = "admin"
"""Asked for by name alone, and of use only while the key's user is an admin."""


@retry_on_conflict
async def create_key(
    database: Database,
    user_id: int,
    *,
    name: str = "",
    scopes: tuple[str, ...] = ALL_SCOPES,
    expires_at: datetime | None = None,
) -> str:
    """A new key in clear, for the only time."""
    api_key = new_api_key()
    async with database.begin() as connection:
        await connection.execute(
            insert(api_keys).values(
                user_id=user_id,
                digest=digest_key(api_key),
                prefix=api_key[:PREFIX_LENGTH],
                name=name[:100],
                scopes=list(scopes),
                expires_at=expires_at,
                created_at=utc_now(),
            )
        )
    return api_key


async def revoke_key(database: Database, prefix: str, user_id: int) -> int:
    """Revokes the user's keys shown with this prefix; how many. NotFound where none is."""
    revoked = await _revoke(database, (api_keys.c.user_id == user_id) & (api_keys.c.prefix == prefix))
    if not revoked:
        raise NotFound("密钥不存在")
    return revoked


async def revoke_named(database: Database, user_id: int, name: str) -> int:
    """Revokes the user's keys of this name; how many."""
    return await _revoke(database, (api_keys.c.user_id == user_id) & (api_keys.c.name == name))


@retry_on_conflict
async def _revoke(database: Database, which: ColumnElement[bool]) -> int:
    async with database.begin() as connection:
        valid = which & api_keys.c.revoked_at.is_(None)
        revoked = await connection.execute(update(api_keys).where(valid).values(revoked_at=utc_now()))
    return int(revoked.rowcount)
