"""What a task does next: pure functions from (visit, what was heard) to a move. No clock, no network, no database.

The tables "answer to a submit" and "answer to a poll" of the README live here, row by row.
"""

import math
import random
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from app.errors import TaskFailure
from app.see2ai.states import ResultKind, Verdict
from app.tasks.claim import Visit

MOST_CRASHES = 3
MOST_TROUBLES = 3  # tries of a submit that SEE2AI answers with 500, 502 or 503, in all
MOST_EMPTY_LOOKS = 5  # looks at a success without any result URL
LEAST_MISSING_LOOKS = 3
MISSING_SECONDS = 60.0
PROGRESS_CEILING = 95  # of a task whose result is not stored yet, whoever's figure it is
POLL_STAIRS = (
    (2.0, 2.0),
    (5.0, 3.0),
    (15.0, 5.0),
    (40.0, 8.0),
)  # (age of the job below, seconds to the next look)
SLOWEST_POLL_SECONDS = 10.0
LONGEST_BACKOFF_SECONDS = 60.0
LONGEST_POLL_BACKOFF_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Later:
    """The task stays on its step and is looked at again after a delay."""

    delay_seconds: float
    attempts: int = 0
    progress: int = 0
    crashes: int = 0
    upstream: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Onward:
    """The task takes another step, at once or after a delay. `changes` are columns of its row.

    `deadline_seconds` gives it a new deadline from now on: hosting has its own.
    """

    step: str
    note: str
    delay_seconds: float = 0.0
    changes: dict[str, Any] = field(default_factory=dict)
    deadline_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Complete:
    """The end that settles: `results` are the stored objects."""

    results: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Fail:
    """The end that refunds. `note` is for the operator; an orphan is a job SEE2AI may run unheard."""

    reason: TaskFailure
    note: str = ""
    is_orphan: bool = False


def as_it_was(visit: Visit, delay_seconds: float) -> Later:
    """Back to the queue with nothing learnt and nothing held against it."""
    return Later(delay_seconds, visit.attempts, visit.progress, visit.crashes, visit.upstream_state)


def parked(visit: Visit, pause_seconds: float, reason: str) -> Later:
    """Back to the queue until SEE2AI may be asked again; `reason` is what the task fails with at its deadline."""
    upstream = visit.upstream_state | {"note": reason[:500]}
    return Later(within(pause_seconds, visit.seconds_left()), visit.attempts, visit.progress, upstream=upstream)


Move = Later | Onward | Complete | Fail


def on_arrival(visit: Visit) -> Move | None:
    """What can be said before anything is asked: None where the step may go ahead."""
    if visit.step == "submitting":
        return Fail(TaskFailure.UPSTREAM_UNCERTAIN, "the visit that was sending never came back", is_orphan=True)
    if visit.crashes >= MOST_CRASHES:
        return Fail(TaskFailure.INTERNAL, f"{visit.crashes} visits to step {visit.step} never came back")
    if visit.step in {"prepare", "submit"} and visit.seconds_left() <= 0:
        return Fail(TaskFailure.UPSTREAM_UNAVAILABLE, visit.upstream_state.get("note") or "the deadline passed unsent")
    return None


def after_submit(visit: Visit, verdict: Verdict) -> Move:
    """The table "answer to a submit"."""
    match verdict.kind:
        case ResultKind.ACCEPTED:
            changes = {
                "status": "processing",
                "upstream_task_id": verdict.task_id,
                "upstream": {
                    "accepted_age": round(visit.age_seconds(), 1),
                    "approval": verdict.awaits_approval,
                },
            }
            delay = within(POLL_STAIRS[0][1], visit.seconds_left())
            return Onward("poll", f"accepted as {verdict.task_id}", delay, changes)
        case ResultKind.SUCCEEDED:
            # Nothing to poll for a fresh look: a result that cannot be fetched is only tried again.
            return Onward(
                "host",
                "SEE2AI answered with the result",
                changes={
                    "status": "processing",
                    "progress": PROGRESS_CEILING,
                    "upstream": {"urls": list(verdict.urls), "relooked": True},
                },
            )
        case ResultKind.REJECTED:
            return Fail(TaskFailure.UPSTREAM_REJECTED, verdict.detail)
        case ResultKind.GAVE_UP:
            return Fail(TaskFailure.TIMED_OUT, verdict.detail)
        case ResultKind.NOT_SENT | ResultKind.RATE_LIMITED | ResultKind.ACCOUNT_ERROR:
            return _send_again(visit, verdict, visit.upstream_state)
        case ResultKind.SERVER_ERROR:
            troubles = visit.upstream_state.get("troubles", 0) + 1
            if troubles >= MOST_TROUBLES:
                return Fail(TaskFailure.UPSTREAM_UNAVAILABLE, verdict.detail)
            return _send_again(visit, verdict, visit.upstream_state | {"troubles": troubles})
    return Fail(TaskFailure.UPSTREAM_UNCERTAIN, verdict.detail, is_orphan=True)


def after_chore(visit: Visit, verdict: Verdict) -> Move:
    """What is asked of SEE2AI before the job itself did not work out. Asking again is harmless, so it is."""
    upstream = visit.upstream_state | {"note": verdict.detail[:500]}
    if verdict.kind is ResultKind.REJECTED:
        return Fail(TaskFailure.UPSTREAM_REJECTED, verdict.detail)
    if verdict.kind in {ResultKind.SERVER_ERROR, ResultKind.AMBIGUOUS, ResultKind.GAVE_UP}:
        upstream["troubles"] = visit.upstream_state.get("troubles", 0) + 1
        if upstream["troubles"] >= MOST_TROUBLES:
            return Fail(TaskFailure.UPSTREAM_UNAVAILABLE, verdict.detail)
    delay = verdict.retry_after_seconds or backoff_seconds(visit.attempts, LONGEST_BACKOFF_SECONDS)
    return Later(within(delay, visit.seconds_left()), visit.attempts + 1, visit.progress, upstream=upstream)


def _send_again(visit: Visit, verdict: Verdict, upstream: dict[str, Any]) -> Move:
    """Back from the intent to `submit`: SEE2AI has certainly not taken the job."""
    delay = verdict.retry_after_seconds or backoff_seconds(visit.attempts, LONGEST_BACKOFF_SECONDS)
    changes = {"attempts": visit.attempts + 1, "upstream": upstream | {"note": verdict.detail[:500]}}
    return Onward("submit", verdict.detail, within(delay, visit.seconds_left()), changes)


def after_poll(visit: Visit, verdict: Verdict, now: datetime, *, is_last_look: bool) -> Move:
    """The table "answer to a poll". `now` dates the first of several 404s.

    `is_last_look`: it *began* at the deadline or later. One that only ended there is followed by a last one.
    """
    if verdict.kind in {ResultKind.FAILED, ResultKind.REJECTED}:
        return _ended_badly(visit, verdict)
    if verdict.kind is ResultKind.SUCCEEDED and verdict.urls:
        upstream = visit.upstream_state | {"urls": list(verdict.urls)}
        changes = {"upstream": upstream, "attempts": 0, "progress": PROGRESS_CEILING}
        return Onward("host", "SEE2AI is done", changes=changes)
    if visit.upstream_state.get("relooked"):
        return _back_to_known_links(visit, verdict, is_last_look=is_last_look)
    move = _look_again(visit, verdict, now)
    if isinstance(move, Later) and is_last_look:
        reason = TaskFailure.APPROVAL_EXPIRED if move.upstream.get("approval") else TaskFailure.TIMED_OUT
        return Fail(reason, verdict.detail or "still running at the deadline")
    return move


def _ended_badly(visit: Visit, verdict: Verdict) -> Fail:
    if visit.upstream_state.get("approval"):
        return Fail(TaskFailure.APPROVAL_EXPIRED, verdict.detail)
    is_refused = verdict.kind is ResultKind.REJECTED
    return Fail(TaskFailure.UPSTREAM_REJECTED if is_refused else TaskFailure.UPSTREAM_FAILED, verdict.detail)


def _back_to_known_links(visit: Visit, verdict: Verdict, *, is_last_look: bool) -> Move:
    """The fresh look brought no links: those known from before are tried on, until the hosting deadline."""
    if is_last_look:
        return Fail(TaskFailure.RESULT_LOST, visit.upstream_state.get("note") or verdict.detail)
    delay = within(backoff_seconds(visit.attempts, LONGEST_BACKOFF_SECONDS), visit.seconds_left())
    return Onward("host", f"no news: {verdict.detail}", delay, {"attempts": visit.attempts + 1})


def _look_again(visit: Visit, verdict: Verdict, now: datetime) -> Move:
    upstream, left = visit.upstream_state, visit.seconds_left()
    again = backoff_seconds(visit.attempts, LONGEST_POLL_BACKOFF_SECONDS)
    match verdict.kind:
        case ResultKind.RUNNING:
            return _still_running(visit, verdict)
        case ResultKind.SUCCEEDED:
            empty = upstream.get("empty", 0) + 1
            if empty >= MOST_EMPTY_LOOKS:
                return Fail(TaskFailure.RESULT_LOST, "success without any result URL")
            upstream = _without_404s(upstream) | {"empty": empty}
            return Later(within(again, left), visit.attempts + 1, visit.progress, upstream=upstream)
        case ResultKind.NOT_FOUND:
            since = upstream.get("missing_since") or now.isoformat()
            missing = upstream.get("missing", 0) + 1
            gone_seconds = (now - datetime.fromisoformat(since)).total_seconds()
            if missing >= LEAST_MISSING_LOOKS and gone_seconds >= MISSING_SECONDS:
                return Fail(TaskFailure.UPSTREAM_FAILED, f"SEE2AI has not known the task for {gone_seconds:.0f} s")
            upstream = upstream | {"missing": missing, "missing_since": since}
            return Later(within(again, left), visit.attempts + 1, visit.progress, upstream=upstream)
        case ResultKind.RATE_LIMITED | ResultKind.ACCOUNT_ERROR if verdict.retry_after_seconds:
            again = verdict.retry_after_seconds
    return Later(within(again, left), visit.attempts + 1, visit.progress, upstream=_without_404s(upstream))


def _still_running(visit: Visit, verdict: Verdict) -> Later:
    return Later(
        within(poll_delay_seconds(job_seconds(visit)), visit.seconds_left()),
        progress=max(visit.progress, min(verdict.progress or 0, PROGRESS_CEILING)),
        upstream=_without_404s(visit.upstream_state)
        | {"told": verdict.progress is not None, "approval": verdict.awaits_approval},
    )


def _without_404s(upstream: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in upstream.items() if not key.startswith("missing")}


def after_host_fault(visit: Visit, note: str, *, is_our_storage: bool) -> Move:
    """A result could not be fetched, read or stored: one fresh look at SEE2AI, then backoff, then the refund."""
    if visit.seconds_left() <= 0:
        return Fail(TaskFailure.RESULT_LOST, note)
    delay = within(backoff_seconds(visit.attempts, LONGEST_BACKOFF_SECONDS), visit.seconds_left())
    upstream = visit.upstream_state | {"note": note[:500]}
    if is_our_storage or visit.upstream_state.get("relooked"):
        return Later(delay, visit.attempts + 1, visit.progress, upstream=upstream)
    return Onward("poll", f"fresh look: {note}", changes={"upstream": upstream | {"relooked": True}})


def after_fault(visit: Visit, note: str) -> Move:
    """A handler of ours raised: another visit, until the third."""
    if visit.crashes + 1 >= MOST_CRASHES:
        return Fail(TaskFailure.INTERNAL, note)
    return Later(
        within(backoff_seconds(visit.crashes, LONGEST_BACKOFF_SECONDS), visit.seconds_left()),
        visit.attempts,
        visit.progress,
        crashes=visit.crashes + 1,
        upstream=visit.upstream_state,
    )


def job_seconds(visit: Visit) -> float:
    """How long SEE2AI has had the job: a task that waited long for it is looked after as closely as any other."""
    return visit.age_seconds() - float(visit.upstream_state.get("accepted_age", 0))


def poll_delay_seconds(age_seconds: float) -> float:
    """2, 3, 5, 8, then 10 seconds, jittered, by the age of the job."""
    for below, delay in POLL_STAIRS:
        if age_seconds < below:
            return delay * random.uniform(0.85, 1.15)  # noqa: S311
    return SLOWEST_POLL_SECONDS * random.uniform(0.85, 1.15)  # noqa: S311


def backoff_seconds(attempts: int, longest: float) -> float:
    """1, 2, 4, … seconds, at most `longest`, of which a random half."""
    return min(2.0 ** min(attempts, 10), longest) * random.uniform(0.5, 1.0)  # noqa: S311


def within(delay_seconds: float, seconds_left: float) -> float:
    """A delay that does not sleep past the deadline, where one last visit is due."""
    return max(min(delay_seconds, seconds_left + 0.01), 0.0)


def with_estimate(visit: Visit, move: Later, usual_seconds: float) -> Later:
    """While SEE2AI works and gives no figure of its own, progress follows the time that the model lately took."""
    if visit.step != "poll" or move.upstream.get("told"):
        return move
    return replace(move, progress=max(move.progress, estimate_progress(job_seconds(visit), usual_seconds)))


def estimate_progress(age_seconds: float, usual_seconds: float) -> int:
    """A guess from the usual time: half of it is about 60 %, and it never passes the ceiling."""
    return min(int(PROGRESS_CEILING * (1 - math.exp(-2 * max(age_seconds, 0) / usual_seconds))), PROGRESS_CEILING)


def estimate_seconds_left(progress: int, age_seconds: float, usual_seconds: float) -> int:
    """What `progress` leaves of the usual time, less the time since it was told; 0 says "any moment"."""
    return math.ceil(max(usual_seconds * (100 - progress) / 100 - max(age_seconds, 0), 0))
