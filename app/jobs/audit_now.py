"""The audit of the books on request: its newest result, and a run now. One process runs it at a time."""

import asyncio
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select

from app.database import Database, utc_now
from app.errors import ActionConflict, Unavailable
from app.jobs.state import acquire_job, complete_job, release_job
from app.points.audit.checks import Violation, audit
from app.tables import scheduled_jobs

JOB = "audit"
"""The periodic job of the workers has the same name, so it has the same lease."""
MAX_SECONDS = 50.0
LEASE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class AuditState:
    """The newest completed run, by a worker or on request. All is None before the first one."""

    completed_at: datetime | None = None
    violations: int | None = None
    is_running: bool = False


async def get_audit_state(database: Database) -> AuditState:
    async with database.read() as connection:
        row = (await connection.execute(_STATE)).one_or_none()
    if row is None:
        return AuditState()
    is_running = row.lease_until is not None and row.lease_until > row.now
    return AuditState(row.completed_at, row.result, is_running)


async def run_audit_now(database: Database, period_seconds: float) -> list[Violation]:
    """Runs the audit and stores the number of its violations as the newest result.

    Raises ActionConflict while another process runs it. Raises Unavailable if it takes longer than MAX_SECONDS: then
    the next worker runs it at once, without that bound.
    """
    version = await acquire_job(database, JOB, LEASE_SECONDS, only_due=False)
    if version is None:
        raise ActionConflict("审计正在进行，请稍后查看结果")
    try:
        async with asyncio.timeout(MAX_SECONDS):
            violations = await audit(database)
    except TimeoutError:
        await release_job(database, JOB, version, 0.0)
        raise Unavailable("审计需要更长时间，已交由后台执行，请稍后查看结果", retry_after_seconds=60) from None
    except BaseException:
        await release_job(database, JOB, version, 0.0)
        raise
    await complete_job(database, JOB, version, result=len(violations), period_seconds=period_seconds)
    return violations


_STATE = select(
    scheduled_jobs.c.completed_at, scheduled_jobs.c.result, scheduled_jobs.c.lease_until, utc_now().label("now")
).where(scheduled_jobs.c.name == JOB)
