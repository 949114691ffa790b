"""What a task does next: pure functions from a claimed task and an upstream's result to a decision.

They use no clock, no network and no database. The tables "answer to a submit" and "answer to a poll" of
`docs/upstream.md` are these functions, row by row.
"""

import random
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from app.catalog.progress import PROGRESS_CEILING, estimate_progress
from app.engine.state import MAX_NOTE_LENGTH, ClaimedTask, Release, TaskUpdate, UpstreamState
from app.errors import TaskFailure
from app.upstreams.protocol import ResultKind, UpstreamResult

MAX_CRASHES = 3
MAX_SUBMIT_ATTEMPTS = 3  # of a submit that the upstream answers with 500, 502 or 503
MAX_EMPTY_RESULTS = 5  # polls that report success without a result URL
MIN_NOT_FOUND_POLLS = 3
NOT_FOUND_SECONDS = 60.0
MIN_POLL_SECONDS = 0.5
MAX_POLL_SECONDS = 5.0
POLLS_PER_AGE = 5  # a poll comes after a fifth of the job's age: an end is seen that much later at most
MAX_BACKOFF_SECONDS = 60.0
MAX_POLL_BACKOFF_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Advance:
    """The task takes another step, at once or after a delay. `deadline_seconds` sets a new deadline from now."""

    step: str
    note: str
    delay_seconds: float = 0.0
    update: TaskUpdate = field(default_factory=TaskUpdate)
    deadline_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Complete:
    """The task ends and its points are settled. `results` are the stored objects."""

    results: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Fail:
    """The task ends and its points are refunded. `note` is for the operator.

    `is_orphan`: the upstream may run a job of this task that the gateway does not know.
    """

    reason: TaskFailure
    note: str = ""
    is_orphan: bool = False


Decision = Release | Advance | Complete | Fail


def unchanged(task: ClaimedTask, delay_seconds: float) -> Release:
    """Back to the queue as it was claimed."""
    return Release(task, delay_seconds, task.attempts, task.crashes, task.progress, task.upstream_state)


def wait_for_upstream(task: ClaimedTask, pause_seconds: float, reason: str) -> Release:
    """Back to the queue until the upstream may be called again. `reason` becomes the note of a missed deadline."""
    delay = clamp_to_deadline(pause_seconds, task.seconds_left())
    return _retry(task, delay, with_note(task.upstream_state, reason), task.attempts)


def with_note(state: UpstreamState, note: str) -> UpstreamState:
    return replace(state, note=note[:MAX_NOTE_LENGTH])


def _retry(task: ClaimedTask, delay_seconds: float, state: UpstreamState, attempts: int | None = None) -> Release:
    """The same step again. This forgets crashes, because the step came to an end."""
    attempts = task.attempts + 1 if attempts is None else attempts
    return Release(task, delay_seconds, attempts, progress=task.progress, upstream_state=state)


def before_step(task: ClaimedTask) -> Decision | None:
    """A decision that needs no call; None where the step may begin."""
    if task.step == "submitting":
        return Fail(TaskFailure.UPSTREAM_UNCERTAIN, "the worker that was sending never came back", is_orphan=True)
    if task.crashes >= MAX_CRASHES:
        return Fail(TaskFailure.INTERNAL, f"{task.crashes} workers crashed at step {task.step}")
    if task.step in {"prepare", "submit"} and task.seconds_left() <= 0:
        return Fail(TaskFailure.UPSTREAM_UNAVAILABLE, task.upstream_state.note or "the deadline passed unsent")
    return None


def after_submit(task: ClaimedTask, result: UpstreamResult) -> Decision:
    """The table "answer to a submit"."""
    match result.kind:
        case ResultKind.ACCEPTED:
            return _accepted(task, result)
        case ResultKind.SUCCEEDED:
            # There is no job to poll for fresh URLs: a result that cannot be fetched is only tried again.
            state = UpstreamState(urls=result.urls, is_refreshed=True)
            update = TaskUpdate(status="processing", progress=PROGRESS_CEILING, upstream_state=state)
            return Advance("rehost", "SEE2AI answered with the result", update=update)
        case ResultKind.REJECTED:
            return Fail(TaskFailure.UPSTREAM_REJECTED, result.detail)
        case ResultKind.UPSTREAM_TIMEOUT:
            return Fail(TaskFailure.TIMED_OUT, result.detail)
        case ResultKind.NOT_SENT | ResultKind.RATE_LIMITED | ResultKind.ACCOUNT_ERROR:
            return _submit_again(task, result, task.upstream_state)
        case ResultKind.SERVER_ERROR:
            state = replace(task.upstream_state, server_errors=task.upstream_state.server_errors + 1)
            if state.server_errors >= MAX_SUBMIT_ATTEMPTS:
                return Fail(TaskFailure.UPSTREAM_UNAVAILABLE, result.detail)
            return _submit_again(task, result, state)
    return Fail(TaskFailure.UPSTREAM_UNCERTAIN, result.detail, is_orphan=True)


def _accepted(task: ClaimedTask, result: UpstreamResult) -> Advance:
    state = UpstreamState(
        accepted_age_seconds=round(task.age_seconds(), 1), is_awaiting_approval=result.is_awaiting_approval
    )
    update = TaskUpdate(status="processing", upstream_task_id=result.task_id, upstream_state=state)
    delay = clamp_to_deadline(MIN_POLL_SECONDS, task.seconds_left())
    return Advance("poll", f"accepted as {result.task_id}", delay, update)


def _submit_again(task: ClaimedTask, result: UpstreamResult, state: UpstreamState) -> Advance:
    """From `submitting` back to `submit`: the upstream has certainly not taken the job."""
    delay = result.retry_after_seconds or backoff_seconds(task.attempts, MAX_BACKOFF_SECONDS)
    update = TaskUpdate(attempts=task.attempts + 1, upstream_state=with_note(state, result.detail))
    return Advance("submit", result.detail, clamp_to_deadline(delay, task.seconds_left()), update)


def after_preparation(task: ClaimedTask, result: UpstreamResult) -> Decision:
    """A call before the job itself failed. It may be repeated without harm."""
    if result.kind is ResultKind.REJECTED:
        return Fail(TaskFailure.UPSTREAM_REJECTED, result.detail)
    state = with_note(task.upstream_state, result.detail)
    if result.kind in {ResultKind.SERVER_ERROR, ResultKind.UNKNOWN_OUTCOME, ResultKind.UPSTREAM_TIMEOUT}:
        state = replace(state, server_errors=state.server_errors + 1)
        if state.server_errors >= MAX_SUBMIT_ATTEMPTS:
            return Fail(TaskFailure.UPSTREAM_UNAVAILABLE, result.detail)
    delay = result.retry_after_seconds or backoff_seconds(task.attempts, MAX_BACKOFF_SECONDS)
    return _retry(task, clamp_to_deadline(delay, task.seconds_left()), state)


def after_poll(task: ClaimedTask, result: UpstreamResult, now: datetime, *, is_last_poll: bool) -> Decision:
    """The table "answer to a poll". `now` dates the first of several 404s.

    `is_last_poll`: the poll *began* at the deadline or later. A poll that only ended then is followed by a last one.
    """
    if result.kind in {ResultKind.FAILED, ResultKind.REJECTED}:
        return _failed(task, result)
    if result.kind is ResultKind.SUCCEEDED and result.urls:
        state = replace(task.upstream_state, urls=result.urls)
        return Advance("rehost", "SEE2AI is done", update=TaskUpdate(progress=PROGRESS_CEILING, upstream_state=state))
    if task.upstream_state.is_refreshed:
        return _retry_known_urls(task, result, is_last_poll=is_last_poll)
    decision = _poll_again(task, result, now)
    if isinstance(decision, Release) and is_last_poll:
        is_waiting = decision.upstream_state.is_awaiting_approval
        reason = TaskFailure.APPROVAL_EXPIRED if is_waiting else TaskFailure.TIMED_OUT
        return Fail(reason, result.detail or "still running at the deadline")
    return decision


def _failed(task: ClaimedTask, result: UpstreamResult) -> Fail:
    if task.upstream_state.is_awaiting_approval:
        return Fail(TaskFailure.APPROVAL_EXPIRED, result.detail)
    is_rejected = result.kind is ResultKind.REJECTED
    return Fail(TaskFailure.UPSTREAM_REJECTED if is_rejected else TaskFailure.UPSTREAM_FAILED, result.detail)


def _retry_known_urls(task: ClaimedTask, result: UpstreamResult, *, is_last_poll: bool) -> Decision:
    """The poll for fresh URLs brought none: the known ones are tried until the hosting deadline."""
    if is_last_poll:
        return Fail(TaskFailure.RESULT_LOST, task.upstream_state.note or result.detail)
    delay = clamp_to_deadline(backoff_seconds(task.attempts, MAX_BACKOFF_SECONDS), task.seconds_left())
    return Advance("rehost", f"no fresh URLs: {result.detail}", delay, TaskUpdate(attempts=task.attempts + 1))


def _poll_again(task: ClaimedTask, result: UpstreamResult, now: datetime) -> Decision:
    state = task.upstream_state
    delay = backoff_seconds(task.attempts, MAX_POLL_BACKOFF_SECONDS)
    if result.kind is ResultKind.RUNNING:
        return _still_running(task, result)
    if result.kind is ResultKind.NOT_FOUND:
        state = replace(
            state,
            not_found_polls=state.not_found_polls + 1,
            not_found_since=state.not_found_since or now.isoformat(),
        )
        missing_seconds = (now - datetime.fromisoformat(state.not_found_since)).total_seconds()
        if state.not_found_polls >= MIN_NOT_FOUND_POLLS and missing_seconds >= NOT_FOUND_SECONDS:
            return Fail(TaskFailure.UPSTREAM_FAILED, f"SEE2AI has not known the task for {missing_seconds:.0f} s")
        return _retry(task, clamp_to_deadline(delay, task.seconds_left()), state)
    state = _without_404s(state)
    if result.kind is ResultKind.SUCCEEDED:
        state = replace(state, empty_results=state.empty_results + 1)
        if state.empty_results >= MAX_EMPTY_RESULTS:
            return Fail(TaskFailure.RESULT_LOST, "success without any result URL")
    elif result.kind in {ResultKind.RATE_LIMITED, ResultKind.ACCOUNT_ERROR}:
        delay = result.retry_after_seconds or delay
    return _retry(task, clamp_to_deadline(delay, task.seconds_left()), state)


def _still_running(task: ClaimedTask, result: UpstreamResult) -> Release:
    return Release(
        task,
        clamp_to_deadline(poll_delay_seconds(job_seconds(task)), task.seconds_left()),
        progress=max(task.progress, min(result.progress or 0, PROGRESS_CEILING)),
        upstream_state=_running_state(_without_404s(task.upstream_state), result),
    )


def _running_state(state: UpstreamState, result: UpstreamResult) -> UpstreamState:
    """Most polls change nothing, and a copy is not free."""
    has_own, is_awaiting = result.progress is not None, result.is_awaiting_approval
    known = (state.has_own_progress, state.is_awaiting_approval, state.unknown_state)
    if known == (has_own, is_awaiting, result.unknown_state):
        return state
    return replace(
        state, has_own_progress=has_own, is_awaiting_approval=is_awaiting, unknown_state=result.unknown_state
    )


def _without_404s(state: UpstreamState) -> UpstreamState:
    return replace(state, not_found_polls=0, not_found_since="") if state.not_found_polls else state


def after_rehost_error(task: ClaimedTask, note: str, *, is_our_storage: bool) -> Decision:
    """A result could not be fetched, read or stored: one poll for fresh URLs, then backoff, then the refund."""
    if task.seconds_left() <= 0:
        return Fail(TaskFailure.RESULT_LOST, note)
    state = with_note(task.upstream_state, note)
    if is_our_storage or state.is_refreshed:
        delay = backoff_seconds(task.attempts, MAX_BACKOFF_SECONDS)
        return _retry(task, clamp_to_deadline(delay, task.seconds_left()), state)
    update = TaskUpdate(upstream_state=replace(state, is_refreshed=True))
    return Advance("poll", f"fresh URLs wanted: {note}", update=update)


def after_exception(task: ClaimedTask, note: str) -> Decision:
    """The code of a step raised: the step is tried again, at most three times in all."""
    if task.crashes + 1 >= MAX_CRASHES:
        return Fail(TaskFailure.INTERNAL, note)
    delay = clamp_to_deadline(backoff_seconds(task.crashes, MAX_BACKOFF_SECONDS), task.seconds_left())
    return replace(unchanged(task, delay), crashes=task.crashes + 1)


def with_estimate(task: ClaimedTask, release: Release, typical_seconds: float) -> Release:
    """While the upstream works and reports no progress, the gateway estimates it."""
    if task.step != "poll" or release.upstream_state.has_own_progress:
        return release
    estimate = estimate_progress(job_seconds(task), typical_seconds)
    return replace(release, progress=estimate) if estimate > release.progress else release


def job_seconds(task: ClaimedTask) -> float:
    """The age of the upstream's job. The time before its acceptance does not count."""
    return task.age_seconds() - task.upstream_state.accepted_age_seconds


def poll_delay_seconds(age_seconds: float) -> float:
    """A fifth of the job's age, from 0.5 to 5 seconds, jittered. A short job is seen soon, a long one asked seldom."""
    delay = min(max(age_seconds / POLLS_PER_AGE, MIN_POLL_SECONDS), MAX_POLL_SECONDS)
    return delay * random.uniform(0.85, 1.15)  # noqa: S311


def backoff_seconds(attempts: int, max_seconds: float) -> float:
    """1, 2, 4, … seconds, at most `max_seconds`, times a random factor from 0.5 to 1."""
    return min(2.0 ** min(attempts, 10), max_seconds) * random.uniform(0.5, 1.0)  # noqa: S311


def clamp_to_deadline(delay_seconds: float, seconds_left: float) -> float:
    """A delay that ends at the deadline at the latest, where the last try is due."""
    return max(min(delay_seconds, seconds_left + 0.01), 0.0)
