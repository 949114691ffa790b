"""Queries for a user's points: the balance and the ledger records."""

import functools
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import BindParameter, ColumnElement, bindparam, func, select

from app.database import START, Connection, Database, PageQuery
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
    database: Database,
    user_id: int,
    *,
    kind: str | None,
    task_no: str | None,
    page: int,
    size: int,
    start: datetime | None = None,
    end: datetime | None = None,
) -> tuple[list[dict[str, Any]], int]:
    """One page of the user's ledger entries, newest first, and their number up to MAX_RECORDS. Pages count from 1.

    `start` and `end` are the first moment of the period and the first one after it.
    """
    values: dict[str, Any] = {"user": user_id, "kind": kind, "task_no": task_no}
    has_period = start is not None or end is not None
    async with database.read_list(user_id) as connection:
        if has_period:
            values["first"], values["last"] = await seq_range(connection, user_id, start, end)
        query = _filtered(bool(kind), bool(task_no), has_period) if kind or task_no or has_period else _ALL
        return await query.read(connection, values, page=page, size=size, reach=MAX_RECORDS)


async def seq_range(
    connection: Connection, user_id: int, start: datetime | None, end: datetime | None
) -> tuple[int, int]:
    """The numbers of the first and the last entry of a period; the last is smaller if there is none.

    No index has the time of an entry. But entries of an account are numbered in the order of their times, so twenty
    look-ups find the first of a million entries at or after a time.
    """
    newest = int(await connection.scalar(_COUNT, {"user": user_id}) or 0)
    first = 1 if start is None else await _first_seq(connection, user_id, start, newest)
    last = newest if end is None else await _first_seq(connection, user_id, end, newest) - 1
    return first, last


async def _first_seq(connection: Connection, user_id: int, moment: datetime, newest: int) -> int:
    low, high = 1, newest + 1
    while low < high:
        middle = (low + high) // 2
        time = await connection.scalar(_TIME, {"user": user_id, "seq": middle})
        if time is not None and time < moment:
            low = middle + 1
        else:
            high = middle
    return low


_user: BindParameter[int] = bindparam("user")
_ACCOUNTS = select(
    points_accounts.c.user_id,
    spendable_points().label("available"),
    points_accounts.c.held,
    next_expiry().label("expires"),
).where(points_accounts.c.user_id.in_(bindparam("users", expanding=True)))
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


@functools.cache
def _filtered(by_kind: bool, by_task: bool, by_period: bool) -> PageQuery:
    conditions: list[ColumnElement[bool]] = [ledger.c.user_id == _user]
    if by_kind:
        conditions.append(ledger.c.kind == bindparam("kind"))
    if by_task:
        conditions.append(tasks.c.task_no == bindparam("task_no"))
    if by_period:
        conditions.append(ledger.c.seq.between(bindparam("first"), bindparam("last")))
    matching = select(ledger.c.id).select_from(_ENTRIES if by_task else ledger).where(*conditions)
    return PageQuery(_SHOWN, ledger.c.id, matching=matching, order=_NEWEST)


_SHOWN = select(*_RECORD).select_from(_ENTRIES)
_NEWEST = (ledger.c.seq.desc(),)
# The entries of an account are numbered from 1 without a gap, so the newest number is their count, and a page begins
# at a number. However deep it is, no more than its own entries are read.
_newest = ledger.alias("newest")
_COUNT = select(func.coalesce(func.max(_newest.c.seq), 0)).where(_newest.c.user_id == _user)
_TIME = select(ledger.c.created_at).where(ledger.c.user_id == _user, ledger.c.seq == bindparam("seq"))
_ALL = PageQuery(
    _SHOWN,
    ledger.c.id,
    matching=select(ledger.c.id).where(ledger.c.user_id == _user, ledger.c.seq <= _COUNT.scalar_subquery() - START),
    order=_NEWEST,
    counted=_COUNT,
    skips=True,
)
