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

from app import metrics
from app.database import CommitUnknown, DuplicateRow, repeat_on_conflict, utc_after
from app.errors import TaskFailure, Unavailable
from app.faults import fault_point
from app.runtime import Runtime
from app.see2ai.states import ResultKind
from app.tables import tasks
from app.tasks import decide
from app.tasks.claim import Visit, boot_seconds, fenced_update
from app.tasks.decide import Complete, Fail, Later, Move, Onward
from app.tasks.durations import usual_seconds
from app.tasks.finish import finish_task, with_step
from app.tasks.host import host_results
from app.tasks.prepare import prepare
from app.tasks.providers import ask_leave

log = structlog.get_logger()

T = TypeVar("T")

AT_ONCE_SECONDS = 0.001  # a delay, so that the row is given back, but none to speak of


class Stale(Exception):
    """Another visit was first: whatever this one found out changes nothing."""


def always(_step: str) -> bool:
    """Every step is this visit's own."""
    return True


async def run_steps(runtime: Runtime, visit: Visit, may_go_on: Callable[[str], bool] = always) -> Later | None:
    """Takes the task one step on, and further while it is due at once and `may_go_on` to the next.

    Returns a Later for the caller to give back in a batch; None where everything is written. Raises Stale.
    """
    while True:
        fault_point("visit.claimed")
        move = decide.on_arrival(visit) or await _take_step(runtime, visit)
        if isinstance(move, Later):
            return decide.with_estimate(visit, move, usual_seconds(runtime, visit.model_name, visit.action))
        if isinstance(move, Complete | Fail):
            await _end(runtime, visit, move)
            return None
        if move.step != visit.step and not move.delay_seconds and not may_go_on(move.step):
            move = replace(move, delay_seconds=AT_ONCE_SECONDS)
        await _until_heard(visit, lambda: _write_onward(runtime, visit, move))  # noqa: B023 (awaited at once)
        fault_point("onward.after_commit")
        runtime.notices.publish(visit.user_id, visit.task_no)
        if move.delay_seconds > 0:
            return None


async def _take_step(runtime: Runtime, visit: Visit) -> Move:
    match visit.step:
        case "prepare":
            return await prepare(runtime, visit, lambda intent: _write_onward(runtime, visit, intent))
        case "submit":
            return await _submit(runtime, visit)
        case "poll":
            return await _poll(runtime, visit)
        case "host":
            return await host_results(runtime, visit)
    raise AssertionError(f"no step {visit.step}")


async def _submit(runtime: Runtime, visit: Visit) -> Move:
    """Writes the intent, then sends. Between the two nobody else may send, and after them nobody ever will."""
    action = runtime.actions[visit.action]
    circuit = runtime.circuits[action.provider]
    if pause := await ask_leave(runtime, circuit):
        return decide.parked(visit, pause, f"circuit open: {circuit.reason}")
    with circuit.call():
        fault_point("send.before_intent")
        await _write_onward(runtime, visit, Onward("submitting", "asking SEE2AI"))
        fault_point("send.after_intent")
        verdict = await runtime.see2ai.submit(action, visit.upstream_request, may_send=visit.is_held)
        fault_point("send.after_answer")
        verdict = circuit.heed(verdict)
    return _with_hosting_deadline(runtime, visit, decide.after_submit(visit, verdict))


async def _poll(runtime: Runtime, visit: Visit) -> Move:
    action = runtime.actions[visit.action]
    circuit = runtime.circuits[action.provider]
    is_last_look = visit.seconds_left() <= 0
    is_asked_anyway = is_last_look or visit.upstream_state.get("relooked")  # of a job that is done, its links only
    pause = 0.0 if is_asked_anyway else await ask_leave(runtime, circuit, is_poll=True)
    if pause:
        return decide.parked(visit, pause, "polls slowed or circuit open: " + circuit.reason)
    with circuit.call(is_look=True):
        fault_point("poll.before")
        verdict = await runtime.see2ai.poll(action, visit.upstream_task_id or "")
        fault_point("poll.after_answer")
        verdict = circuit.heed(verdict, is_look=True)
    if verdict.kind is ResultKind.RATE_LIMITED:
        circuit.slow_polls(verdict.retry_after_seconds)
    now = visit.now + timedelta(seconds=boot_seconds() - visit.claimed_at)
    return _with_hosting_deadline(runtime, visit, decide.after_poll(visit, verdict, now, is_last_look=is_last_look))


def _with_hosting_deadline(runtime: Runtime, visit: Visit, move: Move) -> Move:
    """Hosting has a time of its own, counted from the first word that there is a result."""
    if isinstance(move, Onward) and move.step == "host" and not visit.upstream_state.get("relooked"):
        return replace(move, deadline_seconds=runtime.settings.hosting_deadline_seconds)
    return move


async def _end(runtime: Runtime, visit: Visit, end: Complete | Fail) -> None:
    note = "completed" if isinstance(end, Complete) else f"failed: {end.reason.name} {end.note}"
    steps = with_step(visit.history, "done", note)
    is_ours = await _until_heard(visit, lambda: finish_task(runtime, visit, end, steps))
    runtime.notices.publish(visit.user_id, visit.task_no)  # if another was first, that may be our own unheard COMMIT
    if not is_ours:
        raise Stale


async def _until_heard(visit: Visit, write_it: Callable[[], Awaitable[T]]) -> T:
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


@repeat_on_conflict
async def _write_onward(runtime: Runtime, visit: Visit, move: Onward) -> None:
    """Commits a step. While the task is due at once the lease stays with this visit, renewed."""
    lease_seconds = runtime.settings.lease_seconds
    began = boot_seconds()
    changes = {"attempts": 0, "crashes": 0, **move.changes}
    if move.delay_seconds > 0:
        changes |= {"next_run_at": utc_after(round(move.delay_seconds, 3)), "lease_until": None}
    else:
        changes |= {"next_run_at": utc_after(lease_seconds), "lease_until": utc_after(lease_seconds)}
    if move.deadline_seconds is not None:
        changes["deadline_at"] = utc_after(move.deadline_seconds)
    if move.step == "submitting":
        changes["attempts"] = visit.attempts
        if not visit.is_held():
            raise Stale
    steps = with_step(visit.history, move.step, move.note)
    try:
        async with runtime.sessions.begin() as session:
            if not await fenced_update(session, visit, step=move.step, steps=steps, **changes):
                raise Stale
    except DuplicateRow as error:
        # SEE2AI gave the number of a job that another task already has: which of the two it works on is unknown.
        reused = Fail(TaskFailure.UPSTREAM_UNCERTAIN, f"a task id used before: {error.text[:200]}", is_orphan=True)
        await _end(runtime, visit, reused)
        raise Stale from error
    except CommitUnknown:
        if not await _until_heard(visit, lambda: _stands(runtime, visit, move.step)):
            raise
    _remember(visit, move, changes, steps, began + lease_seconds)


async def _stands(runtime: Runtime, visit: Visit, step: str) -> bool:
    """After an unheard COMMIT: whether it happened. No other visit leads from this version to this step."""
    async with runtime.sessions.read() as session:
        found = await session.execute(select(tasks.c.version, tasks.c.step).where(tasks.c.id == visit.id))
        return tuple(found.one()) == (visit.version + 1, step)


def _remember(visit: Visit, move: Onward, changes: dict[str, Any], steps: list[Any], held_until: float) -> None:
    """Brings the visit up to what was just committed."""
    visit.version += 1
    visit.step, visit.history, visit.held_until = move.step, steps, held_until
    if move.deadline_seconds is not None:
        visit.deadline_at = visit.now + timedelta(seconds=boot_seconds() - visit.claimed_at + move.deadline_seconds)
    for name in ("attempts", "crashes", "progress", "request", "status", "upstream", "upstream_task_id"):
        if name in changes:
            setattr(visit, name, changes[name])


def count_stale(visit: Visit) -> None:
    metrics.STALE_WRITES.labels(visit.step).inc()
    log.warning("stale_visit", task_no=visit.task_no, step=visit.step, version=visit.version)
