"""Usage: how many tasks of a period there are, what they cost and how long they took, by day, model, key or end user.

A task belongs to the day on which it was submitted. Its points are charged then; those of a failed task are refunded.
Erased tasks count, because the ledger keeps their points.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import (
    CTE,
    ColumnElement,
    Integer,
    Row,
    Select,
    and_,
    bindparam,
    case,
    func,
    literal,
    null,
    select,
)

from app.database import Connection, Database, StatementTimeout, local_day, seconds_between
from app.errors import InvalidParameter
from app.reports.period import Days
from app.tables import UtcTime, api_keys, tasks

Dimension = Literal["day", "model", "key", "endUser"]
DIMENSIONS: tuple[Dimension, ...] = ("day", "model", "key", "endUser")
MAX_DAYS = 92
MAX_ROWS = 5000
TOO_LONG = "查询时间过长，请用 from 和 to 缩小范围"


@dataclass(frozen=True, slots=True)
class Usage:
    """The sums of some tasks. The seconds are those of completed tasks, from submit to end; None without any."""

    tasks: int = 0
    completed: int = 0
    failed: int = 0
    charged: int = 0
    refunded: int = 0
    p50_seconds: float | None = None
    p95_seconds: float | None = None

    @property
    def running(self) -> int:
        return self.tasks - self.completed - self.failed

    @property
    def net(self) -> int:
        """The points that were spent or are held."""
        return self.charged - self.refunded


@dataclass(frozen=True, slots=True)
class UsageRow:
    """The usage of one group. What the report is not grouped by is None; a key of None is a JWT."""

    usage: Usage
    day: str | None = None
    model_name: str | None = None
    key_id: int | None = None
    key_name: str | None = None
    key_prefix: str | None = None
    end_user: str | None = None


@dataclass(frozen=True, slots=True)
class UsageReport:
    rows: list[UsageRow]
    totals: Usage


async def usage_of_user(database: Database, user_id: int, days: Days, by: Sequence[Dimension]) -> UsageReport:
    """The usage of one user. Raises InvalidParameter above MAX_ROWS, RateLimited, and StatementTimeout."""
    values = {"user": user_id, "start": days.start, "end": days.end}
    mine = (tasks.c.user_id == bindparam("user")) & _in_period()
    # Without the hint MySQL may take another index of the user's tasks and read every one of them.
    hint = "FORCE INDEX (ix_tasks_newest)"
    try:
        async with database.read_list(user_id) as connection:
            return await read_usage(connection, _grouped(days, by, mine, hint), values)
    except StatementTimeout as error:
        raise StatementTimeout(TOO_LONG) from error


async def read_usage(connection: Connection, statement: Select[Any], values: dict[str, Any]) -> UsageReport:
    """Runs a statement of `grouped_usage`. Raises InvalidParameter above MAX_ROWS."""
    rows = (await connection.execute(statement, values)).all()
    if len(rows) > MAX_ROWS:
        raise InvalidParameter("by", f"的结果超过 {MAX_ROWS} 行，请缩短 from 和 to 之间的时间，或减少分组")
    names = await _key_names(connection, {row.key_id for row in rows if row.key_id is not None})
    found = [_row(row, names) for row in rows]
    found.sort(key=lambda one: (one.day or "", one.model_name or "", one.key_id or 0, one.end_user or ""))
    return UsageReport(found, _total(rows))


def grouped_usage(days: Days, by: Sequence[Dimension], first_id: int) -> Select[Any]:
    """The usage of all users, of tasks from this id on. `values` of `read_usage` are `start` and `end`."""
    return _grouped(days, by, (tasks.c.id >= literal(first_id)) & _in_period(), "FORCE INDEX (PRIMARY)")


def _in_period() -> ColumnElement[bool]:
    start, end = bindparam("start", type_=UtcTime()), bindparam("end", type_=UtcTime())
    return and_(tasks.c.created_at >= start, tasks.c.created_at < end)


def _grouped(days: Days, by: Sequence[Dimension], where: ColumnElement[bool], hint: str) -> Select[Any]:
    """One row for each group, at most one more than MAX_ROWS.

    Window functions number the completed tasks of a group, and of all groups, by their seconds. So the database finds
    the percentiles, and the rows of the tasks do not leave it.
    """
    read = _read_tasks(days, by, where, hint)
    names = [read.c.day, read.c.model_name, read.c.key_id, read.c.end_user]
    numbered = select(
        *read.c,
        *_numbers("own", read, names),
        *_numbers("total", read, []),
    ).cte("numbered")
    groups = [numbered.c.day, numbered.c.model_name, numbered.c.key_id, numbered.c.end_user]
    is_failed = numbered.c.status == "failed"
    return (
        select(
            *groups,
            func.count().label("tasks"),
            func.sum(numbered.c.is_completed).label("completed"),
            func.sum(case((is_failed, 1), else_=0)).label("failed"),
            func.sum(numbered.c.points_cost).label("charged"),
            func.sum(case((is_failed, numbered.c.points_cost), else_=0)).label("refunded"),
            *[
                _percentile(numbered, which, percent).label(f"{which}_p{percent}")
                for which in ("own", "total")
                for percent in (50, 95)
            ],
        )
        .group_by(*groups)
        .limit(MAX_ROWS + 1)
    )


def _read_tasks(days: Days, by: Sequence[Dimension], where: ColumnElement[bool], hint: str) -> CTE:
    """The columns of the tasks that count. What the report is not grouped by is NULL."""
    shown: dict[Dimension, tuple[str, ColumnElement[Any]]] = {
        "day": ("day", local_day(tasks.c.created_at, _offset_seconds(days))),
        "model": ("model_name", tasks.c.model_name),
        "key": ("key_id", tasks.c.key_id),
        "endUser": ("end_user", tasks.c.end_user),
    }
    is_completed = tasks.c.status == "completed"
    return (
        select(
            *[(column if one in by else null()).label(name) for one, (name, column) in shown.items()],
            tasks.c.status,
            tasks.c.points_cost,
            case((is_completed, 1), else_=0).label("is_completed"),
            case((is_completed, seconds_between(tasks.c.created_at, tasks.c.completed_at))).label("seconds"),
        )
        .where(where)
        .with_hint(tasks, hint, "mysql")
        .cte("read_tasks")
    )


def _offset_seconds(days: Days) -> ColumnElement[int]:
    """The local zone's offset at the time of a task. It differs within a period where summer time begins or ends."""
    *changes, (_, last) = days.offsets()
    if not changes:
        return literal(last, Integer)
    whens = [(tasks.c.created_at < literal(until, UtcTime()), literal(offset, Integer)) for until, offset in changes]
    return case(*whens, else_=literal(last, Integer))


def _numbers(which: str, read: CTE, names: Sequence[ColumnElement[Any]]) -> list[ColumnElement[int]]:
    """The number of a task among those of its group with the same `is_completed`, and how many these are."""
    partition = [*names, read.c.is_completed]
    number = func.row_number().over(partition_by=partition, order_by=read.c.seconds)
    return [number.label(f"{which}_number"), func.count().over(partition_by=partition).label(f"{which}_count")]


def _percentile(numbered: CTE, which: str, percent: int) -> ColumnElement[float]:
    """The nearest rank: the task whose number is the percentage of the count, rounded up."""
    number, count = numbered.c[f"{which}_number"], numbered.c[f"{which}_count"]
    is_rank = (number * 100 >= count * percent) & ((number - 1) * 100 < count * percent)
    return func.max(case(((numbered.c.is_completed == 1) & is_rank, numbered.c.seconds)))


async def _key_names(connection: Connection, key_ids: set[int]) -> dict[int, Row[*tuple[Any, ...]]]:
    if not key_ids:
        return {}
    rows = await connection.execute(_KEYS, {"ids": sorted(key_ids)})
    return {row.id: row for row in rows}


def _row(row: Row[*tuple[Any, ...]], names: dict[int, Row[*tuple[Any, ...]]]) -> UsageRow:
    key = names.get(row.key_id)
    return UsageRow(
        _usage(row),
        day=row.day,
        model_name=row.model_name,
        key_id=row.key_id,
        key_name=key.name if key is not None else None,
        key_prefix=key.prefix if key is not None else None,
        end_user=row.end_user,
    )


def _usage(row: Row[*tuple[Any, ...]]) -> Usage:
    sums = {name: int(getattr(row, name)) for name in _SUMS}
    return Usage(**sums, p50_seconds=_seconds(row.own_p50), p95_seconds=_seconds(row.own_p95))


def _total(rows: Sequence[Row[*tuple[Any, ...]]]) -> Usage:
    """Exactly one group holds the task of a percentile of all groups."""
    sums = {name: sum(int(getattr(row, name)) for row in rows) for name in _SUMS}
    halves = [row.total_p50 for row in rows if row.total_p50 is not None]
    most = [row.total_p95 for row in rows if row.total_p95 is not None]
    seconds = [_seconds(max(values, default=None)) for values in (halves, most)]
    return Usage(**sums, p50_seconds=seconds[0], p95_seconds=seconds[1])


def _seconds(value: Any) -> float | None:
    return None if value is None else round(float(value), 3)


_SUMS = ("tasks", "completed", "failed", "charged", "refunded")
_KEYS = select(api_keys.c.id, api_keys.c.name, api_keys.c.prefix).where(
    api_keys.c.id.in_(bindparam("ids", expanding=True))
)
