"""What admins do with points: top-ups, the search of the ledger, and redeem codes."""

import functools
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, bindparam, select

from app.accounts.users import user_exists
from app.admin.actions import Action, ActionResult, Admin, Change, perform, record
from app.database import Connection, Database, PageQuery, StatementTimeout
from app.errors import NotFound
from app.points import ledger, redeem_codes
from app.tables import points_ledger, tasks, users

MAX_EXPORTED = 100_000


async def grant(
    database: Database,
    admin: Admin,
    *,
    user_id: int,
    points: int,
    ref: str,
    remark: str = "",
    expires: datetime | None = None,
) -> tuple[bool, int]:
    """A top-up, with its row in the same transaction. Raises NotFound for an unknown user, and like `ledger.grant`.

    A top-up keeps the rules of the ledger: a known `ref` with other values is a GrantConflict.
    """
    if not await user_exists(database, user_id):
        raise NotFound("用户不存在")
    action = Action("points.grant", "user", str(user_id), {"points": points}, remark, ref)

    async def write_row(connection: Connection) -> None:
        balance = await ledger.balance_of(connection, user_id)
        after = {"points": points, "expires": expires and expires.isoformat(), "balance": balance}
        await record(connection, admin, action, before={"balance": balance - points}, after=after)

    return await ledger.grant(
        database, user_id=user_id, points=points, ref=ref, remark=remark, expires=expires, record=write_row
    )


# ------------------------------------------------------------------ redeem codes


async def create_codes(
    database: Database,
    admin: Admin,
    *,
    count: int,
    points: int,
    batch: str,
    expires: datetime | None = None,
    lot_days: int | None = None,
    reason: str = "",
    ref: str | None = None,
) -> tuple[ActionResult, list[str]]:
    """Creates a batch of codes, or adds to one. The codes are returned once: a repetition of `ref` returns none."""
    values = {"count": count, "points": points, "lotDays": lot_days, "expires": expires and expires.isoformat()}
    action = Action("codes.create", "codes", batch, values, reason, ref)
    new_codes: list[str] = []

    async def change(connection: Connection) -> Change:
        new_codes[:] = await redeem_codes.insert_codes(
            connection, count=count, points=points, batch=batch, expires=expires, lot_days=lot_days
        )
        return Change(None, {})

    result = await perform(database, admin, action, change)
    return result, new_codes if result.applied else []


async def void_codes(
    database: Database, admin: Admin, batch: str, *, reason: str = "", ref: str | None = None
) -> ActionResult:
    """Voids the unredeemed codes of a batch; `after` has their number, `voided`. Raises NotFound."""

    async def change(connection: Connection) -> Change:
        return Change(None, {"voided": await redeem_codes.void_codes(connection, batch)})

    return await perform(database, admin, Action("codes.void", "codes", batch, {}, reason, ref), change)


async def export_codes(database: Database, batch: str) -> list[dict[str, Any]]:
    """The codes of a batch without secrets: of each its first group and its state. Raises NotFound."""
    rows, _ = await redeem_codes.list_codes(database, batch, limit=MAX_EXPORTED)
    if not rows:
        raise NotFound("批次不存在")
    return rows


# ------------------------------------------------------------------ the ledger


@dataclass(frozen=True, slots=True)
class EntryFilters:
    """Filters of the search; None means any. Times have a zone; `end` includes its whole second."""

    user_id: int | None = None
    kind: str | None = None
    ref: str | None = None
    task_no: str | None = None
    start: datetime | None = None
    end: datetime | None = None


async def search_ledger(
    database: Database, reader_id: int, filters: EntryFilters, *, page: int, size: int
) -> tuple[list[dict[str, Any]], int]:
    """One page of the entries of all users, newest first, and the number of all matching ones up to MAX_REACH."""
    names = frozenset(name for name in _CONDITIONS if getattr(filters, name) is not None)
    values = {f"by_{name}": getattr(filters, name) for name in names}
    if filters.end:
        values["by_end"] = filters.end.replace(microsecond=999_999)
    try:
        async with database.read_list(reader_id) as connection:
            return await _page_query(names).read(connection, values, page=page, size=size)
    except StatementTimeout as error:
        raise StatementTimeout("查询时间过长，请按用户、任务或 ref 缩小范围") from error


_CONDITIONS: dict[str, ColumnElement[bool]] = {
    "user_id": points_ledger.c.user_id == bindparam("by_user_id"),
    "kind": points_ledger.c.kind == bindparam("by_kind"),
    "ref": points_ledger.c.ref == bindparam("by_ref"),
    "task_no": points_ledger.c.task_id
    == select(tasks.c.id).where(tasks.c.task_no == bindparam("by_task_no")).scalar_subquery(),
    "start": points_ledger.c.created_at >= bindparam("by_start"),
    "end": points_ledger.c.created_at <= bindparam("by_end"),
}


@functools.cache
def _page_query(names: frozenset[str]) -> PageQuery:
    matching = select(points_ledger.c.id).where(*(_CONDITIONS[name] for name in sorted(names)))
    return PageQuery(_SHOWN, points_ledger.c.id, matching=matching, order=(points_ledger.c.id.desc(),))


_SHOWN = select(*points_ledger.c, tasks.c.task_no, users.c.username).select_from(
    points_ledger.outerjoin(tasks, tasks.c.id == points_ledger.c.task_id).outerjoin(
        users, users.c.id == points_ledger.c.user_id
    )
)
