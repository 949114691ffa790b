"""Proves by trying that the database refuses what it must: CHECKs, and changes to the ledger's past.

MySQL before 8.0.16 reads CHECKs and forgets them, and tables made there lack them for good, whatever runs them later.
Catalogues tell of that only to users with more rights than ours needs, so the forbidden is done, and rolled back.
"""

import secrets
import sqlite3
from collections.abc import Callable
from typing import Any

import structlog
from sqlalchemy import Executable, bindparam, delete, func, insert, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import Unavailable
from app.tables import points_accounts, points_ledger

log = structlog.get_logger()

NOBODY = -1  # no user has this id
CHECK_VIOLATED = frozenset({3819, 4025})  # MySQL, MariaDB
APPEND_ONLY = "append-only"  # in the words of our triggers


class DatabaseUnfit(Unavailable):
    """The database would let the books be broken. To callers it is away; the operator reads why."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason
        log.error("database_unfit", reason=reason)


async def prove(connection: AsyncConnection) -> None:
    """Raises DatabaseUnfit. Nothing stays behind, but for a number that the ledger's ids leave out."""
    seq = secrets.randbelow(2**31)  # of many processes that start together each has a row of its own
    transaction = await connection.begin()
    try:
        if not await _is_refused(connection, _UNBALANCED, {}, _is_check):
            raise DatabaseUnfit(
                "the database does not enforce CHECK constraints, so that points could be made or lost: it wants MySQL"
                " 8.0.16, MariaDB 10.11 or newer, and tables made there by `gateway migrate`"
            )
        await connection.execute(_ENTRY, {"seq": seq, "ref": f"proof:{seq}"})
        for verb, statement in _CHANGES.items():
            if not await _is_refused(connection, statement, {"own": seq}, _is_trigger):
                raise DatabaseUnfit(
                    f"the trigger points_ledger_no_{verb} is missing, so that the ledger's past could be changed:"
                    " see migrations/versions/0003_ledger_triggers.py"
                )
    finally:
        await transaction.rollback()


async def _is_refused(
    connection: AsyncConnection,
    statement: Executable,
    values: dict[str, Any],
    is_meant: Callable[[BaseException | None], bool],
) -> bool:
    """Whether the database would not; an error that speaks of something else is raised."""
    try:
        await connection.execute(statement, values)
    except DBAPIError as error:
        if not is_meant(error.orig):
            raise
        return True
    return False


def _is_check(refusal: BaseException | None) -> bool:
    if isinstance(refusal, sqlite3.IntegrityError):
        return "CHECK constraint failed" in str(refusal)
    return bool(refusal and refusal.args and refusal.args[0] in CHECK_VIOLATED)


def _is_trigger(refusal: BaseException | None) -> bool:
    return APPEND_ONLY in str(refusal)


_UNBALANCED = insert(points_accounts).values(
    user_id=NOBODY, available=1, held=0, granted=0, spent=0, expired=0, seq=0, updated_at=func.current_timestamp()
)
_ENTRY = insert(points_ledger).values(
    user_id=NOBODY,
    kind="adjust",
    points=0,
    held=0,
    balance_after=0,
    remark="",
    created_at=func.current_timestamp(),
)
_own = (points_ledger.c.user_id == NOBODY) & (points_ledger.c.seq == bindparam("own"))
_CHANGES: dict[str, Executable] = {
    "update": update(points_ledger).where(_own).values(remark="changed"),
    "delete": delete(points_ledger).where(_own),
}
