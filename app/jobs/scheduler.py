"""What workers do by the clock, beside the tasks: each chore by one of them at a time, and by another if that one dies.

No task waits for a chore, and no queue in Redis knows of one: whose turn it is stands in the database.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog
from prometheus_client import Gauge

from app.aio import cancel_and_wait
from app.catalog.durations import update_durations
from app.errors import Unavailable
from app.jobs.state import acquire_job, complete_job, list_job_states, release_job, renew_job
from app.points.audit import audit
from app.points.expiry import expire_lots
from app.runtime import Runtime
from app.settings import Settings
from app.telemetry import metrics
from app.webhooks.deliveries import purge_old

log = structlog.get_logger()

TICK_SECONDS = 5.0
LEASE_SECONDS = 60.0
RETRY_SECONDS = 60.0  # after one that failed
EXPIRE_SECONDS = 3600.0
LEARN_SECONDS = 60.0
FORGET_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class PeriodicJob:
    """`work` answers with a number, which every worker shows in `result`, and in `age` how long ago that was."""

    name: str
    period_seconds: float
    work: Callable[[Runtime], Awaitable[int]]
    result: Gauge | None = None
    age: Gauge | None = None


def periodic_jobs(settings: Settings) -> list[PeriodicJob]:
    """The registry: all chores there are; one with a period of 0 is switched off."""
    scheduled_jobs = [
        PeriodicJob("expire", EXPIRE_SECONDS, expire_points),
        PeriodicJob("durations", LEARN_SECONDS, update_model_durations),
        PeriodicJob("webhooks", FORGET_SECONDS, purge_deliveries),
        PeriodicJob("audit", settings.audit_every_seconds, run_audit, metrics.AUDIT_VIOLATIONS, metrics.AUDIT_AGE),
    ]
    return [job for job in scheduled_jobs if job.period_seconds]


async def expire_points(runtime: Runtime) -> int:
    """Ends points whose time is over; of how many lots."""
    return (await expire_lots(runtime.database)).lots


async def update_model_durations(runtime: Runtime) -> int:
    """How long models take by now; of how many."""
    return await update_durations(runtime.database)


async def purge_deliveries(runtime: Runtime) -> int:
    """The delivery log keeps a month; how many deliveries went."""
    return await purge_old(runtime.database)


async def run_audit(runtime: Runtime) -> int:
    """The audit, as `gateway audit` runs it; the number of violations."""
    violations = await audit(runtime.database)
    if violations:
        rows = [f"{one.invariant}: {one.meaning}: {one.row}" for one in violations]
        log.error("audit_failed", violations=len(violations), rows=rows)
    else:
        log.info("audit_ok")
    return len(violations)


class Scheduler:
    """Looks what is due and does it, until cancelled. Whatever goes wrong in a chore, the loop goes on."""

    def __init__(self, runtime: Runtime, scheduled_jobs: Sequence[PeriodicJob]) -> None:
        self._runtime = runtime
        self._jobs = scheduled_jobs
        self._running: dict[str, asyncio.Task[None]] = {}
        self._done_at: dict[str, float] = {}  # by this process' clock, also where another process did it

    async def run(self) -> None:
        try:
            while True:
                try:
                    await self._tick()
                except Unavailable:
                    pass  # the database is away, which is told where it is noticed
                except Exception:
                    log.exception("chores_not_looked_at")
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
        keeper = asyncio.create_task(self._renew_lease(job, version))
        try:
            result = await job.work(self._runtime)
            if await complete_job(database, job.name, version, result=result, period_seconds=job.period_seconds):
                self._record_result(job, result, 0.0)
        except BaseException as error:
            is_cancelled = isinstance(error, asyncio.CancelledError)
            if not is_cancelled:
                log.error("chore_failed", job=job.name, exc_info=error)
            with contextlib.suppress(Exception):  # the lease ends by itself
                delay = 0.0 if is_cancelled else min(RETRY_SECONDS, job.period_seconds)
                await release_job(database, job.name, version, delay)
        finally:
            await cancel_and_wait(keeper)
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
        """Also while the database cannot be asked: an age that stood still would look well."""
        for job in self._jobs:
            if job.age is not None and job.name in self._done_at:
                job.age.set(time.monotonic() - self._done_at[job.name])
