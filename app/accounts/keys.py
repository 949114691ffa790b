"""API keys: made once, stored as a digest, revoked at once in every process."""

from datetime import datetime

from sqlalchemy import ColumnElement, insert, update

from app.accounts.credentials import SHOWN_CHARACTERS, digest_key, new_api_key
from app.database import Sessions, repeat_on_conflict, utc_now
from app.errors import NotFound
from app.tables import api_keys

ALL_SCOPES = ("tasks", "points")
"""What a key may reach: `tasks` submits and reads tasks, `points` reads the balance and redeems codes."""
ADMIN_SCOPE = "admin"
"""Asked for by name alone, and of use only while the key's user is an admin."""


@repeat_on_conflict
async def create_key(
    sessions: Sessions,
    user_id: int,
    *,
    name: str = "",
    scopes: tuple[str, ...] = ALL_SCOPES,
    expires_at: datetime | None = None,
) -> str:
    """A new key in clear, for the only time."""
    api_key = new_api_key()
    async with sessions.begin() as session:
        await session.execute(
            insert(api_keys).values(
                user_id=user_id,
                digest=digest_key(api_key),
                prefix=api_key[:SHOWN_CHARACTERS],
                name=name[:100],
                scopes=list(scopes),
                expires_at=expires_at,
                created_at=utc_now(),
            )
        )
    return api_key


async def revoke_key(sessions: Sessions, prefix: str, user_id: int) -> int:
    """Revokes the user's keys shown with this prefix; how many. NotFound where none is."""
    revoked = await _revoke(sessions, (api_keys.c.user_id == user_id) & (api_keys.c.prefix == prefix))
    if not revoked:
        raise NotFound("密钥不存在")
    return revoked


async def revoke_named(sessions: Sessions, user_id: int, name: str) -> int:
    """Revokes the user's keys of this name; how many."""
    return await _revoke(sessions, (api_keys.c.user_id == user_id) & (api_keys.c.name == name))


@repeat_on_conflict
async def _revoke(sessions: Sessions, which: ColumnElement[bool]) -> int:
    async with sessions.begin() as session:
        valid = which & api_keys.c.revoked_at.is_(None)
        revoked = await session.execute(update(api_keys).where(valid).values(revoked_at=utc_now()))
    return int(revoked.rowcount)
