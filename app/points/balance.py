"""Queries for a user's points: the balance and the ledger records."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, bindparam, select

from app.database import Connection, Database, read_page
from app.points.lots import next_expiry, spendable_points
from app.tables import points_accounts, tasks
from app.tables import points_ledger as ledger

MAX_RECORDS = 1_000_000
"""How far a list of records reaches. It has no filter by time, and its index is small."""


@dataclass(frozen=True, slots=True)
class Balance:
    """Points of a user. `available` can be spent, `held` belongs to running tasks, `expires` is the next expiry."""

    available: int
    held: int
    expires: datetime | None = None


async def get_balance(database: Database, user_id: int) -> Balance:
    """The newest committed balance. It is zero for a user who never had points."""
    return await database.load(_read_balances, user_id) or Balance(0, 0)


async def _read_balances(connection: Connection, user_ids: set[int]) -> dict[int, Balance]:
    rows = await connection.execute(_ACCOUNTS, {"users": sorted(user_ids)})
    return {row.user_id: Balance(row.available, row.held, row.expires) for row in rows}


async def list_records(
    database: Database, user_id: int, *, kind: str | None, task_no: str | None, page: int, size: int
) -> tuple[list[dict[str, Any]], int]:
    """One page of the user's ledger entries, newest first, and their number up to MAX_RECORDS. Pages count from 1."""
    conditions: list[ColumnElement[bool]] = [ledger.c.user_id == user_id]
    if kind:
        conditions.append(ledger.c.kind == kind)
    if task_no:
        conditions.append(tasks.c.task_no == task_no)
    matching = select(ledger.c.id).select_from(_ENTRIES if task_no else ledger).where(*conditions)
    async with database.read_list(user_id) as connection:
        return await read_page(
            connection,
            select(*_RECORD).select_from(_ENTRIES),
            ledger.c.id,
            matching=matching,
            order=(ledger.c.seq.desc(),),
            page=page,
            size=size,
            reach=MAX_RECORDS,
        )


_account = points_accounts.alias()
_ACCOUNTS = select(
    _account.c.user_id,
    spendable_points(_account.c.user_id).label("available"),
    _account.c.held,
    next_expiry(_account.c.user_id).label("expires"),
).where(_account.c.user_id.in_(bindparam("users", expanding=True)))
_ENTRIES = ledger.outerjoin(tasks, tasks.c.id == ledger.c.task_id)
_RECORD = (
    ledger.c.id,
    ledger.c.kind,
    ledger.c.points,
    ledger.c.balance_after,
    tasks.c.task_no,
    ledger.c.remark,
    ledger.c.created_at,
)
