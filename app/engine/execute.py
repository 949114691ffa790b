"""Runs the steps of one claimed task: exactly one call to the outside, then one commit fenced by `version`.

prepare      resolve a ratio, upload or normalize references  → prepare again | submit
submit       commit the intent → POST to the upstream         → poll | rehost | submit again | failed
submitting   found again: its worker died in between          → failed, refunded, never sent twice
poll         GET the state of the job                         → poll again | rehost | failed
rehost       download the result → own storage                → completed | rehost again | one fresh poll | failed
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar

import structlog
from sqlalchemy import select

from app.catalog.durations import typical_seconds
from app.database import CommitUnknown, UniqueViolation, retry_on_conflict, utc_after
from app.engine import transitions
from app.engine.claim import fenced_update
from app.engine.finish import append_history, finish_task
from app.engine.state import ClaimedTask, Release, boottime
from app.engine.steps.poll import poll
from app.engine.steps.prepare import prepare
from app.engine.steps.rehost import rehost_results
from app.engine.steps.submit import submit
from app.engine.transitions import Advance, Complete, Decision, Fail
from app.errors import TaskFailure, Unavailable
from app.failpoints import failpoint
from app.runtime import Runtime
from app.tables import tasks
from app.telemetry import metrics

log = structlog.get_logger()

T = TypeVar("T")

IMMEDIATELY = 0.001  # a delay that releases the row; 0 would keep it


class LostLease(Exception):
    """Another worker took the task: what this one found out changes nothing."""


def any_step(_step: str) -> bool:
    """Every step may follow at once."""
    return True


async def run_steps(
    runtime: Runtime, task: ClaimedTask, can_continue: Callable[[str], bool] = any_step
) -> Release | Advance | None:
    """Runs the task's step, and the next ones while they are due at once and `can_continue` allows them.

    Returns a Release for the caller to write in a batch, the written Advance that ends in a pause, or None where the
    task has ended. Raises LostLease.
    """
    while True:
        failpoint("task.claimed")
        decision = transitions.before_step(task) or await _run_step(runtime, task)
        if isinstance(decision, Release):
            typical = typical_seconds(runtime.durations, task.model_name, runtime.actions.get(task.action))
            return transitions.with_estimate(task, decision, typical)
        if isinstance(decision, Complete | Fail):
            await _end(runtime, task, decision)
            return None
        if decision.step != task.step and not decision.delay_seconds and not can_continue(decision.step):
            decision = replace(decision, delay_seconds=IMMEDIATELY)
        await _commit_with_retries(runtime, task, decision)
        failpoint("advance.after_commit")
        runtime.pubsub.publish(task.user_id, task.task_no)
        if decision.delay_seconds > 0:
            return decision


async def _run_step(runtime: Runtime, task: ClaimedTask) -> Decision:
    match task.step:
        case "prepare":
            return await prepare(runtime, task, lambda intent: _commit_advance(runtime, task, intent))
        case "submit":
            decision = await submit(runtime, task, lambda intent: _commit_advance(runtime, task, intent))
        case "poll":
            decision = await poll(runtime, task)
        case "rehost":
            return await rehost_results(runtime, task)
        case _:
            raise AssertionError(f"no step {task.step}")
    if isinstance(decision, Advance) and decision.step == "rehost" and not task.upstream_state.is_refreshed:
        # Rehosting has a deadline of its own, from the first known result on.
        return replace(decision, deadline_seconds=runtime.settings.hosting_deadline_seconds)
    return decision


async def _end(runtime: Runtime, task: ClaimedTask, end: Complete | Fail) -> None:
    note = "completed" if isinstance(end, Complete) else f"failed: {end.reason.name} {end.note}"
    history = append_history(task.history, "done", note)
    has_ended = await _retry_until_committed(task, lambda: finish_task(runtime, task, end, history))
    # Also where another was first: that may be this worker's own COMMIT whose answer was lost.
    runtime.pubsub.publish(task.user_id, task.task_no)
    if not has_ended:
        raise LostLease


async def _commit_with_retries(runtime: Runtime, task: ClaimedTask, decision: Advance) -> None:
    await _retry_until_committed(task, lambda: _commit_advance(runtime, task, decision))


async def _retry_until_committed(task: ClaimedTask, write: Callable[[], Awaitable[T]]) -> T:
    """Repeats a fenced write while the database is away and the lease holds: the upstream's answer must not be lost.

    If a COMMIT without an answer did happen, the repeat finds another version and raises LostLease. The row is right.
    """
    while True:
        try:
            return await write()
        except Unavailable:
            if not task.is_held():
                raise
            await asyncio.sleep(0.5)


@retry_on_conflict
async def _commit_advance(runtime: Runtime, task: ClaimedTask, decision: Advance) -> None:
    """Commits a step. Where the step is due at once, this worker keeps the task and its lease is renewed."""
    if decision.step == "submitting" and not task.is_held():
        raise LostLease
    lease_seconds = runtime.settings.lease_seconds
    began = boottime()
    history = append_history(task.history, decision.step, decision.note)
    columns = {"crashes": 0, "step": decision.step, "history": history} | decision.update.columns()
    columns |= _due_columns(decision, lease_seconds)
    try:
        async with runtime.database.begin() as connection:
            if not await fenced_update(connection, task, **columns):
                raise LostLease
    except UniqueViolation as error:
        # The upstream gave the job number of another task: it is unknown for which of the two it works.
        reused = Fail(TaskFailure.UPSTREAM_UNCERTAIN, f"a task id used before: {error.text[:200]}", is_orphan=True)
        await _end(runtime, task, reused)
        raise LostLease from error
    except CommitUnknown:
        if not await _retry_until_committed(task, lambda: _was_committed(runtime, task, decision.step)):
            raise
    _apply(task, decision, history, began + lease_seconds)


def _due_columns(decision: Advance, lease_seconds: float) -> dict[str, Any]:
    """When the row is due next, and for whom; and its new deadline, if it gets one."""
    columns: dict[str, Any] = {"next_run_at": utc_after(lease_seconds), "lease_until": utc_after(lease_seconds)}
    if decision.delay_seconds > 0:
        columns = {"next_run_at": utc_after(round(decision.delay_seconds, 3)), "lease_until": None}
    if decision.deadline_seconds is not None:
        columns["deadline_at"] = utc_after(decision.deadline_seconds)
    return columns


async def _was_committed(runtime: Runtime, task: ClaimedTask, step: str) -> bool:
    """After a COMMIT without an answer: whether it happened. Only this worker leads from this version to this step."""
    async with runtime.database.read() as connection:
        found = await connection.execute(select(tasks.c.version, tasks.c.step).where(tasks.c.id == task.id))
        return tuple(found.one()) == (task.version + 1, step)


def _apply(task: ClaimedTask, decision: Advance, history: list[dict[str, Any]], held_until: float) -> None:
    """Brings the claimed task up to what was just committed."""
    decision.update.apply_to(task)
    task.version += 1
    task.crashes = 0
    task.step, task.history, task.held_until = decision.step, history, held_until
    if decision.deadline_seconds is not None:
        task.deadline_at = task.now + timedelta(seconds=boottime() - task.claimed_at + decision.deadline_seconds)


def record_lost_lease(task: ClaimedTask) -> None:
    metrics.FENCED_WRITES.labels(task.step).inc()
    log.warning("lease_lost", task_no=task.task_no, step=task.step, version=task.version)
