"""One visit to one task: exactly one outside thing, then one commit fenced by `version`.

prepare      look at the first reference's size      → submit
submit       write the intent → POST to SEE2AI       → poll | submit again | failed
submitting   found again: its owner died in between  → failed, refunded, never sent twice
poll         GET the status                          → poll again | host | failed
host         egress → storage                        → completed | host again | one fresh poll | failed
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import structlog
from sqlalchemy import select

from app import metrics
from app.database import CommitUnknown, DuplicateRow, repeat_on_conflict, utc_after
from app.egress import EgressError
from app.errors import TaskFailure, Unavailable
from app.faults import fault_point
from app.media import read_size
from app.runtime import Runtime
from app.see2ai.actions import ACTIONS
from app.see2ai.actions.fast_image import resolve_ratio
from app.see2ai.states import Kind, Verdict
from app.tables import tasks
from app.tasks import decide
from app.tasks.claim import Visit, boot_seconds, write
from app.tasks.decide import Complete, Fail, Later, Move, Onward
from app.tasks.finish import finish_task
from app.tasks.host import host_results

log = structlog.get_logger()

T = TypeVar("T")

MOST_STEPS_KEPT = 40
START_BYTES = 65_536
PREPARE_SECONDS = 10.0


class Stale(Exception):
    """Another visit was first: whatever this one found out changes nothing."""


async def advance(runtime: Runtime, visit: Visit) -> Later | None:
    """Takes the task one step on, and further while it is due at once.

    Returns a Later for the caller to give back in a batch; None where everything is written. Raises Stale.
    """
    while True:
        fault_point("visit.claimed")
        move = decide.on_arrival(visit) or await _take_step(runtime, visit)
        if isinstance(move, Later):
            return _with_estimate(visit, move)
        if isinstance(move, Complete | Fail):
            await _end(runtime, visit, move)
            return None
        await _until_heard(visit, lambda: _write_onward(runtime, visit, move))  # noqa: B023 (awaited at once)
        fault_point("onward.after_commit")
        await runtime.notices.publish(visit.user_id, visit.task_no)
        if move.delay_seconds > 0:
            return None


async def _take_step(runtime: Runtime, visit: Visit) -> Move:
    match visit.step:
        case "prepare":
            return await _prepare(runtime, visit)
        case "submit":
            return await _submit(runtime, visit)
        case "poll":
            return await _poll(runtime, visit)
        case "host":
            return await host_results(runtime, visit)
    raise AssertionError(f"no step {visit.step}")


async def _prepare(runtime: Runtime, visit: Visit) -> Move:
    """`auto` becomes the allowed ratio nearest to the first reference's own, 1:1 where it cannot be read."""
    url = visit.request["image_input"][0]
    try:
        start = await runtime.egress.read_start(url, max_bytes=START_BYTES, timeout_seconds=PREPARE_SECONDS)
        size = read_size(start)
    except EgressError as error:
        log.info("reference_unreadable", task_no=visit.task_no, error=str(error))
        size = None
    ratio = resolve_ratio(size)
    return Onward("submit", f"auto is {ratio}", changes={"request": visit.request | {"aspect_ratio": ratio}})


async def _submit(runtime: Runtime, visit: Visit) -> Move:
    """Writes the intent, then sends. Between the two nobody else may send, and after them nobody ever will."""
    pause = runtime.circuit.pause_seconds()
    if pause:
        return _parked(visit, pause, f"circuit open: {runtime.circuit.reason}")
    fault_point("send.before_intent")
    await _write_onward(runtime, visit, Onward("submitting", "asking SEE2AI"))
    fault_point("send.after_intent")
    verdict = await runtime.see2ai.submit(ACTIONS[visit.action], visit.request, may_send=visit.is_held)
    fault_point("send.after_answer")
    verdict = _heed_circuit(runtime, verdict)
    return decide.after_submit(visit, verdict)


async def _poll(runtime: Runtime, visit: Visit) -> Move:
    is_last_look = visit.seconds_left() <= 0
    pause = 0.0 if is_last_look else runtime.circuit.poll_pause_seconds()
    if pause:
        return _parked(visit, pause, "polls slowed or circuit open: " + runtime.circuit.reason)
    fault_point("poll.before")
    verdict = await runtime.see2ai.poll(ACTIONS[visit.action], visit.upstream_task_id or "")
    fault_point("poll.after_answer")
    verdict = _heed_circuit(runtime, verdict)
    if verdict.kind is Kind.BUSY:
        runtime.circuit.slow_polls(verdict.retry_after_seconds)
    now = visit.now + timedelta(seconds=boot_seconds() - visit.claimed_at)
    move = decide.after_poll(visit, verdict, now, is_last_look=is_last_look)
    if isinstance(move, Onward) and not visit.upstream.get("relooked"):
        return replace(move, deadline_seconds=runtime.settings.hosting_deadline_seconds)
    return move


def _heed_circuit(runtime: Runtime, verdict: Verdict) -> Verdict:
    """401, 402 and 403 open the circuit, and its pause becomes the task's; any real answer closes it."""
    if verdict.kind is Kind.OPERATOR:
        pause = runtime.circuit.refused(verdict.note)
        return Verdict(verdict.kind, verdict.note, retry_after_seconds=pause)
    if verdict.kind in {Kind.NOT_SENT, Kind.AMBIGUOUS, Kind.TROUBLE}:
        runtime.circuit.unheard()
    else:
        runtime.circuit.answered()
    return verdict


def _parked(visit: Visit, pause_seconds: float, reason: str) -> Later:
    return Later(
        decide.within(pause_seconds, visit.seconds_left()),
        visit.attempts,
        visit.progress,
        upstream=visit.upstream | {"note": reason[:500]},
    )


def _with_estimate(visit: Visit, move: Later) -> Later:
    """Where SEE2AI gives no figure of its own, progress follows the model's usual time."""
    if visit.step != "poll" or move.upstream.get("told"):
        return move
    guess = decide.estimate_progress(decide.job_seconds(visit), ACTIONS[visit.action].usual_seconds)
    return replace(move, progress=max(move.progress, guess))


async def _end(runtime: Runtime, visit: Visit, end: Complete | Fail) -> None:
    note = "completed" if isinstance(end, Complete) else f"failed: {end.reason.name} {end.note}"
    steps = with_step(visit, "done", note)
    if not await _until_heard(visit, lambda: finish_task(runtime, visit, end, steps)):
        raise Stale
    await runtime.notices.publish(visit.user_id, visit.task_no)


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
    steps = with_step(visit, move.step, move.note)
    try:
        async with runtime.sessions.begin() as session:
            if not await write(session, visit, step=move.step, steps=steps, **changes):
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
    visit.step, visit.steps, visit.held_until = move.step, steps, held_until
    if move.deadline_seconds is not None:
        visit.deadline_at = visit.now + timedelta(seconds=boot_seconds() - visit.claimed_at + move.deadline_seconds)
    for name in ("attempts", "crashes", "request", "status", "upstream", "upstream_task_id"):
        if name in changes:
            setattr(visit, name, changes[name])


def with_step(visit: Visit, step: str, note: str) -> list[dict[str, Any]]:
    """The task's history with one more line, for `gateway tasks show`."""
    line = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "step": step, "note": note[:300]}
    return [*visit.steps, line][-MOST_STEPS_KEPT:]


def count_stale(visit: Visit) -> None:
    metrics.STALE_WRITES.labels(visit.step).inc()
    log.warning("stale_visit", task_no=visit.task_no, step=visit.step, version=visit.version)
