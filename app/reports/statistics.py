"""Statistics for admins: the usage of all users, and an overview of today.

Neither tasks nor ledger entries have an index on their time alone. Both are numbered in about the order of their times,
so a search over the numbers finds where a period begins.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import Table, bindparam, case, func, select

from app.database import Connection, Database, StatementTimeout
from app.reports.period import Days, midnight, today
from app.reports.usage import TOO_LONG, Dimension, UsageReport, grouped_usage, read_usage
from app.tables import points_ledger as ledger
from app.tables import tasks, users

STATISTICS_SECONDS = 60.0
DISORDER = timedelta(minutes=2)
"""A transaction may commit a row with an earlier time after rows with higher numbers."""


@dataclass(frozen=True, slots=True)
class StepBacklog:
    """The running tasks on one step. `oldest` is the submit of the oldest one."""

    tasks: int
    oldest: datetime


@dataclass(frozen=True, slots=True)
class Overview:
    """Today in the local zone, and what runs now. Points are positive numbers."""

    start: datetime
    tasks_by_status: dict[str, int] = field(default_factory=dict)
    """Tasks that were submitted today."""
    failures_by_code: dict[str, int] = field(default_factory=dict)
    """Of these, the failed ones."""
    running_by_step: dict[str, StepBacklog] = field(default_factory=dict)
    """All tasks that run now, also older ones."""
    points_by_kind: dict[str, int] = field(default_factory=dict)
    """Of today's ledger entries: granted, deducted, settled, refunded and expired points; `adjust` is signed."""
    new_users: int = 0


async def usage_of_all(database: Database, days: Days, by: Sequence[Dimension]) -> UsageReport:
    """The usage of all users, with up to four dimensions. Raises InvalidParameter above MAX_ROWS groups.

    The database ends it after STATISTICS_SECONDS; then it raises StatementTimeout.
    """
    values = {"start": days.start, "end": days.end}
    try:
        async with database.read() as connection:
            first_id = await first_id_since(connection, tasks, days.start)
        async with database.read(STATISTICS_SECONDS) as connection:
            return await read_usage(connection, grouped_usage(days, by, first_id), values)
    except StatementTimeout as error:
        raise StatementTimeout(TOO_LONG) from error


async def overview(database: Database, zone: ZoneInfo) -> Overview:
    """Counts of today, which begins at midnight in `zone`. Each count is one statement of at most a few seconds."""
    start = midnight(today(zone), zone)
    async with database.read() as connection:
        since = {"start": start, "first": await first_id_since(connection, tasks, start)}
        by_status = (await connection.execute(_TODAYS_TASKS, since)).all()
        running = (await connection.execute(_RUNNING)).all()
        since = {"start": start, "first": await first_id_since(connection, ledger, start)}
        entries = (await connection.execute(_TODAYS_ENTRIES, since)).all()
        new_users = int(await connection.scalar(_NEW_USERS, {"start": start}) or 0)
    statuses: dict[str, int] = {}
    for row in by_status:
        statuses[row.status] = statuses.get(row.status, 0) + row.tasks
    return Overview(
        start,
        tasks_by_status=statuses,
        failures_by_code={row.error_code: row.tasks for row in by_status if row.status == "failed"},
        running_by_step={row.step: StepBacklog(row.tasks, row.oldest) for row in running},
        points_by_kind={row.kind: int(row.points) for row in entries},
        new_users=new_users,
    )


async def first_id_since(connection: Connection, table: Table, moment: datetime) -> int:
    """An id at or before the first row since the moment. Some more rows follow, so the caller compares times, too."""
    at = select(table.c.id, table.c.created_at).where(table.c.id >= bindparam("id")).order_by(table.c.id).limit(1)
    low, high = 1, int(await connection.scalar(select(func.max(table.c.id))) or 0) + 1
    while low < high:
        middle = (low + high) // 2
        row = (await connection.execute(at, {"id": middle})).one_or_none()
        if row is not None and row.created_at < moment - DISORDER:
            low = row.id + 1
        else:
            high = middle
    return low


def _since(table: Table) -> tuple[Any, Any]:
    return table.c.id >= bindparam("first"), table.c.created_at >= bindparam("start")


_TODAYS_TASKS = (
    select(tasks.c.status, tasks.c.error_code, func.count().label("tasks"))
    .where(*_since(tasks))
    .group_by(tasks.c.status, tasks.c.error_code)
)
_RUNNING = (
    select(tasks.c.step, func.count().label("tasks"), func.min(tasks.c.created_at).label("oldest"))
    .where(tasks.c.next_run_at.is_not(None))
    .with_hint(tasks, "FORCE INDEX (ix_tasks_due)", "mysql")
    .group_by(tasks.c.step)
)
_moved = case(
    (ledger.c.kind == "settle", -ledger.c.held),
    (ledger.c.kind.in_(["deduct", "expire"]), -ledger.c.points),
    else_=ledger.c.points,
)
_TODAYS_ENTRIES = select(ledger.c.kind, func.sum(_moved).label("points")).where(*_since(ledger)).group_by(ledger.c.kind)
_NEW_USERS = select(func.count()).select_from(users).where(users.c.created_at >= bindparam("start"))
