"""What a task does next: pure functions from (visit, what was heard) to a move. No clock, no network, no database.

The tables "answer to a submit" and "answer to a poll" of the README live here, row by row.
"""

import math
import random
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from app.engine.claim import ClaimedTask
from app.errors import TaskFailure
from app.upstreams.see2ai.responses import ResultKind, UpstreamResult

MAX_CRASHES = 3
MAX_SUBMIT_ATTEMPTS = 3  # tries of a submit that SEE2AI answers with 500, 502 or 503, in all
MAX_EMPTY_RESULTS = 5  # looks at a success without any result URL
MIN_NOT_FOUND_POLLS = 3
NOT_FOUND_SECONDS = 60.0
PROGRESS_CEILING = 95  # of a task whose result is not stored yet, whoever's figure it is
POLL_SCHEDULE = (
    (2.0, 2.0),
    (5.0, 3.0),
    (15.0, 5.0),
    (40.0, 8.0),
)  # (age of the job below, seconds to the next look)
MAX_POLL_SECONDS = 10.0
MAX_BACKOFF_SECONDS = 60.0
MAX_POLL_BACKOFF_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Reschedule:
    """The task stays on its step and is looked at again after a delay."""

    delay_seconds: float
    attempts: int = 0
    progress: int = 0
    crashes: int = 0
    upstream_state: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Advance:
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


def unchanged(visit: ClaimedTask, delay_seconds: float) -> Reschedule:
    """Back to the queue with nothing learnt and nothing held against it."""
    return Reschedule(delay_seconds, visit.attempts, visit.progress, visit.crashes, visit.upstream_state)


def wait_for_upstream(visit: ClaimedTask, pause_seconds: float, reason: str) -> Reschedule:
    """Back to the queue until SEE2AI may be asked again; `reason` is what the task fails with at its deadline."""
    upstream = visit.upstream_state | {"note": reason[:500]}
    return Reschedule(
        clamp_to_deadline(pause_seconds, visit.seconds_left()), visit.attempts, visit.progress, upstream_state=upstream
    )


Decision = Reschedule | Advance | Complete | Fail


def before_step(visit: ClaimedTask) -> Decision | None:
    """What can be said before anything is asked: None where the step may go ahead."""
    if visit.step == "submitting":
        return Fail(TaskFailure.UPSTREAM_UNCERTAIN, "the visit that was sending never came back", is_orphan=True)
    if visit.crashes >= MAX_CRASHES:
        return Fail(TaskFailure.INTERNAL, f"{visit.crashes} visits to step {visit.step} never came back")
    if visit.step in {"prepare", "submit"} and visit.seconds_left() <= 0:
        return Fail(TaskFailure.UPSTREAM_UNAVAILABLE, visit.upstream_state.get("note") or "the deadline passed unsent")
    return None


def after_submit(visit: ClaimedTask, result: UpstreamResult) -> Decision:
    """The table "answer to a submit"."""
    match result.kind:
        case ResultKind.ACCEPTED:
            changes = {
                "status": "processing",
                "upstream_task_id": result.task_id,
                "upstream_state": {
                    "accepted_age": round(visit.age_seconds(), 1),
                    "approval": result.is_awaiting_approval,
                },
            }
            delay = clamp_to_deadline(POLL_SCHEDULE[0][1], visit.seconds_left())
            return Advance("poll", f"accepted as {result.task_id}", delay, changes)
        case ResultKind.SUCCEEDED:
            # Nothing to poll for a fresh look: a result that cannot be fetched is only tried again.
            return Advance(
                "host",
                "SEE2AI answered with the result",
                changes={
                    "status": "processing",
                    "progress": PROGRESS_CEILING,
                    "upstream_state": {"urls": list(result.urls), "is_refreshed": True},
                },
            )
        case ResultKind.REJECTED:
            return Fail(TaskFailure.UPSTREAM_REJECTED, result.detail)
        case ResultKind.UPSTREAM_TIMEOUT:
            return Fail(TaskFailure.TIMED_OUT, result.detail)
        case ResultKind.NOT_SENT | ResultKind.RATE_LIMITED | ResultKind.ACCOUNT_ERROR:
            return _send_again(visit, result, visit.upstream_state)
        case ResultKind.SERVER_ERROR:
            troubles = visit.upstream_state.get("troubles", 0) + 1
            if troubles >= MAX_SUBMIT_ATTEMPTS:
                return Fail(TaskFailure.UPSTREAM_UNAVAILABLE, result.detail)
            return _send_again(visit, result, visit.upstream_state | {"troubles": troubles})
    return Fail(TaskFailure.UPSTREAM_UNCERTAIN, result.detail, is_orphan=True)


def after_preparation(visit: ClaimedTask, result: UpstreamResult) -> Decision:
    """What is asked of SEE2AI before the job itself did not work out. Asking again is harmless, so it is."""
    upstream = visit.upstream_state | {"note": result.detail[:500]}
    if result.kind is ResultKind.REJECTED:
        return Fail(TaskFailure.UPSTREAM_REJECTED, result.detail)
    if result.kind in {ResultKind.SERVER_ERROR, ResultKind.UNKNOWN_OUTCOME, ResultKind.UPSTREAM_TIMEOUT}:
        upstream["troubles"] = visit.upstream_state.get("troubles", 0) + 1
        if upstream["troubles"] >= MAX_SUBMIT_ATTEMPTS:
            return Fail(TaskFailure.UPSTREAM_UNAVAILABLE, result.detail)
    delay = result.retry_after_seconds or backoff_seconds(visit.attempts, MAX_BACKOFF_SECONDS)
    return Reschedule(
        clamp_to_deadline(delay, visit.seconds_left()), visit.attempts + 1, visit.progress, upstream_state=upstream
    )


def _send_again(visit: ClaimedTask, result: UpstreamResult, upstream: dict[str, Any]) -> Decision:
    """Back from the intent to `submit`: SEE2AI has certainly not taken the job."""
    delay = result.retry_after_seconds or backoff_seconds(visit.attempts, MAX_BACKOFF_SECONDS)
    changes = {"attempts": visit.attempts + 1, "upstream_state": upstream | {"note": result.detail[:500]}}
    return Advance("submit", result.detail, clamp_to_deadline(delay, visit.seconds_left()), changes)


def after_poll(visit: ClaimedTask, result: UpstreamResult, now: datetime, *, is_last_poll: bool) -> Decision:
    """The table "answer to a poll". `now` dates the first of several 404s.

    `is_last_poll`: it *began* at the deadline or later. One that only ended there is followed by a last one.
    """
    if result.kind in {ResultKind.FAILED, ResultKind.REJECTED}:
        return _failed(visit, result)
    if result.kind is ResultKind.SUCCEEDED and result.urls:
        upstream = visit.upstream_state | {"urls": list(result.urls)}
        changes = {"upstream_state": upstream, "attempts": 0, "progress": PROGRESS_CEILING}
        return Advance("host", "SEE2AI is done", changes=changes)
    if visit.upstream_state.get("is_refreshed"):
        return _retry_known_urls(visit, result, is_last_poll=is_last_poll)
    decision = _poll_again(visit, result, now)
    if isinstance(decision, Reschedule) and is_last_poll:
        reason = TaskFailure.APPROVAL_EXPIRED if decision.upstream_state.get("approval") else TaskFailure.TIMED_OUT
        return Fail(reason, result.detail or "still running at the deadline")
    return decision


def _failed(visit: ClaimedTask, result: UpstreamResult) -> Fail:
    if visit.upstream_state.get("approval"):
        return Fail(TaskFailure.APPROVAL_EXPIRED, result.detail)
    is_refused = result.kind is ResultKind.REJECTED
    return Fail(TaskFailure.UPSTREAM_REJECTED if is_refused else TaskFailure.UPSTREAM_FAILED, result.detail)


def _retry_known_urls(visit: ClaimedTask, result: UpstreamResult, *, is_last_poll: bool) -> Decision:
    """The fresh look brought no links: those known from before are tried on, until the hosting deadline."""
    if is_last_poll:
        return Fail(TaskFailure.RESULT_LOST, visit.upstream_state.get("note") or result.detail)
    delay = clamp_to_deadline(backoff_seconds(visit.attempts, MAX_BACKOFF_SECONDS), visit.seconds_left())
    return Advance("host", f"no news: {result.detail}", delay, {"attempts": visit.attempts + 1})


def _poll_again(visit: ClaimedTask, result: UpstreamResult, now: datetime) -> Decision:
    upstream, left = visit.upstream_state, visit.seconds_left()
    again = backoff_seconds(visit.attempts, MAX_POLL_BACKOFF_SECONDS)
    match result.kind:
        case ResultKind.RUNNING:
            return _still_running(visit, result)
        case ResultKind.SUCCEEDED:
            empty = upstream.get("empty", 0) + 1
            if empty >= MAX_EMPTY_RESULTS:
                return Fail(TaskFailure.RESULT_LOST, "success without any result URL")
            upstream = _without_404s(upstream) | {"empty": empty}
            return Reschedule(
                clamp_to_deadline(again, left), visit.attempts + 1, visit.progress, upstream_state=upstream
            )
        case ResultKind.NOT_FOUND:
            since = upstream.get("missing_since") or now.isoformat()
            missing = upstream.get("missing", 0) + 1
            gone_seconds = (now - datetime.fromisoformat(since)).total_seconds()
            if missing >= MIN_NOT_FOUND_POLLS and gone_seconds >= NOT_FOUND_SECONDS:
                return Fail(TaskFailure.UPSTREAM_FAILED, f"SEE2AI has not known the task for {gone_seconds:.0f} s")
            upstream = upstream | {"missing": missing, "missing_since": since}
            return Reschedule(
                clamp_to_deadline(again, left), visit.attempts + 1, visit.progress, upstream_state=upstream
            )
        case ResultKind.RATE_LIMITED | ResultKind.ACCOUNT_ERROR if result.retry_after_seconds:
            again = result.retry_after_seconds
    return Reschedule(
        clamp_to_deadline(again, left), visit.attempts + 1, visit.progress, upstream_state=_without_404s(upstream)
    )


def _still_running(visit: ClaimedTask, result: UpstreamResult) -> Reschedule:
    return Reschedule(
        clamp_to_deadline(poll_delay_seconds(job_seconds(visit)), visit.seconds_left()),
        progress=max(visit.progress, min(result.progress or 0, PROGRESS_CEILING)),
        upstream_state=_without_404s(visit.upstream_state)
        | {"told": result.progress is not None, "approval": result.is_awaiting_approval},
    )


def _without_404s(upstream: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in upstream.items() if not key.startswith("missing")}


def after_host_fault(visit: ClaimedTask, note: str, *, is_our_storage: bool) -> Decision:
    """A result could not be fetched, read or stored: one fresh look at SEE2AI, then backoff, then the refund."""
    if visit.seconds_left() <= 0:
        return Fail(TaskFailure.RESULT_LOST, note)
    delay = clamp_to_deadline(backoff_seconds(visit.attempts, MAX_BACKOFF_SECONDS), visit.seconds_left())
    upstream = visit.upstream_state | {"note": note[:500]}
    if is_our_storage or visit.upstream_state.get("is_refreshed"):
        return Reschedule(delay, visit.attempts + 1, visit.progress, upstream_state=upstream)
    return Advance("poll", f"fresh look: {note}", changes={"upstream_state": upstream | {"is_refreshed": True}})


def after_fault(visit: ClaimedTask, note: str) -> Decision:
    """A handler of ours raised: another visit, until the third."""
    if visit.crashes + 1 >= MAX_CRASHES:
        return Fail(TaskFailure.INTERNAL, note)
    return Reschedule(
        clamp_to_deadline(backoff_seconds(visit.crashes, MAX_BACKOFF_SECONDS), visit.seconds_left()),
        visit.attempts,
        visit.progress,
        crashes=visit.crashes + 1,
        upstream_state=visit.upstream_state,
    )


def job_seconds(visit: ClaimedTask) -> float:
    """How long SEE2AI has had the job: a task that waited long for it is looked after as closely as any other."""
    return visit.age_seconds() - float(visit.upstream_state.get("accepted_age", 0))


def poll_delay_seconds(age_seconds: float) -> float:
    """2, 3, 5, 8, then 10 seconds, jittered, by the age of the job."""
    for below, delay in POLL_SCHEDULE:
        if age_seconds < below:
            return delay * random.uniform(0.85, 1.15)  # noqa: S311
    return MAX_POLL_SECONDS * random.uniform(0.85, 1.15)  # noqa: S311


def backoff_seconds(attempts: int, longest: float) -> float:
    """1, 2, 4, … seconds, at most `longest`, of which a random half."""
    return min(2.0 ** min(attempts, 10), longest) * random.uniform(0.5, 1.0)  # noqa: S311


def clamp_to_deadline(delay_seconds: float, seconds_left: float) -> float:
    """A delay that does not sleep past the deadline, where one last visit is due."""
    return max(min(delay_seconds, seconds_left + 0.01), 0.0)


def with_estimate(visit: ClaimedTask, decision: Reschedule, typical_seconds: float) -> Reschedule:
    """While SEE2AI works and gives no figure of its own, progress follows the time that the model lately took."""
    if visit.step != "poll" or decision.upstream_state.get("told"):
        return decision
    return replace(decision, progress=max(decision.progress, estimate_progress(job_seconds(visit), typical_seconds)))


def estimate_progress(age_seconds: float, typical_seconds: float) -> int:
    """A guess from the usual time: half of it is about 60 %, and it never passes the ceiling."""
    return min(int(PROGRESS_CEILING * (1 - math.exp(-2 * max(age_seconds, 0) / typical_seconds))), PROGRESS_CEILING)


def estimate_seconds_left(progress: int, age_seconds: float, typical_seconds: float) -> int:
    """What `progress` leaves of the usual time, less the time since it was told; 0 says "any moment"."""
    return math.ceil(max(typical_seconds * (100 - progress) / 100 - max(age_seconds, 0), 0))
