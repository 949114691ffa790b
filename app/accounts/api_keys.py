"""Creates and revokes API keys for the command line. `keys/` holds what users do with their keys."""

from datetime import datetime

from sqlalchemy import ColumnElement, update

from app.accounts.keys import user_keys
from app.accounts.keys.caps import Caps
from app.accounts.keys.scopes import ADMIN_SCOPE, KEY_SCOPES
from app.accounts.keys.user_keys import NewKey
from app.database import Database, retry_on_conflict, utc_now
from app.errors import NotFound
from app.tables import api_keys

__all__ = ["ADMIN_SCOPE", "ALL_SCOPES", "create_key", "revoke_key", "revoke_named"]

ALL_SCOPES = KEY_SCOPES


async def create_key(
    database: Database,
    user_id: int,
    *,
    name: str = "",
    scopes: tuple[str, ...] = ALL_SCOPES,
    expires_at: datetime | None = None,
    caps: Caps | None = None,
) -> str:
    """Creates a key and returns it. The clear text cannot be read again. Raises InvalidParameter."""
    new = NewKey(name=name, scopes=scopes, expires_at=expires_at, caps=caps or Caps())
    return (await user_keys.create_key(database, user_id, new, may_be_expired=True))[0]


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
