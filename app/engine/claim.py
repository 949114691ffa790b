"""Claims due tasks for this process, renews their leases, and releases them. The database's clock decides.

A claim raises `version`: a later write under an older version changes nothing. A row that is found with an old lease
was left by a process that crashed. After two crashes in a row a task is quarantined: it is claimed alone.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Integer, Numeric, Row, bindparam, case, column, select, update

from app.database import CommitUnknown, Connection, Database, retry_on_conflict, rows_of_json, utc_after, utc_now
from app.engine.state import ClaimedTask, Release, UpstreamState, boottime
from app.errors import Unavailable
from app.tables import LONG_TEXT, tasks, write_json

QUARANTINE_CRASHES = 2  # every task of a killed worker has one
MAX_SHARED_STATE_LENGTH = 4000
"""A row with a longer state is released by a statement of its own: the server limits the length of a statement."""


class ClaimCommitUnknown(Unavailable):
    """The COMMIT of a claim got no answer. The caller releases `claimed`; else they count as crashes later."""

    def __init__(self, claimed: list[ClaimedTask]) -> None:
        self.claimed = claimed
        super().__init__()


@dataclass(frozen=True, slots=True)
class TaskFilter:
    """Tasks on one of `steps`, without those of `not_actions`. `quarantined` None takes both kinds."""

    steps: tuple[str, ...]
    quarantined: bool | None = None
    not_actions: tuple[str, ...] = ()

    def matches(self, step: str, action: str) -> bool:
        return step in self.steps and action not in self.not_actions


async def has_due(database: Database, filters: Sequence[TaskFilter]) -> list[bool]:
    """For each filter whether a task is due. One query for all, because most queries of an idle worker find nothing."""
    async with database.read() as connection:
        due = (await connection.execute(_DUE_KINDS)).all()
    return [
        any(one.matches(row.step, row.action) and one.quarantined in {None, bool(row.is_quarantined)} for row in due)
        for one in filters
    ]


@retry_on_conflict
async def claim_due(
    database: Database,
    task_filter: TaskFilter,
    limit: int,
    lease_seconds: float,
    *,
    excluded_users: Collection[int] = (),
    admit: Callable[[Sequence[int]], Sequence[bool]] | None = None,
) -> list[ClaimedTask]:
    """At most `limit` due tasks, the longest due first. No task is claimed by two processes.

    Tasks of `excluded_users` are passed over. `admit` gets the user of each found task and says which to claim.
    Raises ClaimCommitUnknown.
    """
    due, values = _is_due(task_filter, excluded_users), {"limit": limit}
    async with database.read() as connection:
        ids = list(await connection.scalars(_DUE_IDS.where(due), values))
    if not ids:
        return []
    began = boottime()
    rows: list[Row[*tuple[Any, ...]]] = []
    try:
        async with database.begin() as connection:
            # A scan for few rows among many would lock the rows it passes, and hide them from other workers.
            query = _ROWS.where(due).limit(bindparam("limit")) if len(ids) == limit else _ROWS.where(_ids)
            rows = [
                row for row in await connection.execute(query, values | {"ids": ids}) if row.next_run_at is not None
            ]
            rows = [row for row in rows if row.next_run_at <= row.now and row.step in task_filter.steps]
            if admit is not None:
                rows = list(compress(rows, admit([row.user_id for row in rows])))
            if rows:
                await connection.execute(_CLAIM, {"ids": [row.id for row in rows], "lease": lease_seconds})
    except CommitUnknown as error:
        raise ClaimCommitUnknown([_claimed_task(row, began, lease_seconds) for row in rows]) from error
    return [_claimed_task(row, began, lease_seconds) for row in rows]


def _claimed_task(row: Row[*tuple[Any, ...]], began: float, lease_seconds: float) -> ClaimedTask:
    columns = dict(row._mapping)
    del columns["next_run_at"]
    columns["crashes"] += columns.pop("lease_until") is not None
    columns["version"] += 1
    if columns["status"] == "created":
        columns["status"] = "queued"
    columns["upstream_state"] = UpstreamState.from_json(columns["upstream_state"])
    return ClaimedTask(**columns, claimed_at=began, held_until=began + lease_seconds)


@retry_on_conflict
async def renew_leases(database: Database, claimed: Sequence[ClaimedTask], lease_seconds: float) -> None:
    """Prolongs the leases that this process still has. A task that another took keeps its old `held_until`."""
    began = boottime()
    by_id = {task.id: task for task in claimed}
    async with database.begin() as connection:
        rows = (await connection.execute(_LEASED, {"ids": list(by_id)})).all()
        own_ids = [row.id for row in rows if row.version == by_id[row.id].version]
        if own_ids:
            await connection.execute(_RENEW, {"ids": own_ids, "lease": lease_seconds})
    for task_id in own_ids:
        by_id[task_id].held_until = began + lease_seconds


@retry_on_conflict
async def release(database: Database, releases: Sequence[Release]) -> set[int]:
    """Many rows in one transaction, with one statement for each step. Returns the ids of the released rows.

    A row that has another version or step by now stays as it is. The version alone is not enough: after a claim whose
    COMMIT got no answer and did not happen, a cancel leads from the same version to the next one as well.
    """
    statements: dict[tuple[str, int | None], list[list[Any]]] = {}
    for one in releases:
        row = _release_row(one)
        alone = one.task.id if len(row[-1]) > MAX_SHARED_STATE_LENGTH else None
        statements.setdefault((one.task.step, alone), []).append(row)
    async with database.begin() as connection:
        released = [await _release_rows(connection, step, rows) for (step, _), rows in statements.items()]
    return set().union(*released)


async def _release_rows(connection: Connection, step: str, rows: list[list[Any]]) -> set[int]:
    values = {"b_step": step, "releases": rows}
    done = await connection.execute(_RELEASE, values)
    if done.rowcount == len(rows):
        return {row[0] for row in rows}
    return set(await connection.scalars(_RELEASED_IDS, values))


def _release_row(one: Release) -> list[Any]:
    """The values of `_releases`, in the order of its columns."""
    return [
        one.task.id,
        one.task.version,
        round(one.delay_seconds, 3),
        one.attempts,
        one.crashes,
        one.progress,
        int(one.progress != one.task.progress),
        write_json(one.upstream_state.to_json()),
    ]


async def fenced_update(connection: Connection, task: ClaimedTask, **columns: Any) -> bool:
    """True where the row still had the task's version. The version of the row then grows by one."""
    fence = (tasks.c.id == task.id) & (tasks.c.version == task.version)
    done = await connection.execute(
        update(tasks).where(fence).values(version=task.version + 1, updated_at=utc_now(), **columns)
    )
    return bool(done.rowcount)


_COLUMNS = [
    "id",
    "task_no",
    "user_id",
    "key_id",
    "end_user",
    "model_name",
    "task_type",
    "action",
    "upstream_request",
    "points_cost",
    "status",
    "step",
    "version",
    "progress",
    "attempts",
    "crashes",
    "history",
    "upstream_task_id",
    "upstream_state",
    "created_at",
    "deadline_at",
    "lease_until",
    "next_run_at",
]
_ids = tasks.c.id.in_(bindparam("ids", expanding=True))

_crashes = tasks.c.crashes + case((tasks.c.lease_until.is_not(None), 1), else_=0)
_is_quarantined = _crashes >= QUARANTINE_CRASHES


def _is_due(task_filter: TaskFilter, excluded_users: Collection[int] = ()) -> ColumnElement[bool]:
    due = (tasks.c.next_run_at <= utc_now()) & tasks.c.step.in_(task_filter.steps)
    if task_filter.quarantined is not None:
        due &= _is_quarantined if task_filter.quarantined else ~_is_quarantined
    if task_filter.not_actions:
        due &= tasks.c.action.not_in(task_filter.not_actions)
    if excluded_users:
        due &= tasks.c.user_id.not_in(excluded_users)
    return due


_DUE_KINDS = (
    select(tasks.c.step, tasks.c.action, _is_quarantined.label("is_quarantined"))
    .where(tasks.c.next_run_at <= utc_now())
    .distinct()
)
_DUE_IDS = select(tasks.c.id).order_by(tasks.c.next_run_at).limit(bindparam("limit"))
_ROWS = (
    select(*[tasks.c[name] for name in _COLUMNS], utc_now().label("now"))
    .order_by(tasks.c.next_run_at)
    .with_for_update(skip_locked=True)
)
# MySQL assigns from left to right, and later terms read the new values. A term stands before what it reads.
_CLAIM = (
    update(tasks)
    .where(_ids)
    .ordered_values(
        (tasks.c.crashes, _crashes),
        (tasks.c.updated_at, case((tasks.c.status == "created", utc_now()), else_=tasks.c.updated_at)),
        (tasks.c.status, case((tasks.c.status == "created", "queued"), else_=tasks.c.status)),
        (tasks.c.version, tasks.c.version + 1),
        (tasks.c.lease_until, utc_after(bindparam("lease"))),
        (tasks.c.next_run_at, utc_after(bindparam("lease"))),
    )
)
_LEASED = select(tasks.c.id, tasks.c.version).where(_ids, tasks.c.lease_until > utc_now()).with_for_update()
_RENEW = (
    update(tasks)
    .where(_ids)
    .values(lease_until=utc_after(bindparam("lease")), next_run_at=utc_after(bindparam("lease")))
)
_releases = rows_of_json(
    "releases",
    column("id", BigInteger()),
    column("version", Integer()),
    column("delay_seconds", Numeric(12, 3)),
    column("attempts", Integer()),
    column("crashes", Integer()),
    column("progress", Integer()),
    column("shows_progress", Integer()),
    column("upstream_state", LONG_TEXT),
)
# An UPDATE of several tables may assign in any order: no term reads a column that another one writes.
_RELEASE = (
    update(tasks)
    .where(
        tasks.c.id == _releases.c.id,
        tasks.c.version == _releases.c.version,
        tasks.c.step == bindparam("b_step"),
    )
    .values(
        updated_at=case((_releases.c.shows_progress == 1, utc_now()), else_=tasks.c.updated_at),
        version=_releases.c.version + 1,
        next_run_at=utc_after(_releases.c.delay_seconds),
        lease_until=None,
        attempts=_releases.c.attempts,
        crashes=_releases.c.crashes,
        progress=_releases.c.progress,
        upstream_state=_releases.c.upstream_state,
    )
)
_RELEASED_IDS = select(tasks.c.id).where(
    tasks.c.id == _releases.c.id,
    tasks.c.version == _releases.c.version + 1,
    tasks.c.step == bindparam("b_step"),
    tasks.c.lease_until.is_(None),
)
