"""Creates and revokes API keys. The database stores only their digests."""

from datetime import datetime

from sqlalchemy import ColumnElement, insert, update

from app.accounts.credentials import PREFIX_LENGTH, digest_key, new_api_key
from app.database import Database, retry_on_conflict, utc_now
from app.errors import InvalidParameter, NotFound
from app.tables import api_keys

MAX_NAME_LENGTH = 100
ALL_SCOPES = ("tasks", "points")
"""`tasks` allows to submit and read tasks; `points` allows to read the balance and redeem codes."""
ADMIN_SCOPE = "admin"
"""Never granted by default, and effective only while the key's user is an admin."""


@retry_on_conflict
async def create_key(
    database: Database,
    user_id: int,
    *,
    name: str = "",
    scopes: tuple[str, ...] = ALL_SCOPES,
    expires_at: datetime | None = None,
) -> str:
    """Creates a key and returns it. The clear text cannot be read again. Raises InvalidParameter for a long name."""
    if len(name) > MAX_NAME_LENGTH:
        raise InvalidParameter("name", f"最多 {MAX_NAME_LENGTH} 个字符")
    api_key = new_api_key()
    async with database.begin() as connection:
        await connection.execute(
            insert(api_keys).values(
                user_id=user_id,
                digest=digest_key(api_key),
                prefix=api_key[:PREFIX_LENGTH],
                name=name,
                scopes=list(scopes),
                expires_at=expires_at,
                created_at=utc_now(),
            )
        )
    return api_key


async def revoke_key(database: Database, prefix: str, user_id: int) -> int:
    """Revokes the user's keys with this prefix and returns their number. NotFound if there is none."""
    revoked = await _revoke(database, (api_keys.c.user_id == user_id) & (api_keys.c.prefix == prefix))
    if not revoked:
        raise NotFound("密钥不存在")
    return revoked


async def revoke_named(database: Database, user_id: int, name: str) -> int:
    """Revokes the user's keys with this name and returns their number."""
    return await _revoke(database, (api_keys.c.user_id == user_id) & (api_keys.c.name == name))


@retry_on_conflict
async def _revoke(database: Database, condition: ColumnElement[bool]) -> int:
    async with database.begin() as connection:
        is_valid = condition & api_keys.c.revoked_at.is_(None)
        updated = await connection.execute(update(api_keys).where(is_valid).values(revoked_at=utc_now()))
    return int(updated.rowcount)
