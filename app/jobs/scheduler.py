"""Runs periodic jobs. One worker runs a job at a time; if that worker dies, another one runs the job.

The database holds the schedule and the leases. Redis and ARQ take no part, and no task waits for a job.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog
from prometheus_client import Gauge

from app.accounts.log_in.refresh_tokens import purge_expired
from app.aio import cancel_and_wait
from app.catalog.durations import update_durations
from app.errors import Unavailable
from app.files.deletions import delete_files
from app.files.upload_records import expire_uploads
from app.jobs.state import acquire_job, complete_job, list_job_states, release_job, renew_job
from app.points.audit.checks import audit
from app.points.expiry import expire_lots
from app.runtime import Runtime
from app.settings import Settings
from app.tasks.erasure import continue_erasures
from app.telemetry import metrics
from app.webhooks.deliveries import purge_old

log = structlog.get_logger()

TICK_SECONDS = 5.0
LEASE_SECONDS = 60.0
RETRY_SECONDS = 60.0  # after a failure
EXPIRE_SECONDS = 3600.0
DURATIONS_SECONDS = 60.0
PURGE_SECONDS = 3600.0
ERASE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class PeriodicJob:
    """A job. Every worker shows the number that `work` returned in `result`, and the age of that run in `age`."""

    name: str
    period_seconds: float
    work: Callable[[Runtime], Awaitable[int]]
    result: Gauge | None = None
    age: Gauge | None = None


def periodic_jobs(settings: Settings) -> list[PeriodicJob]:
    """All periodic jobs. A period of 0 switches a job off."""
    jobs = [
        PeriodicJob("expire", EXPIRE_SECONDS, expire_points),
        PeriodicJob("durations", DURATIONS_SECONDS, update_model_durations),
        PeriodicJob("webhooks", PURGE_SECONDS, purge_deliveries),
        PeriodicJob("refresh-tokens", PURGE_SECONDS, purge_refresh_tokens),
        PeriodicJob("uploads", EXPIRE_SECONDS if settings.upload_keep_days else 0.0, expire_uploads),
        PeriodicJob("erasure", ERASE_SECONDS, erase),
        PeriodicJob("audit", settings.audit_every_seconds, run_audit, metrics.AUDIT_VIOLATIONS, metrics.AUDIT_AGE),
    ]
    return [job for job in jobs if job.period_seconds]


async def expire_points(runtime: Runtime) -> int:
    """Expires lots of points. Returns the number of lots."""
    return (await expire_lots(runtime.database)).lots


async def update_model_durations(runtime: Runtime) -> int:
    """Measures how long models take. Returns the number of models."""
    return await update_durations(runtime.database)


async def purge_deliveries(runtime: Runtime) -> int:
    """Deletes webhook deliveries after a month. Returns their number."""
    return await purge_old(runtime.database)


async def erase(runtime: Runtime) -> int:
    """Erases what is left of erased users, then deletes the files that were given up. Returns the number of files."""
    await continue_erasures(runtime)
    return await delete_files(runtime)


async def purge_refresh_tokens(runtime: Runtime) -> int:
    """Deletes expired refresh tokens. Returns their number."""
    return await purge_expired(runtime.database)


async def run_audit(runtime: Runtime) -> int:
    """Runs the audit of `gateway audit`. Returns the number of violations."""
    violations = await audit(runtime.database)
    if violations:
        rows = [f"{v.invariant}: {v.meaning}: {v.row}" for v in violations]
        log.error("audit_failed", violations=len(violations), rows=rows)
    else:
        log.info("audit_ok")
    return len(violations)


class Scheduler:
    """Runs due jobs until it is cancelled. An error in a job does not end the loop."""

    def __init__(self, runtime: Runtime, jobs: Sequence[PeriodicJob]) -> None:
        self._runtime = runtime
        self._jobs = jobs
        self._running: dict[str, asyncio.Task[None]] = {}
        self._done_at: dict[str, float] = {}  # by this process's clock, also for runs of other processes

    async def run(self) -> None:
        try:
            while True:
                try:
                    await self._tick()
                except Unavailable:
                    pass  # app/database logs that the database is unreachable
                except Exception:
                    log.exception("scheduler_query_failed")
                self._show_ages()
                await asyncio.sleep(TICK_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311
        finally:
            await cancel_and_wait(*self._running.values())

    async def _tick(self) -> None:
        if not self._jobs:
            return
        database = self._runtime.database
        states = await list_job_states(database)
        for job in self._jobs:
            state = states.get(job.name)
            if state is not None and state.age_seconds is not None and state.result is not None:
                self._record_result(job, state.result, state.age_seconds)
            if job.name in self._running or (state is not None and not state.is_due):
                continue
            version = await acquire_job(database, job.name, LEASE_SECONDS)
            if version is not None:
                self._running[job.name] = asyncio.create_task(self._run_job(job, version))

    async def _run_job(self, job: PeriodicJob, version: int) -> None:
        database = self._runtime.database
        renewal = asyncio.create_task(self._renew_lease(job, version))
        try:
            result = await job.work(self._runtime)
            if await complete_job(database, job.name, version, result=result, period_seconds=job.period_seconds):
                self._record_result(job, result, 0.0)
        except BaseException as error:
            is_cancelled = isinstance(error, asyncio.CancelledError)
            if not is_cancelled:
                log.error("job_failed", job=job.name, exc_info=error)
            with contextlib.suppress(Exception):  # if the release fails, the lease runs out
                delay = 0.0 if is_cancelled else min(RETRY_SECONDS, job.period_seconds)
                await release_job(database, job.name, version, delay)
        finally:
            await cancel_and_wait(renewal)
            self._running.pop(job.name, None)

    async def _renew_lease(self, job: PeriodicJob, version: int) -> None:
        while True:
            await asyncio.sleep(LEASE_SECONDS / 3)
            with contextlib.suppress(Exception):
                await renew_job(self._runtime.database, job.name, version, LEASE_SECONDS)

    def _record_result(self, job: PeriodicJob, result: int, age_seconds: float) -> None:
        self._done_at[job.name] = time.monotonic() - age_seconds
        if job.result is not None:
            job.result.set(result)
        self._show_ages()

    def _show_ages(self) -> None:
        """Runs at every tick, because ages must grow while the database is unreachable."""
        for job in self._jobs:
            if job.age is not None and job.name in self._done_at:
                job.age.set(time.monotonic() - self._done_at[job.name])
