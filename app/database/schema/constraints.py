"""Verifies that the database enforces CHECK constraints and refuses changes to old ledger entries.

MySQL before 8.0.16 parses CHECKs and drops them, and tables made there lack them for good. The catalogue shows this
only to users with more rights than the gateway needs. So the check tries forbidden statements and rolls back.
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

NO_USER_ID = -1  # no user has this id
CHECK_VIOLATED = frozenset({3819, 4025})  # MySQL, MariaDB
APPEND_ONLY = "append-only"  # part of the message of our triggers


class UnsafeDatabase(Unavailable):
    """The database does not protect the ledger. Callers see it as unavailable; the log gives the reason."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason
        log.error("database_unsafe", reason=reason)


async def verify_constraints(connection: AsyncConnection) -> None:
    """Raises UnsafeDatabase. Leaves nothing behind, except a gap in the ledger's ids."""
    seq = secrets.randbelow(2**31)  # processes that start together use different rows
    transaction = await connection.begin()
    try:
        if not await _is_refused(connection, _UNBALANCED_ACCOUNT, {}, _is_check_violation):
            raise UnsafeDatabase(
                "the database does not enforce CHECK constraints, so points could be created or lost: use MySQL"
                " 8.0.16, MariaDB 10.11 or newer, and create the tables there with `gateway migrate`"
            )
        await connection.execute(_LEDGER_ENTRY, {"seq": seq, "ref": f"proof:{seq}"})
        for verb, statement in _LEDGER_CHANGES.items():
            if not await _is_refused(connection, statement, {"entry_seq": seq}, _is_trigger_error):
                raise UnsafeDatabase(
                    f"the trigger points_ledger_no_{verb} is missing, so old ledger entries could be changed:"
                    " see migrations/versions/0003_ledger_triggers.py"
                )
    finally:
        await transaction.rollback()


async def _is_refused(
    connection: AsyncConnection,
    statement: Executable,
    values: dict[str, Any],
    is_expected: Callable[[BaseException | None], bool],
) -> bool:
    """Whether the database refuses the statement with the expected error. Any other error is raised."""
    try:
        await connection.execute(statement, values)
    except DBAPIError as error:
        if not is_expected(error.orig):
            raise
        return True
    return False


def _is_check_violation(error: BaseException | None) -> bool:
    if isinstance(error, sqlite3.IntegrityError):
        return "CHECK constraint failed" in str(error)
    return bool(error and error.args and error.args[0] in CHECK_VIOLATED)


def _is_trigger_error(error: BaseException | None) -> bool:
    return APPEND_ONLY in str(error)


_UNBALANCED_ACCOUNT = insert(points_accounts).values(
    user_id=NO_USER_ID, available=1, held=0, granted=0, spent=0, expired=0, seq=0, updated_at=func.current_timestamp()
)
_LEDGER_ENTRY = insert(points_ledger).values(
    user_id=NO_USER_ID,
    kind="adjust",
    points=0,
    held=0,
    balance_after=0,
    remark="",
    created_at=func.current_timestamp(),
)
_is_entry = (points_ledger.c.user_id == NO_USER_ID) & (points_ledger.c.seq == bindparam("entry_seq"))
_LEDGER_CHANGES: dict[str, Executable] = {
    "update": update(points_ledger).where(_is_entry).values(remark="changed"),
    "delete": delete(points_ledger).where(_is_entry),
}
