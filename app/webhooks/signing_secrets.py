"""Whose secret signs: one a user for `callbackUrl`s, one of its own for each endpoint; both are rotated alike."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, Table, Update, bindparam, select, update

from app.database import Database, insert_ignore, retry_on_conflict, utc_after, utc_now
from app.tables import webhook_secrets
from app.webhooks.signing import new_secret

COMMIT_LAG_SECONDS = 24 * 3600.0
"""How long the secret before a rotation still signs beside the new one."""


@dataclass(frozen=True, slots=True)
class SigningSecrets:
    """A secret, the one before it while that still signs, and the database's clock when they were read."""

    secret: str
    previous: str | None
    previous_until: datetime | None
    now: datetime

    def active(self) -> tuple[str, ...]:
        """The newest first."""
        return (self.secret,) if self.previous is None else (self.secret, self.previous)


async def get_secrets(database: Database, user_id: int) -> SigningSecrets:
    """The user's; made at the first need."""
    async with database.read() as connection:
        row = (await connection.execute(_MINE, {"user": user_id})).one_or_none()
    if row is None:
        await _make(database, user_id)
        return await get_secrets(database, user_id)
    return secrets_from_row(row)


@retry_on_conflict
async def rotate_secrets(database: Database, user_id: int) -> SigningSecrets:
    """A new secret for the user; one that was replaced less than a day ago signs no longer."""
    await get_secrets(database, user_id)
    async with database.begin() as connection:
        await connection.execute(rotation(webhook_secrets, webhook_secrets.c.user_id == user_id))
        return secrets_from_row((await connection.execute(_MINE, {"user": user_id})).one())


@retry_on_conflict
async def _make(database: Database, user_id: int) -> None:
    async with database.begin() as connection:
        absent = insert_ignore(connection.dialect.name, webhook_secrets, "user_id")
        await connection.execute(absent.values(user_id=user_id, secret=new_secret(), created_at=utc_now()))


def secrets_from_row(row: Row[*tuple[Any, ...]]) -> SigningSecrets:
    """From a row with the columns of `secrets_columns`."""
    if row.previous_until is None or row.previous_until <= row.now:
        return SigningSecrets(row.secret, None, None, row.now)
    return SigningSecrets(row.secret, row.previous, row.previous_until, row.now)


def secrets_columns(table: Table) -> list[ColumnElement[Any]]:
    return [table.c.secret, table.c.previous, table.c.previous_until, utc_now().label("now")]


def rotation(table: Table, which: ColumnElement[bool]) -> Update:
    """MySQL assigns from left to right: the old secret is kept before the new one takes its place."""
    return (
        update(table)
        .where(which)
        .ordered_values(
            (table.c.previous, table.c.secret),
            (table.c.previous_until, utc_after(COMMIT_LAG_SECONDS)),
            (table.c.secret, new_secret()),
        )
    )


_MINE = select(*secrets_columns(webhook_secrets)).where(webhook_secrets.c.user_id == bindparam("user"))
