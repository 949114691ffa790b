"""Periodic jobs: each runs on one worker at a time, and on another if that one dies. Also the audit as such a job."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY

from app.aio import cancel_and_wait
from app.errors import Unavailable
from app.jobs import scheduler
from app.jobs.scheduler import PeriodicJob, Scheduler, periodic_jobs
from app.jobs.state import acquire_job, complete_job, list_job_states, release_job, renew_job
from app.runtime import Runtime, open_runtime
from app.settings import Settings
from app.telemetry import logs
from tests.support.makers import Maker
from tests.support.waiting import until
from tests.support.worlds import execute

pytestmark = [pytest.mark.anyio, pytest.mark.both_worlds]
DAY = 86_400.0


@pytest.fixture(autouse=True)
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "TICK_SECONDS", 0.1)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> Callable[[str], list[dict[str, Any]]]:
    """The log lines of one event."""
    stream = io.StringIO()
    monkeypatch.setattr(logs, "sys", SimpleNamespace(stderr=stream))
    logs.configure_logs(settings.model_copy(update={"log_format": "json"}))
    return lambda event: [
        line for line in map(json.loads, stream.getvalue().splitlines()) if line.get("event") == event
    ]


@asynccontextmanager
async def looping(*runtimes: Runtime, scheduled_jobs: list[PeriodicJob]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(Scheduler(runtime, scheduled_jobs).run()) for runtime in runtimes]
    try:
        yield
    finally:
        await cancel_and_wait(*tasks)


class Work:
    """A job that counts its runs, and the largest number of parallel runs."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.runs = self.ended = self.together = self.maximum = 0

    async def __call__(self, _: Runtime) -> int:
        self.runs += 1
        self.together += 1
        self.maximum = max(self.maximum, self.together)
        try:
            await asyncio.sleep(self.seconds)
            self.ended += 1
        finally:
            self.together -= 1
        return self.runs


async def is_written(runtime: Runtime) -> bool:
    """Whether the end of the job is in the database. Only then can the test make the job due again."""
    state = (await list_job_states(runtime.database)).get("sweep")
    return state is not None and state.result is not None


async def due_now(runtime: Runtime) -> None:
    await execute(runtime, "UPDATE scheduled_jobs SET due_at = completed_at")


# ------------------------------------------------------------------ leases


async def test_a_job_runs_in_one_place_at_a_time(runtime: Runtime) -> None:
    database = runtime.database
    taken = await asyncio.gather(*[acquire_job(database, "sweep", 60) for _ in range(8)])
    assert sorted(taken, key=str) == [1, *[None] * 7]
    assert not (await list_job_states(database))["sweep"].is_due
    assert await renew_job(database, "sweep", 1, 60)
    assert await complete_job(database, "sweep", 1, result=7, period_seconds=DAY)
    state = (await list_job_states(database))["sweep"]
    assert (state.is_due, state.result) == (False, 7)
    assert state.age_seconds is not None
    assert 0 <= state.age_seconds < 60
    assert await acquire_job(database, "sweep", 60) is None
    await due_now(runtime)
    assert (await list_job_states(database))["sweep"].is_due
    assert await acquire_job(database, "sweep", 60) == 2


async def test_a_job_of_a_dead_worker_is_taken_over_and_fenced(runtime: Runtime) -> None:
    database = runtime.database
    assert await acquire_job(database, "sweep", 60) == 1
    assert await acquire_job(database, "sweep", 60) is None
    await execute(runtime, "UPDATE scheduled_jobs SET lease_until = due_at")
    assert await acquire_job(database, "sweep", 60) == 2
    assert not await renew_job(database, "sweep", 1, 60)
    assert not await complete_job(database, "sweep", 1, result=0, period_seconds=DAY)
    assert (await list_job_states(database))["sweep"].result is None
    assert await release_job(database, "sweep", 2, 0)
    assert await acquire_job(database, "sweep", 60) == 3


# ------------------------------------------------------------------ the loop


async def test_two_workers_run_a_job_once_a_period(runtime: Runtime) -> None:
    work = Work(seconds=0.3)
    scheduled_jobs = [PeriodicJob("sweep", DAY, work)]
    async with open_runtime(runtime.settings) as other, looping(runtime, other, runtime, scheduled_jobs=scheduled_jobs):
        await until("done and written", lambda: is_written(runtime))
        await asyncio.sleep(0.5)
        assert (work.runs, work.maximum) == (1, 1)
        await due_now(runtime)
        await until("done again", lambda: work.ended == 2)
    assert (work.runs, work.maximum) == (2, 1)


@pytest.mark.full
async def test_a_long_job_keeps_its_lease(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "LEASE_SECONDS", 9)
    work = Work(seconds=11.0)
    async with looping(runtime, runtime, scheduled_jobs=[PeriodicJob("sweep", DAY, work)]):
        await until("done", lambda: work.ended)
        await asyncio.sleep(0.3)
    assert (work.runs, work.maximum) == (1, 1)


async def test_a_stopping_worker_releases_its_job_at_once(runtime: Runtime) -> None:
    endless, short = Work(seconds=60), Work()
    async with looping(runtime, scheduled_jobs=[PeriodicJob("sweep", DAY, endless)]):
        await until("begun", lambda: endless.runs)
    async with looping(runtime, scheduled_jobs=[PeriodicJob("sweep", DAY, short)]):
        await until("done by the next", lambda: short.ended)


async def test_a_job_that_fails_is_retried_and_delays_no_other(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, log: Callable[[str], list[dict[str, Any]]]
) -> None:
    monkeypatch.setattr(scheduler, "RETRY_SECONDS", 0.2)
    fine, failures = Work(), 0

    async def failing(_: Runtime) -> int:
        nonlocal failures
        failures += 1
        raise ZeroDivisionError("a bug of ours")

    async with looping(runtime, scheduled_jobs=[PeriodicJob("bad", DAY, failing), PeriodicJob("fine", DAY, fine)]):
        await until("tried again", lambda: failures >= 3)
    assert fine.runs == 1
    assert (await list_job_states(runtime.database))["bad"].age_seconds is None
    assert {line["job"] for line in log("job_failed")} == {"bad"}


async def test_the_scheduler_survives_a_database_outage(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    away, real, work = True, list_job_states, Work()

    async def flaky(*args: Any) -> Any:
        if away:
            raise Unavailable
        return await real(*args)

    monkeypatch.setattr(scheduler, "list_job_states", flaky)
    async with looping(runtime, scheduled_jobs=[PeriodicJob("sweep", DAY, work)]):
        await asyncio.sleep(0.5)
        assert work.runs == 0
        away = False
        await until("done", lambda: work.ended)


# ------------------------------------------------------------------ the audit


def audit_of(runtime: Runtime) -> list[PeriodicJob]:
    return [job for job in periodic_jobs(runtime.settings) if job.name == "audit"]


def shown(name: str) -> float:
    found = REGISTRY.get_sample_value(f"gateway_audit_{name}")
    assert found is not None
    return found


async def test_every_worker_reports_the_newest_audit(
    make: Maker, runtime: Runtime, log: Callable[[str], list[dict[str, Any]]]
) -> None:
    user = await make.user(points=100)
    scheduler.metrics.AUDIT_VIOLATIONS.set(float("nan"))  # set once the job has ended
    async with looping(runtime, scheduled_jobs=audit_of(runtime)):
        await until("audited", lambda: log("audit_ok"))
        await until("shown", lambda: shown("violations") == 0)
    assert log("audit_failed") == []
    scheduler.metrics.AUDIT_VIOLATIONS.set(float("nan"))
    async with looping(runtime, scheduled_jobs=audit_of(runtime)):  # new worker, audit not due
        await until("known", lambda: shown("violations") == 0 and shown("age_seconds") < 30)
        assert len(log("audit_ok")) == 1
        await execute(runtime, "UPDATE points_accounts SET seq = seq + 5 WHERE user_id = :id", id=user.id)
        await due_now(runtime)
        await until("seen", lambda: shown("violations") > 0)
    (line,) = log("audit_failed")
    assert line["level"] == "error"
    assert line["violations"] == len(line["rows"]) == shown("violations")
    assert str(user.id) in line["rows"][0]
    assert "an account equals the sum of its ledger entries" in line["rows"][0]
    await execute(runtime, "UPDATE points_accounts SET seq = seq - 5 WHERE user_id = :id", id=user.id)


async def test_the_audits_age_grows_while_no_audit_can_run(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler.metrics.AUDIT_AGE.set(float("nan"))  # as before the first audit
    async with looping(runtime, scheduled_jobs=audit_of(runtime)):
        await until("audited", lambda: shown("age_seconds") >= 0)

        async def away(*_: Any) -> Any:
            raise Unavailable

        monkeypatch.setattr(scheduler, "list_job_states", away)
        before = shown("age_seconds")
        await until("older", lambda: shown("age_seconds") > before + 1)


@pytest.mark.settings(audit_every_seconds=0)
async def test_it_can_be_switched_off(runtime: Runtime) -> None:
    assert "audit" not in {job.name for job in periodic_jobs(runtime.settings)}
