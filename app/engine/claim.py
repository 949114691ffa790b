"""Claims due rows for this process, keeps its leases alive, and gives rows back. The database's clock decides.

A claim raises `version`: whoever writes later under an older version writes nothing. A row found with a lease
still on it was left by a visit that never came back, and counts as a crash; after two in a row it is a suspect.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, bindparam, case, literal, select, update

from app.database import CommitUnknown, Connection, Database, retry_on_conflict, utc_after, utc_now
from app.errors import Unavailable
from app.tables import tasks

QUARANTINE_CRASHES = 2  # one is what every task in a killed worker's hands has


def boottime() -> float:
    """A clock that also runs while the machine or the process is frozen."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@dataclass(slots=True, eq=False)
class ClaimedTask:
    """One task in this process's hands: the row as claimed, and how long it may be held.

    `now` is the database's clock at the claim. `held_until` is on this machine's boot clock, counted from before
    the claim was sent, so that it always ends earlier than the lease in the row.
    """

    id: int
    task_no: str
    user_id: int
    model_name: str
    task_type: str
    action: str
    upstream_request: dict[str, Any]
    points_cost: int
    status: str
    step: str
    version: int
    progress: int
    attempts: int
    crashes: int
    history: list[dict[str, Any]]
    upstream_task_id: str | None
    upstream_state: dict[str, Any]
    created_at: datetime
    deadline_at: datetime
    now: datetime
    claimed_at: float
    held_until: float

    def is_held(self) -> bool:
        return boottime() < self.held_until

    def seconds_left(self) -> float:
        """Until the task's deadline, by the database's clock plus what has passed since the claim."""
        return (self.deadline_at - self.now).total_seconds() - (boottime() - self.claimed_at)

    def age_seconds(self) -> float:
        return (self.now - self.created_at).total_seconds() + boottime() - self.claimed_at


class ClaimCommitUnknown(Unavailable):
    """The COMMIT of a claim was not heard: whoever asked gives `visits` back, or they count as crashes later."""

    def __init__(self, claimed: "list[ClaimedTask]") -> None:
        self.claimed = claimed
        super().__init__()


@dataclass(frozen=True, slots=True)
class TaskFilter:
    """Some of the tasks: those on one of `steps`, but none of `not_actions`.

    `quarantined` narrows it to tasks that were (or were not) left by two crashes in a row; None takes both.
    """

    steps: tuple[str, ...]
    quarantined: bool | None = None
    not_actions: tuple[str, ...] = ()

    def matches(self, step: str, action: str) -> bool:
        return step in self.steps and action not in self.not_actions


async def has_due(database: Database, shares: Sequence[TaskFilter]) -> list[bool]:
    """Which of `shares` have a task that is due: one pass for all, as most looks find nothing in most of them."""
    async with database.read() as connection:
        due = (await connection.execute(_KINDS)).all()
    return [
        any(
            share.matches(kind.step, kind.action) and share.quarantined in {None, bool(kind.is_suspect)} for kind in due
        )
        for share in shares
    ]


@retry_on_conflict
async def claim_due(database: Database, share: TaskFilter, limit: int, lease_seconds: float) -> list[ClaimedTask]:
    """Up to `limit` due tasks of a share, the longest due first; no row is handed to two processes.

    Raises ClaimCommitUnknown.
    """
    due, most = _is_due(share), {"most": limit}
    async with database.read() as connection:
        ids = list(await connection.scalars(_LOOK.where(due), most))
    if not ids:
        return []
    began = boottime()
    rows: list[Row[*tuple[Any, ...]]] = []
    try:
        async with database.begin() as connection:
            # A scan for few rows among many would lock those it passes over, and hide them from other workers.
            found = _ROWS.where(due).limit(bindparam("most")) if len(ids) == limit else _ROWS.where(_ids)
            rows = [row for row in await connection.execute(found, most | {"ids": ids}) if row.next_run_at is not None]
            rows = [row for row in rows if row.next_run_at <= row.now and row.step in share.steps]
            if rows:
                await connection.execute(_TAKE, {"ids": [row.id for row in rows], "lease": lease_seconds})
    except CommitUnknown as error:
        raise ClaimCommitUnknown([_visit(row, began, lease_seconds) for row in rows]) from error
    return [_visit(row, began, lease_seconds) for row in rows]


def _visit(row: Row[*tuple[Any, ...]], began: float, lease_seconds: float) -> ClaimedTask:
    columns = dict(row._mapping)
    del columns["next_run_at"]
    columns["crashes"] += columns.pop("lease_until") is not None
    columns["version"] += 1
    if columns["status"] == "created":
        columns["status"] = "queued"
    columns["upstream_state"] = columns["upstream_state"] or {}
    return ClaimedTask(**columns, claimed_at=began, held_until=began + lease_seconds)


@retry_on_conflict
async def renew_leases(database: Database, visits: Sequence[ClaimedTask], lease_seconds: float) -> None:
    """Prolongs the leases of visits that are still ours; the others learn it by their own clock."""
    began = boottime()
    held = {visit.id: visit for visit in visits}
    async with database.begin() as connection:
        rows = (await connection.execute(_HELD, {"ids": list(held)})).all()
        ours = [row.id for row in rows if row.version == held[row.id].version]
        if ours:
            await connection.execute(_PROLONG, {"ids": ours, "lease": lease_seconds})
    for task_id in ours:
        held[task_id].held_until = began + lease_seconds


@dataclass(frozen=True, slots=True, eq=False)
class Release:
    """A row given back with the time of its next visit, and nothing else worth a transaction of its own."""

    task: ClaimedTask
    delay_seconds: float
    attempts: int
    crashes: int
    progress: int
    status: str
    upstream_state: dict[str, Any]


@retry_on_conflict
async def release(database: Database, releases: Sequence[Release]) -> None:
    """Many rows in one transaction. A row that has another version or step by now is left alone.

    The version alone would not do: after a claim whose COMMIT was not heard and did not happen, a cancel leads from
    the same version to the next as well.
    """
    async with database.begin() as connection:
        await connection.execute(
            _GIVE_BACK,
            [
                {
                    "b_id": r.task.id,
                    "b_version": r.task.version,
                    "b_step": r.task.step,
                    "b_delay": round(r.delay_seconds, 3),
                    "b_attempts": r.attempts,
                    "b_crashes": r.crashes,
                    "b_progress": r.progress,
                    "b_status": r.status,
                    "b_upstream": r.upstream_state,
                }
                for r in releases
            ],
        )


async def fenced_update(connection: Connection, visit: ClaimedTask, **changes: Any) -> bool:
    """The fenced write of one visit: True where the row still had the visit's version (which then grows)."""
    fence = (tasks.c.id == visit.id) & (tasks.c.version == visit.version)
    done = await connection.execute(
        update(tasks).where(fence).values(version=visit.version + 1, updated_at=utc_now(), **changes)
    )
    return bool(done.rowcount)


_READ = [
    "id",
    "task_no",
    "user_id",
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

_is_quarantined = tasks.c.crashes + case((tasks.c.lease_until.is_not(None), 1), else_=0) >= QUARANTINE_CRASHES


def _is_due(share: TaskFilter) -> ColumnElement[bool]:
    due = (tasks.c.next_run_at <= utc_now()) & tasks.c.step.in_(share.steps)
    if share.quarantined is not None:
        due &= _is_quarantined if share.quarantined else ~_is_quarantined
    if share.not_actions:
        due &= tasks.c.action.not_in(share.not_actions)
    return due


_KINDS = (
    select(tasks.c.step, tasks.c.action, _is_quarantined.label("is_suspect"))
    .where(tasks.c.next_run_at <= utc_now())
    .distinct()
)
_LOOK = select(tasks.c.id).order_by(tasks.c.next_run_at).limit(bindparam("most"))
_ROWS = (
    select(*[tasks.c[name] for name in _READ], utc_now().label("now"))
    .order_by(tasks.c.next_run_at)
    .with_for_update(skip_locked=True)
)
# MySQL assigns from left to right and later terms see the new values: what looks at a column stands before it.
_TAKE = (
    update(tasks)
    .where(_ids)
    .ordered_values(
        (tasks.c.crashes, tasks.c.crashes + case((tasks.c.lease_until.is_not(None), 1), else_=0)),
        (tasks.c.updated_at, case((tasks.c.status == "created", utc_now()), else_=tasks.c.updated_at)),
        (tasks.c.status, case((tasks.c.status == "created", "queued"), else_=tasks.c.status)),
        (tasks.c.version, tasks.c.version + 1),
        (tasks.c.lease_until, utc_after(bindparam("lease"))),
        (tasks.c.next_run_at, utc_after(bindparam("lease"))),
    )
)
_HELD = select(tasks.c.id, tasks.c.version).where(_ids, tasks.c.lease_until > utc_now()).with_for_update()
_PROLONG = (
    update(tasks)
    .where(_ids)
    .values(lease_until=utc_after(bindparam("lease")), next_run_at=utc_after(bindparam("lease")))
)
_GIVE_BACK = (
    update(tasks)
    .where(
        tasks.c.id == bindparam("b_id"),
        tasks.c.version == bindparam("b_version"),
        tasks.c.step == bindparam("b_step"),
    )
    .ordered_values(
        (
            tasks.c.updated_at,
            case(
                (
                    (tasks.c.progress != bindparam("b_progress")) | (tasks.c.status != bindparam("b_status")),
                    utc_now(),
                ),
                else_=tasks.c.updated_at,
            ),
        ),
        (tasks.c.version, tasks.c.version + 1),
        (tasks.c.next_run_at, utc_after(bindparam("b_delay"))),
        (tasks.c.lease_until, literal(None)),
        (tasks.c.attempts, bindparam("b_attempts")),
        (tasks.c.crashes, bindparam("b_crashes")),
        (tasks.c.progress, bindparam("b_progress")),
        (tasks.c.status, bindparam("b_status")),
        (tasks.c.upstream_state, bindparam("b_upstream")),
    )
)
