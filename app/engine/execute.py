"""One visit to one task: exactly one outside thing, then one commit fenced by `version`.

prepare      settle a ratio, hand over, normalize    → prepare again | submit
submit       write the intent → POST to SEE2AI       → poll | host | submit again | failed
submitting   found again: its owner died in between  → failed, refunded, never sent twice
poll         GET the status                          → poll again | host | failed
host         egress → storage                        → completed | host again | one fresh poll | failed
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
from app.engine import transitions as decide
from app.engine.breaker_sync import acquire_permission
from app.engine.claim import ClaimedTask, boottime, fenced_update
from app.engine.finish import append_history, finish_task
from app.engine.steps.prepare import prepare
from app.engine.steps.rehost import rehost_results
from app.engine.transitions import Advance, Complete, Decision, Fail, Reschedule
from app.errors import TaskFailure, Unavailable
from app.failpoints import failpoint
from app.runtime import Runtime
from app.tables import tasks
from app.telemetry import metrics
from app.upstreams.see2ai.responses import ResultKind

log = structlog.get_logger()

T = TypeVar("T")

IMMEDIATELY = 0.001  # a delay, so that the row is given back, but none to speak of


class LostLease(Exception):
    """Another visit was first: whatever this one found out changes nothing."""


def always(_step: str) -> bool:
    """Every step is this visit's own."""
    return True


async def run_steps(
    runtime: Runtime, visit: ClaimedTask, can_continue: Callable[[str], bool] = always
) -> Reschedule | None:
    """Takes the task one step on, and further while it is due at once and `can_continue` to the next.

    Returns a Later for the caller to give back in a batch; None where everything is written. Raises Stale.
    """
    while True:
        failpoint("visit.claimed")
        decision = decide.before_step(visit) or await _take_step(runtime, visit)
        if isinstance(decision, Reschedule):
            return decide.with_estimate(visit, decision, typical_seconds(runtime, visit.model_name, visit.action))
        if isinstance(decision, Complete | Fail):
            await _end(runtime, visit, decision)
            return None
        if decision.step != visit.step and not decision.delay_seconds and not can_continue(decision.step):
            decision = replace(decision, delay_seconds=IMMEDIATELY)
        await _retry_until_committed(visit, lambda: _commit_advance(runtime, visit, decision))  # noqa: B023 (awaited at once)
        failpoint("onward.after_commit")
        runtime.pubsub.publish(visit.user_id, visit.task_no)
        if decision.delay_seconds > 0:
            return None


async def _take_step(runtime: Runtime, visit: ClaimedTask) -> Decision:
    match visit.step:
        case "prepare":
            return await prepare(runtime, visit, lambda intent: _commit_advance(runtime, visit, intent))
        case "submit":
            return await _submit(runtime, visit)
        case "poll":
            return await _poll(runtime, visit)
        case "host":
            return await rehost_results(runtime, visit)
    raise AssertionError(f"no step {visit.step}")


async def _submit(runtime: Runtime, visit: ClaimedTask) -> Decision:
    """Writes the intent, then sends. Between the two nobody else may send, and after them nobody ever will."""
    action = runtime.actions[visit.action]
    breaker = runtime.breakers[action.provider]
    if pause := await acquire_permission(runtime, breaker):
        return decide.wait_for_upstream(visit, pause, f"circuit open: {breaker.reason}")
    with breaker.call():
        failpoint("send.before_intent")
        await _commit_advance(runtime, visit, Advance("submitting", "asking SEE2AI"))
        failpoint("send.after_intent")
        result = await runtime.see2ai.submit(action, visit.upstream_request, may_send=visit.is_held)
        failpoint("send.after_answer")
        result = breaker.record_result(result)
    return _with_hosting_deadline(runtime, visit, decide.after_submit(visit, result))


async def _poll(runtime: Runtime, visit: ClaimedTask) -> Decision:
    action = runtime.actions[visit.action]
    breaker = runtime.breakers[action.provider]
    is_last_poll = visit.seconds_left() <= 0
    ignores_breaker = is_last_poll or visit.upstream_state.get("is_refreshed")  # of a job that is done, its links only
    pause = 0.0 if ignores_breaker else await acquire_permission(runtime, breaker, is_poll=True)
    if pause:
        return decide.wait_for_upstream(visit, pause, "polls slowed or circuit open: " + breaker.reason)
    with breaker.call(is_free=True):
        failpoint("poll.before")
        result = await runtime.see2ai.poll(action, visit.upstream_task_id or "")
        failpoint("poll.after_answer")
        result = breaker.record_result(result, is_free=True)
    if result.kind is ResultKind.RATE_LIMITED:
        breaker.throttle_polls(result.retry_after_seconds)
    now = visit.now + timedelta(seconds=boottime() - visit.claimed_at)
    return _with_hosting_deadline(runtime, visit, decide.after_poll(visit, result, now, is_last_poll=is_last_poll))


def _with_hosting_deadline(runtime: Runtime, visit: ClaimedTask, decision: Decision) -> Decision:
    """Hosting has a time of its own, counted from the first word that there is a result."""
    if isinstance(decision, Advance) and decision.step == "host" and not visit.upstream_state.get("is_refreshed"):
        return replace(decision, deadline_seconds=runtime.settings.hosting_deadline_seconds)
    return decision


async def _end(runtime: Runtime, visit: ClaimedTask, end: Complete | Fail) -> None:
    note = "completed" if isinstance(end, Complete) else f"failed: {end.reason.name} {end.note}"
    history = append_history(visit.history, "done", note)
    is_ours = await _retry_until_committed(visit, lambda: finish_task(runtime, visit, end, history))
    runtime.pubsub.publish(visit.user_id, visit.task_no)  # if another was first, that may be our own unheard COMMIT
    if not is_ours:
        raise LostLease


async def _retry_until_committed(visit: ClaimedTask, write_it: Callable[[], Awaitable[T]]) -> T:
    """Repeats a fenced write while the database is away and the lease holds: what SEE2AI said must not be lost.

    If an unheard COMMIT did happen, the repeat finds another version and is Stale, and the row stands as meant.
    """
    while True:
        try:
            return await write_it()
        except Unavailable:
            if not visit.is_held():
                raise
            await asyncio.sleep(0.5)


@retry_on_conflict
async def _commit_advance(runtime: Runtime, visit: ClaimedTask, decision: Advance) -> None:
    """Commits a step. While the task is due at once the lease stays with this visit, renewed."""
    lease_seconds = runtime.settings.lease_seconds
    began = boottime()
    changes = {"attempts": 0, "crashes": 0, **decision.changes}
    if decision.delay_seconds > 0:
        changes |= {"next_run_at": utc_after(round(decision.delay_seconds, 3)), "lease_until": None}
    else:
        changes |= {"next_run_at": utc_after(lease_seconds), "lease_until": utc_after(lease_seconds)}
    if decision.deadline_seconds is not None:
        changes["deadline_at"] = utc_after(decision.deadline_seconds)
    if decision.step == "submitting":
        changes["attempts"] = visit.attempts
        if not visit.is_held():
            raise LostLease
    history = append_history(visit.history, decision.step, decision.note)
    try:
        async with runtime.database.begin() as connection:
            if not await fenced_update(connection, visit, step=decision.step, history=history, **changes):
                raise LostLease
    except UniqueViolation as error:
        # SEE2AI gave the number of a job that another task already has: which of the two it works on is unknown.
        reused = Fail(TaskFailure.UPSTREAM_UNCERTAIN, f"a task id used before: {error.text[:200]}", is_orphan=True)
        await _end(runtime, visit, reused)
        raise LostLease from error
    except CommitUnknown:
        if not await _retry_until_committed(visit, lambda: _was_committed(runtime, visit, decision.step)):
            raise
    _apply(visit, decision, changes, history, began + lease_seconds)


async def _was_committed(runtime: Runtime, visit: ClaimedTask, step: str) -> bool:
    """After an unheard COMMIT: whether it happened. No other visit leads from this version to this step."""
    async with runtime.database.read() as connection:
        found = await connection.execute(select(tasks.c.version, tasks.c.step).where(tasks.c.id == visit.id))
        return tuple(found.one()) == (visit.version + 1, step)


def _apply(
    visit: ClaimedTask, decision: Advance, changes: dict[str, Any], history: list[Any], held_until: float
) -> None:
    """Brings the visit up to what was just committed."""
    visit.version += 1
    visit.step, visit.history, visit.held_until = decision.step, history, held_until
    if decision.deadline_seconds is not None:
        visit.deadline_at = visit.now + timedelta(seconds=boottime() - visit.claimed_at + decision.deadline_seconds)
    for name in ("attempts", "crashes", "progress", "upstream_request", "status", "upstream_state", "upstream_task_id"):
        if name in changes:
            setattr(visit, name, changes[name])


def record_lost_lease(visit: ClaimedTask) -> None:
    metrics.FENCED_WRITES.labels(visit.step).inc()
    log.warning("stale_visit", task_no=visit.task_no, step=visit.step, version=visit.version)
