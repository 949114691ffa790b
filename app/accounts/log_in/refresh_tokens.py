"""Refresh tokens: random texts of 256 bits, of which the database holds digests only. Each is used once.

A log-in starts a family. Each use replaces a token by the next one of its family. Who uses an old token may have stolen
it, or is its owner after a theft, so the whole family ends (RFC 9700). Only the client that has just used it may do so
again for GRACE_SECONDS, because two tabs of a browser refresh at the same moment.

Whoever changes these rows has locked the user's row first.
"""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, bindparam, delete, insert, select, update

from app.database import Connection, Database, retry_on_conflict, utc_after, utc_now
from app.tables import refresh_tokens as tokens

LIFETIME_SECONDS = 30 * 24 * 3600
GRACE_SECONDS = 10
MAX_TOKEN_LENGTH = 128
FAMILY_BYTES = 16
PURGE_BATCH = 500


@dataclass(frozen=True, slots=True)
class Client:
    """Who sends a request. `address` shares out the machine, and `digest` tells one client from another."""

    address: str
    digest: str


@dataclass(frozen=True, slots=True)
class FoundToken:
    """The row of a token: its user, its family, and whether it was sent as a cookie."""

    user_id: int
    family: str
    is_cookie: bool
    created_at: datetime


def digest_token(token: str) -> str:
    """SHA-256 in hex. A random token needs no slow hash."""
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


async def find_token(database: Database, token: str) -> FoundToken | None:
    """The token's row, whether it is still valid or not."""
    async with database.read() as connection:
        row = (await connection.execute(_FIND, {"digest": digest_token(token)})).one_or_none()
    return None if row is None else FoundToken(*row)


async def issue_token(
    connection: Connection, user_id: int, client: Client, *, is_cookie: bool, family: str | None = None
) -> str:
    """A new token, of a new family unless one is given. The clear text cannot be read again."""
    token = secrets.token_urlsafe(32)
    await connection.execute(
        insert(tokens).values(
            user_id=user_id,
            family=family or secrets.token_hex(FAMILY_BYTES),
            digest=digest_token(token),
            client=client.digest,
            is_cookie=is_cookie,
            created_at=utc_now(),
            expires_at=utc_after(LIFETIME_SECONDS),
        )
    )
    return token


async def use_token(connection: Connection, token: str, client: Client) -> bool:
    """Uses the token up. False if it is not valid; the family of a token that was used before has then ended."""
    digest = digest_token(token)
    updated = await connection.execute(_USE, {"token": digest, "by": client.digest})
    if updated.rowcount:
        return True
    row: Row[Any] | None = (await connection.execute(_FIND_USED, {"digest": digest})).one_or_none()
    if row is None or row.revoked_at is not None or row.used_at is None:
        return False
    if row.is_recent and row.client == client.digest:
        return True
    await end_family(connection, row.family)
    return False


async def end_family(connection: Connection, family: str) -> None:
    """Ends one log-in."""
    await connection.execute(_END_FAMILY, {"of": family})


async def end_families(connection: Connection, user_id: int) -> None:
    """Ends every log-in of the user."""
    await connection.execute(_END_ALL, {"of": user_id})


async def purge_expired(database: Database) -> int:
    """Deletes expired tokens. Returns their number. Until then a used token shows that somebody uses it again."""
    purged = 0
    while ids := await _find_expired(database):
        await _delete(database, ids)
        purged += len(ids)
    return purged


async def _find_expired(database: Database) -> list[int]:
    async with database.read() as connection:
        return list(await connection.scalars(_EXPIRED))


@retry_on_conflict
async def _delete(database: Database, ids: list[int]) -> None:
    async with database.begin() as connection:
        await connection.execute(delete(tokens).where(tokens.c.id.in_(ids)))


_FIND = select(tokens.c.user_id, tokens.c.family, tokens.c.is_cookie, tokens.c.created_at).where(
    tokens.c.digest == bindparam("digest")
)
_FIND_USED = select(
    tokens.c.family,
    tokens.c.client,
    tokens.c.used_at,
    tokens.c.revoked_at,
    ((tokens.c.used_at >= utc_after(-GRACE_SECONDS)) & (tokens.c.expires_at > utc_now())).label("is_recent"),
).where(tokens.c.digest == bindparam("digest"))
_USE = (
    update(tokens)
    .where(
        tokens.c.digest == bindparam("token"),
        tokens.c.used_at.is_(None),
        tokens.c.revoked_at.is_(None),
        tokens.c.expires_at > utc_now(),
    )
    .values(used_at=utc_now(), client=bindparam("by"))
)
_END_FAMILY = (
    update(tokens).where(tokens.c.family == bindparam("of"), tokens.c.revoked_at.is_(None)).values(revoked_at=utc_now())
)
_END_ALL = (
    update(tokens)
    .where(tokens.c.user_id == bindparam("of"), tokens.c.revoked_at.is_(None))
    .values(revoked_at=utc_now())
)
_EXPIRED = select(tokens.c.id).where(tokens.c.expires_at < utc_now()).order_by(tokens.c.expires_at).limit(PURGE_BATCH)
