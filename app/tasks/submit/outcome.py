"""What becomes of a submit, and the bounds of a user's tasks. The single and the shared transaction decide by these."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, func, select

from app.database import Connection, utc_after
from app.errors import RateLimited, TaskFailure, TooManyTasks
from app.runtime import Runtime
from app.settings import Settings
from app.tables import points_accounts, tasks
from app.tasks.validation import Submission

FREE_ENDS = (TaskFailure.CANCELLED, TaskFailure.UPSTREAM_REJECTED, TaskFailure.UPSTREAM_FAILED)
"""The refunded ends that a caller can bring about: by a cancel, or by a prompt or picture that is refused."""
FREE_TASKS_SECONDS = 3600.0
FREE_TASKS_RETRY_SECONDS = 60


@dataclass(frozen=True, slots=True)
class PendingSubmit:
    """A submit that is not stored yet."""

    user_id: int
    submission: Submission
    key_id: int | None = None
    """Of the API key that submits, if it is none of a JWT."""


@dataclass(frozen=True, slots=True)
class SubmitResult:
    """The stored task as a row, and the caller's balance. `is_replay`: an earlier submit with this key stored it."""

    row: dict[str, Any]
    balance: int
    is_replay: bool = False


@dataclass(slots=True)
class TaskCounts:
    """A user's tasks that run, and those of the last hour that ended free of charge."""

    running: int
    free: int


async def count_tasks(connection: Connection, user_ids: Collection[int]) -> dict[int, TaskCounts]:
    """The counts of each user who has an account.

    With the accounts locked they are exact, because a user's submits run one after the other. The query is one of its
    own: the snapshot of the query that locks is older than the lock.
    """
    rows = await connection.execute(_COUNTS, {"users": sorted(user_ids)})
    return {row.user_id: TaskCounts(row.running, row.free) for row in rows}


def check_bounds(settings: Settings, counts: TaskCounts) -> None:
    """Raises TooManyTasks or RateLimited if the user may not have one more task now."""
    if counts.running >= settings.max_tasks_in_flight:
        raise TooManyTasks(settings.max_tasks_in_flight)
    if counts.free >= settings.max_free_tasks_per_hour:
        text = f"最近一小时内取消或未成功的任务过多，最多 {settings.max_free_tasks_per_hour} 个，请稍后再试"
        raise RateLimited(text, retry_after_seconds=FREE_TASKS_RETRY_SECONDS)


async def find_stored(runtime: Runtime, task_numbers: Collection[str]) -> set[str]:
    """After a COMMIT without an answer: which of the tasks exist. If this read fails, too, the callers get a 503."""
    async with runtime.database.read() as connection:
        return set(await connection.scalars(_STORED, {"numbers": sorted(task_numbers)}))


_account = points_accounts.alias()
_mine = tasks.c.user_id == _account.c.user_id
_COUNTS = select(
    _account.c.user_id,
    select(func.count())
    .select_from(tasks)
    .where(_mine, tasks.c.error_code.is_(None), tasks.c.completed_at.is_(None))
    .scalar_subquery()
    .label("running"),
    select(func.count())
    .select_from(tasks)
    .where(
        _mine,
        tasks.c.error_code.in_([reason.name for reason in FREE_ENDS]),
        tasks.c.completed_at > utc_after(-FREE_TASKS_SECONDS),
    )
    .scalar_subquery()
    .label("free"),
).where(_account.c.user_id.in_(bindparam("users", expanding=True)))
_STORED = select(tasks.c.task_no).where(tasks.c.task_no.in_(bindparam("numbers", expanding=True)))
