"""Whose turn a chore is: one row each in `scheduled_jobs`, so that of all workers one does it, and when one dies another does.

The database's clock decides what is due. A turn is held by a lease and fenced by `version`, as tasks are. A chore must
still bear being done twice at once: a process that was frozen past its lease does not know it.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import or_, select, update

from app.database import Database, insert_ignore, retry_on_conflict, utc_after, utc_now
from app.tables import scheduled_jobs


@dataclass(frozen=True, slots=True)
class JobState:
    """How a chore stands. `age_seconds` and `result` are of its newest run to the end, None before the first."""

    is_due: bool
    age_seconds: float | None = None
    result: int | None = None


async def list_job_states(database: Database) -> dict[str, JobState]:
    """By name; a chore that was never done has none."""
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
async def acquire_job(database: Database, name: str, lease_seconds: float) -> int | None:
    """The version to name from now on, where the chore is due and in nobody's hands."""
    async with database.begin() as connection:
        first = insert_ignore(connection.dialect.name, scheduled_jobs, "name")
        await connection.execute(first.values(name=name, version=0, due_at=utc_now()))
        is_free = or_(scheduled_jobs.c.lease_until.is_(None), scheduled_jobs.c.lease_until <= utc_now())
        taken = await connection.execute(
            update(scheduled_jobs)
            .where(scheduled_jobs.c.name == name, scheduled_jobs.c.due_at <= utc_now(), is_free)
            .values(version=scheduled_jobs.c.version + 1, lease_until=utc_after(lease_seconds))
        )
        if not taken.rowcount:
            return None
        return await connection.scalar(select(scheduled_jobs.c.version).where(scheduled_jobs.c.name == name))


async def renew_job(database: Database, name: str, version: int, lease_seconds: float) -> bool:
    """Prolongs the lease; False where another has the chore by now."""
    return await _change(database, name, version, lease_until=utc_after(lease_seconds))


async def complete_job(database: Database, name: str, version: int, *, result: int, period_seconds: float) -> bool:
    """Done: due again after its period."""
    changes = {"due_at": utc_after(period_seconds), "completed_at": utc_now(), "result": result}
    return await _change(database, name, version, lease_until=None, **changes)


async def release_job(database: Database, name: str, version: int, delay_seconds: float) -> bool:
    """Not done: due again, for anybody, after a delay."""
    return await _change(database, name, version, lease_until=None, due_at=utc_after(delay_seconds))


@retry_on_conflict
async def _change(database: Database, name: str, version: int, **changes: Any) -> bool:
    async with database.begin() as connection:
        fence = (scheduled_jobs.c.name == name) & (scheduled_jobs.c.version == version)
        done = await connection.execute(update(scheduled_jobs).where(fence).values(**changes))
        return bool(done.rowcount)


def _age_seconds(completed_at: datetime | None, now: datetime) -> float | None:
    return None if completed_at is None else (now - completed_at).total_seconds()


_ALL = select(*scheduled_jobs.c, utc_now().label("now"))
