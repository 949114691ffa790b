"""Searches the tasks of all users, newest first, and reads one task for an admin.

A request reads at most MAX_SEARCHED tasks, however many there are, and says where the next request goes on. No filter
needs another one. A task number or the id of an upstream's job reads one row, and a user or a time reads only the
user's tasks or the tasks of that time.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import ColumnElement, Select, func, select

from app.database import Connection, Database, StatementTimeout
from app.errors import InvalidParameter, NotFound
from app.tables import admin_actions, tasks
from app.tasks.queries import MAX_TASK_NO_LENGTH
from app.tasks.submit.task_row import task_number
from app.tasks.view import SNIPPET_CHARACTERS

MAX_SEARCHED = 10_000
MAX_ACTIONS = 100
CLOCK_CHANGE = timedelta(hours=2)
"""A task number holds the local time of its submit. In the night when clocks go back, an hour comes twice."""


@dataclass(frozen=True, slots=True)
class TaskFilters:
    """None means any. Times have a zone; `end` includes its whole second."""

    task_no: str | None = None
    user_id: int | None = None
    key_id: int | None = None
    end_user: str | None = None
    status: str | None = None
    step: str | None = None
    model_name: str | None = None
    error_code: str | None = None
    upstream_task_id: str | None = None
    suspected_orphan: bool | None = None
    start: datetime | None = None
    end: datetime | None = None


@dataclass(frozen=True, slots=True)
class FoundTasks:
    """The found rows, newest first. A search that goes on below the task `next_before` finds older ones."""

    rows: list[Mapping[str, Any]]
    next_before: str | None


async def search_tasks(
    database: Database,
    admin_id: int,
    zone: ZoneInfo,
    actions: Mapping[str, Any],
    filters: TaskFilters,
    *,
    before: str | None,
    size: int,
) -> FoundTasks:
    """At most `size` tasks that match all filters, older than the task `before`. Raises InvalidParameter.

    `actions` are those of the providers: the id of a job is unique within its action.
    """
    for name, value in (("taskNo", filters.task_no), ("before", before)):
        if value is not None and not _is_number(value):
            raise InvalidParameter(name, "不是任务编号")
    try:
        async with database.read_list(admin_id) as connection:
            conditions = _conditions(filters, actions)
            if filters.task_no is not None or filters.upstream_task_id is not None:
                few = _SHOWN.where(*conditions, *_older_than(before)).order_by(tasks.c.task_no.desc())
                found = await _read(connection, few, size)
                return FoundTasks(found, found[-1]["task_no"] if len(found) == size else None)
            candidates, order = await _candidates(connection, zone, filters, before)
            limited = candidates.limit(MAX_SEARCHED).subquery()
            matching = _SHOWN.join(limited, limited.c.id == tasks.c.id).where(*conditions).order_by(*order)
            found = await _read(connection, matching, size)
            if len(found) == size:
                return FoundTasks(found, found[-1]["task_no"])
            last = select(tasks.c.task_no).where(
                tasks.c.id == candidates.offset(MAX_SEARCHED - 1).limit(1).scalar_subquery()
            )
            return FoundTasks(found, await connection.scalar(last))
    except StatementTimeout as error:
        raise StatementTimeout("查询时间过长，请用 startTime 和 endTime 缩小范围") from error


async def get_task_record(database: Database, task_no: str) -> dict[str, Any]:
    """The whole row, with `actions`: what admins did with it, newest first. Raises NotFound."""
    if not _is_number(task_no):
        raise NotFound("任务不存在")
    async with database.read() as connection:
        row = (await connection.execute(select(tasks).where(tasks.c.task_no == task_no))).one_or_none()
        if row is None or row.task_no != task_no:
            raise NotFound("任务不存在")
        done = (await connection.execute(_ACTIONS.where(admin_actions.c.target == task_no))).all()
    return {**row._mapping, "actions": [action._mapping for action in done]}


def _is_number(text: str) -> bool:
    return 0 < len(text) <= MAX_TASK_NO_LENGTH and text.isascii() and text.isprintable()


async def _read(connection: Connection, statement: Select[Any], size: int) -> list[Mapping[str, Any]]:
    return [row._mapping for row in await connection.execute(statement.limit(size))]


def _older_than(before: str | None) -> list[ColumnElement[bool]]:
    return [] if before is None else [tasks.c.task_no < before]


async def _candidates(
    connection: Connection, zone: ZoneInfo, filters: TaskFilters, before: str | None
) -> tuple[Select[Any], tuple[Any, ...]]:
    """The ids that one request may read, from an index alone, and the order that the index has."""
    if filters.user_id is None:
        conditions = [*_number_range(filters, zone), *_older_than(before)]
        order: tuple[Any, ...] = (tasks.c.task_no.desc(),)
    else:
        conditions = [tasks.c.user_id == filters.user_id, *_time_range(filters)]
        if before is not None:
            conditions += await _older_of_user(connection, before)
        order = (tasks.c.created_at.desc(), tasks.c.id.desc())
    return select(tasks.c.id).where(*conditions).order_by(*order), order


async def _older_of_user(connection: Connection, before: str) -> list[ColumnElement[bool]]:
    known = select(tasks.c.id, tasks.c.created_at).where(tasks.c.task_no == before)
    row = (await connection.execute(known)).one_or_none()
    if row is None:
        raise InvalidParameter("before", "任务不存在")
    is_older = (tasks.c.created_at < row.created_at) | ((tasks.c.created_at == row.created_at) & (tasks.c.id < row.id))
    return [tasks.c.created_at <= row.created_at, is_older]


def _number_range(filters: TaskFilters, zone: ZoneInfo) -> list[ColumnElement[bool]]:
    """The task numbers of the times that the filters name. `_time_range` then compares the times themselves."""
    found: list[ColumnElement[bool]] = []
    if filters.start is not None:
        found.append(tasks.c.task_no >= _number_at(filters.start, -CLOCK_CHANGE, zone))
    if filters.end is not None:
        found.append(tasks.c.task_no < _number_at(filters.end, CLOCK_CHANGE, zone))
    return found


def _number_at(moment: datetime, margin: timedelta, zone: ZoneInfo) -> str:
    """The start of the task numbers of this time."""
    try:
        return task_number((moment + margin).astimezone(zone), "")
    except OverflowError:  # the first or the last day of the calendar
        return "TASK-" if margin < timedelta() else "TASK-:"


def _time_range(filters: TaskFilters) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if filters.start is not None:
        found.append(tasks.c.created_at >= filters.start)
    if filters.end is not None:
        found.append(tasks.c.created_at <= filters.end.replace(microsecond=999_999))
    return found


def _conditions(filters: TaskFilters, actions: Mapping[str, Any]) -> list[ColumnElement[bool]]:
    found = _time_range(filters)
    for name in _EQUAL:
        value = getattr(filters, name)
        if value is not None:
            found.append(tasks.c[name] == value)
    if filters.upstream_task_id is not None:  # the index begins with the action
        found.append(tasks.c.action.in_(sorted(actions)))
    return found


_EQUAL = (
    "task_no",
    "user_id",
    "key_id",
    "end_user",
    "status",
    "step",
    "model_name",
    "error_code",
    "upstream_task_id",
    "suspected_orphan",
)
_SHOWN = select(
    tasks.c.task_no,
    tasks.c.user_id,
    tasks.c.key_id,
    tasks.c.end_user,
    tasks.c.model_name,
    tasks.c.task_type,
    tasks.c.status,
    tasks.c.step,
    tasks.c.progress,
    func.substr(tasks.c.prompt, 1, SNIPPET_CHARACTERS + 1).label("prompt"),
    tasks.c.points_cost,
    tasks.c.error_code,
    tasks.c.suspected_orphan,
    tasks.c.upstream_task_id,
    tasks.c.created_at,
    tasks.c.updated_at,
    tasks.c.completed_at,
)
_ACTIONS = (
    select(
        admin_actions.c.id,
        admin_actions.c.admin_id,
        admin_actions.c.action,
        admin_actions.c.reason,
        admin_actions.c.after,
        admin_actions.c.created_at,
    )
    .where(admin_actions.c.target_type == "task")
    .order_by(admin_actions.c.id.desc())
    .limit(MAX_ACTIONS)
)
