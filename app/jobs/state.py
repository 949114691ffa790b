"""The schedule of periodic jobs: one row for each job in `scheduled_jobs`, claimed by a lease.

The database's clock decides what is due. `version` fences a lease, as it does for tasks. A job must still tolerate two
runs at once, because a process that is frozen past its lease does not notice it.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import or_, select, true, update

from app.database import Database, insert_ignore, retry_on_conflict, utc_after, utc_now
from app.tables import scheduled_jobs


@dataclass(frozen=True, slots=True)
class JobState:
    """A job's state. `age_seconds` and `result` belong to the last completed run; both are None before the first."""

    is_due: bool
    age_seconds: float | None = None
    result: int | None = None


async def list_job_states(database: Database) -> dict[str, JobState]:
    """The states by job name. A job that never ran has none."""
    async with database.read() as connection:
        rows = await connection.execute(_ALL)
        return {
            row.name: JobState(
                row.due_at <= row.now and (row.lease_until is None or row.lease_until <= row.now),
                _age_seconds(row.completed_at, row.now),
                row.result,
            )
            for row in rows
        }


@retry_on_conflict
async def acquire_job(database: Database, name: str, lease_seconds: float, *, only_due: bool = True) -> int | None:
    """Claims the job where it is due and free. Returns the version for the calls that follow, else None.

    Without `only_due` it also claims a job that is not due yet.
    """
    async with database.begin() as connection:
        insert = insert_ignore(connection.dialect.name, scheduled_jobs, "name")
        await connection.execute(insert.values(name=name, version=0, due_at=utc_now()))
        is_free = or_(scheduled_jobs.c.lease_until.is_(None), scheduled_jobs.c.lease_until <= utc_now())
        claimed = await connection.execute(
            update(scheduled_jobs)
            .where(scheduled_jobs.c.name == name, is_free, scheduled_jobs.c.due_at <= utc_now() if only_due else true())
            .values(version=scheduled_jobs.c.version + 1, lease_until=utc_after(lease_seconds))
        )
        if not claimed.rowcount:
            return None
        return await connection.scalar(select(scheduled_jobs.c.version).where(scheduled_jobs.c.name == name))


async def renew_job(database: Database, name: str, version: int, lease_seconds: float) -> bool:
    """Extends the lease. Returns False where another process has claimed the job."""
    return await _update(database, name, version, lease_until=utc_after(lease_seconds))


async def complete_job(database: Database, name: str, version: int, *, result: int, period_seconds: float) -> bool:
    """Records a completed run. The job is due again after its period."""
    changes = {"due_at": utc_after(period_seconds), "completed_at": utc_now(), "result": result}
    return await _update(database, name, version, lease_until=None, **changes)


async def release_job(database: Database, name: str, version: int, delay_seconds: float) -> bool:
    """Gives the job back without a result. It is due again after the delay."""
    return await _update(database, name, version, lease_until=None, due_at=utc_after(delay_seconds))


@retry_on_conflict
async def _update(database: Database, name: str, version: int, **changes: Any) -> bool:
    async with database.begin() as connection:
        fence = (scheduled_jobs.c.name == name) & (scheduled_jobs.c.version == version)
        updated = await connection.execute(update(scheduled_jobs).where(fence).values(**changes))
        return bool(updated.rowcount)


def _age_seconds(completed_at: datetime | None, now: datetime) -> float | None:
    return None if completed_at is None else (now - completed_at).total_seconds()


_ALL = select(*scheduled_jobs.c, utc_now().label("now"))
