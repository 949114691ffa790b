"""Statements: a user's ledger entries of a period, from the opening to the closing balance, read in short pieces.

The numbers of the first and the last entry are fixed before the first piece is read, so entries that are written
meanwhile change nothing. Between two pieces no connection is held, however slowly the caller reads.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import BindParameter, Row, bindparam, select

from app.database import Connection, Database
from app.datetimes import format_local
from app.errors import RateLimited, Unavailable
from app.points.balance import seq_range
from app.points.ledger import expire_account
from app.reports.csv_text import BOM, Cell, csv_lines
from app.tables import points_ledger as ledger
from app.tables import tasks

MAX_DAYS = 366
PIECE_ROWS = 200  # about 25 KB, so a caller who stops reading holds little memory
TRIES, RETRY_SECONDS = 5, 1.0
HEADER = ("createTime", "kind", "points", "balanceAfter", "taskNo", "remark", "id")
OPENING, CLOSING = "opening", "closing"


@dataclass(frozen=True, slots=True)
class Statement:
    """The entries from number `first` to `last`, and the balances around them. A filter leaves entries out."""

    user_id: int
    start: datetime
    end: datetime
    first: int
    last: int
    opening: int
    closing: int
    kind: str | None = None
    task_no: str | None = None

    @property
    def adds_up(self) -> bool:
        """Whether each change of the balance is in it."""
        return not self.kind and not self.task_no


async def open_statement(
    database: Database,
    user_id: int,
    start: datetime,
    end: datetime | None,
    *,
    kind: str | None = None,
    task_no: str | None = None,
) -> Statement:
    """The statement of a period. `end` is the first moment after it; None for a statement until now.

    Points that are due expire first, so the closing balance of a statement until now is the balance.
    """
    await expire_account(database, user_id)
    async with database.read_list(user_id) as connection:
        first, last = await seq_range(connection, user_id, start, end)
        opening = await _balance_after(connection, user_id, first - 1)
        closing = await _balance_after(connection, user_id, last) if last >= first else opening
    return Statement(user_id, start, end or datetime.now(UTC), first, last, opening, closing, kind, task_no)


async def statement_csv(database: Database, statement: Statement, zone: ZoneInfo) -> AsyncIterator[bytes]:
    """The statement as CSV, in pieces. An error ends it in the middle; then its closing balance is missing.

    The sum of `points` and the opening balance is the closing balance. With a filter there are no balances.
    """
    lines: list[tuple[Cell, ...]] = [HEADER]
    if statement.adds_up:
        opening = format_local(statement.start, zone)
        lines.append((opening, OPENING, None, statement.opening, None, None, None))
    yield (BOM + csv_lines(lines)).encode()
    after = statement.first - 1
    while after < statement.last:
        until = min(after + PIECE_ROWS, statement.last)
        rows = await _read_piece(database, statement, after, until)
        if rows:
            yield csv_lines(_line(row, zone) for row in rows).encode("utf-8", "replace")
        after = until
    if statement.adds_up:
        closing = format_local(statement.end, zone)
        yield csv_lines([(closing, CLOSING, None, statement.closing, None, None, None)]).encode()


async def _read_piece(database: Database, statement: Statement, after: int, until: int) -> list[Row[*tuple[Any, ...]]]:
    """The answer has begun, so an error can only cut it off. A user with many lists waits a little longer."""
    values = {"user": statement.user_id, "after": after, "until": until}
    for attempt in range(1, TRIES + 1):
        try:
            async with database.read_list(statement.user_id) as connection:
                rows = (await connection.execute(_PIECE, values)).all()
            return [row for row in rows if _is_shown(statement, row)]
        except (RateLimited, Unavailable):
            if attempt == TRIES:
                raise
        await asyncio.sleep(RETRY_SECONDS)
    raise Unavailable


def _is_shown(statement: Statement, row: Row[*tuple[Any, ...]]) -> bool:
    return statement.kind in {None, row.kind} and statement.task_no in {None, row.task_no}


def _line(row: Row[*tuple[Any, ...]], zone: ZoneInfo) -> tuple[Cell, ...]:
    time = format_local(row.created_at, zone)
    return (time, row.kind, row.points, row.balance_after, row.task_no, row.remark, row.id)


async def _balance_after(connection: Connection, user_id: int, seq: int) -> int:
    return int(await connection.scalar(_BALANCE, {"user": user_id, "seq": seq}) or 0)


_user: BindParameter[int] = bindparam("user")
_PIECE = (
    select(
        ledger.c.id,
        ledger.c.kind,
        ledger.c.points,
        ledger.c.balance_after,
        ledger.c.remark,
        ledger.c.created_at,
        tasks.c.task_no,
    )
    .select_from(ledger.outerjoin(tasks, tasks.c.id == ledger.c.task_id))
    .where(ledger.c.user_id == _user, ledger.c.seq > bindparam("after"), ledger.c.seq <= bindparam("until"))
    .order_by(ledger.c.seq)
)
_BALANCE = select(ledger.c.balance_after).where(ledger.c.user_id == _user, ledger.c.seq == bindparam("seq"))
