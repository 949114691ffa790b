"""Queries of tasks. Each has the caller's user id: another user's task is not found, with the same message."""

import functools
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import BindParameter, ColumnElement, Select, bindparam, select

from app.database import Connection, Database, PageQuery, StatementTimeout, count_up_to_reach, like_contains
from app.errors import NotFound
from app.tables import ERASED_UPDATE_TIME, tasks
from app.tasks.view import PUBLIC_COLUMNS

MAX_TASK_NO_LENGTH = 40
MAX_SEARCHED = 2000
"""A search reads whole prompts. 2,000 prompts of the greatest length are 120 MB."""


@dataclass(frozen=True, slots=True)
class Filters:
    """Filters of a list; None means any. Times have a zone; `end` includes its whole second."""

    task_type: str | None = None
    status: str | None = None
    model_name: str | None = None
    end_user: str | None = None
    keyword: str | None = None
    start: datetime | None = None
    end: datetime | None = None


async def get_task(database: Database, user_id: int, task_no: str) -> dict[str, Any]:
    """The row for `view_task`. Raises NotFound where it is not this user's task."""
    if len(task_no) <= MAX_TASK_NO_LENGTH and task_no.isascii():  # it is read together with those of others
        row = await database.load(_read_tasks, (user_id, task_no))
        if row is not None:
            return row
    raise NotFound("任务不存在")


async def _read_tasks(connection: Connection, owned: set[tuple[int, str]]) -> dict[tuple[int, str], dict[str, Any]]:
    """The rows by user and number. A number that another user asks for finds nothing."""
    rows = await connection.execute(_BY_NUMBER, {"task_numbers": sorted({task_no for _, task_no in owned})})
    return {(row.user_id, row.task_no): dict(row._mapping) for row in rows}


async def list_tasks(
    database: Database, user_id: int, filters: Filters, *, page: int, size: int
) -> tuple[list[dict[str, Any]], int]:
    """One page, newest first, and the number of all matching tasks up to MAX_REACH.

    A keyword is searched in the newest MAX_SEARCHED tasks that match the other filters. Raises InvalidParameter for a
    page beyond MAX_REACH, RateLimited, and Unavailable if the query takes too long.
    """
    names = frozenset(name for name in _CONDITIONS if getattr(filters, name))
    values = {name: getattr(filters, name) for name in names} | {"user": user_id}
    if filters.end:
        values["end"] = filters.end.replace(microsecond=999_999)
    try:
        async with database.read_list(user_id) as connection:
            if filters.keyword:
                return await _search(connection, _matching(names), values, filters.keyword, page, size)
            if names:
                return await _page_query(names).read(connection, values, page=page, size=size)
            return await _list_all(database, connection, user_id, page, size)
    except StatementTimeout as error:
        raise StatementTimeout("查询时间过长，请用 startTime 和 endTime 缩小范围") from error


async def _list_all(
    database: Database, connection: Connection, user_id: int, page: int, size: int
) -> tuple[list[dict[str, Any]], int]:
    """A page without filters. Old tasks of a user with many are counted once a minute, not for every page."""
    counts, values = database.task_counts, {"user": user_id}
    if known := counts.get(user_id):
        since, number = known
        return await _SINCE.read(connection, values | {"since": since}, page=page, size=size, counted_before=number)
    rows, total = await _page_query(frozenset()).read(connection, values, page=page, size=size)
    if rows and total > counts.MIN_ROWS:
        until = counts.settled_at(rows[0]["now"])
        number = await connection.scalar(_COUNT_SETTLED, values | {"until": until, "page_reach": total})
        counts.put(user_id, until, int(number or 0))
    return rows, total


async def _search(
    connection: Connection, matching: Select[Any], values: dict[str, Any], keyword: str, page: int, size: int
) -> tuple[list[dict[str, Any]], int]:
    """Reads each prompt once: all ids that are found come in one answer."""
    searched = matching.order_by(*_NEWEST).limit(MAX_SEARCHED).subquery()
    pattern, escape = like_contains(keyword)
    found = (
        select(tasks.c.id)
        .join(searched, searched.c.id == tasks.c.id)
        .where(tasks.c.prompt.like(pattern, escape=escape))
        .order_by(*_NEWEST)
    )
    ids = list(await connection.scalars(found, values))
    shown = ids[(page - 1) * size : page * size]
    rows = await connection.execute(_SHOWN.where(tasks.c.id.in_(shown)).order_by(*_NEWEST)) if shown else ()
    return [dict(row._mapping) for row in rows], len(ids)


async def get_task_for_operator(database: Database, task_no: str) -> dict[str, Any]:
    """The whole row with its history, for `gateway tasks show`. Never for callers."""
    async with database.read() as connection:
        row = (await connection.execute(select(tasks).where(tasks.c.task_no == task_no))).one_or_none()
    if row is None:
        raise NotFound("任务不存在")
    return dict(row._mapping)


_NEWEST = (tasks.c.created_at.desc(), tasks.c.id.desc())
_SHOWN = select(*PUBLIC_COLUMNS)
_user: BindParameter[int] = bindparam("user")
_erased = tasks.alias("erased")
# Without the hint MySQL may read the whole table for the few erased rows.
_ERASED = (
    select(_erased.c.id)
    .where(_erased.c.user_id == _user, _erased.c.updated_at <= ERASED_UPDATE_TIME)
    .with_hint(_erased, "FORCE INDEX (ix_tasks_changed)", "mysql")
)
_CONDITIONS: dict[str, ColumnElement[bool]] = {
    "task_type": tasks.c.task_type == bindparam("task_type"),
    "status": tasks.c.status == bindparam("status"),
    "model_name": tasks.c.model_name == bindparam("model_name"),
    "end_user": tasks.c.end_user == bindparam("end_user"),
    "start": tasks.c.created_at >= bindparam("start"),
    "end": tasks.c.created_at <= bindparam("end"),
}


def _matching(names: frozenset[str]) -> Select[Any]:
    """The ids of a user's tasks that match the filters of these names.

    The erased ones come from an index of their own, so that no row is read for `erased_at`.
    """
    mine = select(tasks.c.id).where(tasks.c.user_id == _user, tasks.c.id.not_in(_ERASED))
    return mine.where(*(_CONDITIONS[name] for name in sorted(names)))


@functools.cache
def _page_query(names: frozenset[str]) -> PageQuery:
    return PageQuery(_SHOWN, tasks.c.id, matching=_matching(names), order=_NEWEST)


_ALL = _matching(frozenset())
_SINCE = PageQuery(
    _SHOWN,
    tasks.c.id,
    matching=_ALL,
    order=_NEWEST,
    counted=count_up_to_reach(_ALL.where(tasks.c.created_at > bindparam("since"))),
)
# Without the hint MySQL may take another index of the user's tasks and read every row for its time.
_COUNT_SETTLED = count_up_to_reach(
    _ALL.where(tasks.c.created_at <= bindparam("until")).with_hint(tasks, "FORCE INDEX (ix_tasks_newest)", "mysql")
)
_BY_NUMBER = select(*PUBLIC_COLUMNS, tasks.c.user_id).where(
    tasks.c.task_no.in_(bindparam("task_numbers", expanding=True)), tasks.c.erased_at.is_(None)
)
