"""Signing secrets: a user has one for `callbackUrl`, and each endpoint has its own. Both rotate alike."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, Table, Update, bindparam, select, update

from app.database import Database, insert_ignore, retry_on_conflict, utc_after, utc_now
from app.tables import webhook_secrets
from app.webhooks.signing import new_secret

ROTATION_OVERLAP_SECONDS = 24 * 3600.0
"""How long the previous secret also signs after a rotation."""


@dataclass(frozen=True, slots=True)
class SigningSecrets:
    """A secret, the previous secret while it still signs, and the database's time when both were read."""

    secret: str
    previous: str | None
    previous_until: datetime | None
    now: datetime

    def active(self) -> tuple[str, ...]:
        """The secrets that sign now, newest first."""
        return (self.secret,) if self.previous is None else (self.secret, self.previous)


async def get_secrets(database: Database, user_id: int) -> SigningSecrets:
    """The user's secrets. The first call creates one."""
    async with database.read() as connection:
        row = (await connection.execute(_MINE, {"user": user_id})).one_or_none()
    if row is None:
        await _create(database, user_id)
        return await get_secrets(database, user_id)
    return secrets_from_row(row)


@retry_on_conflict
async def rotate_secrets(database: Database, user_id: int) -> SigningSecrets:
    """A new secret for the user. A secret that an earlier rotation replaced stops signing at once."""
    await get_secrets(database, user_id)
    async with database.begin() as connection:
        await connection.execute(rotation(webhook_secrets, webhook_secrets.c.user_id == user_id))
        return secrets_from_row((await connection.execute(_MINE, {"user": user_id})).one())


@retry_on_conflict
async def _create(database: Database, user_id: int) -> None:
    async with database.begin() as connection:
        insert = insert_ignore(connection.dialect.name, webhook_secrets, "user_id")
        await connection.execute(insert.values(user_id=user_id, secret=new_secret(), created_at=utc_now()))


def secrets_from_row(row: Row[*tuple[Any, ...]]) -> SigningSecrets:
    """The secrets from a row with the columns of `secrets_columns`."""
    if row.previous_until is None or row.previous_until <= row.now:
        return SigningSecrets(row.secret, None, None, row.now)
    return SigningSecrets(row.secret, row.previous, row.previous_until, row.now)


def secrets_columns(table: Table) -> list[ColumnElement[Any]]:
    return [table.c.secret, table.c.previous, table.c.previous_until, utc_now().label("now")]


def rotation(table: Table, condition: ColumnElement[bool]) -> Update:
    """An UPDATE that rotates the secret. MySQL assigns from left to right, so `previous` comes first."""
    return (
        update(table)
        .where(condition)
        .ordered_values(
            (table.c.previous, table.c.secret),
            (table.c.previous_until, utc_after(ROTATION_OVERLAP_SECONDS)),
            (table.c.secret, new_secret()),
        )
    )


_MINE = select(*secrets_columns(webhook_secrets)).where(webhook_secrets.c.user_id == bindparam("user"))
