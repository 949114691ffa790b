"""The decisions of the engine as pure functions, without clock, network or database: examples and properties."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.catalog import progress
from app.engine import state, transitions
from app.engine.state import ClaimedTask, Release, TaskUpdate, UpstreamState, boottime
from app.engine.transitions import Advance, Complete, Fail
from app.errors import TaskFailure
from app.upstreams.protocol import ResultKind, UpstreamResult

BOOT_SECONDS = boottime()
NOW = datetime(2026, 3, 23, 12, 0, tzinfo=UTC)
OVERSHOOT = 0.011
"""A delay may pass the deadline by a hundredth of a second, so that the last poll comes after it."""
UPSTREAM_STATES = st.builds(
    UpstreamState,
    server_errors=st.integers(0, 2),
    empty_results=st.integers(0, 4),
    not_found_polls=st.integers(0, 9),
    accepted_age_seconds=st.floats(0, 99),
    is_refreshed=st.booleans(),
    has_own_progress=st.booleans(),
    is_awaiting_approval=st.booleans(),
    note=st.text(max_size=9),
)


@pytest.fixture(scope="module", autouse=True)
def no_time_passes() -> Iterator[None]:
    """Stops the clock between a decision and its check. A busy machine may lose a second there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "boottime", lambda: BOOT_SECONDS)
        yield


def make_task(step: str = "poll", *, left: float = 600, age: float = 0, **changes: Any) -> ClaimedTask:
    task = ClaimedTask(
        id=1,
        task_no="TASK-1",
        user_id=1,
        model_name="m",
        task_type="text_to_image",
        action="see2ai_image_generation_fast_v1",
        upstream_request={"image_input": []},
        points_cost=30,
        status="queued",
        step=step,
        version=1,
        progress=0,
        attempts=0,
        crashes=0,
        history=[],
        upstream_task_id=None,
        upstream_state=UpstreamState(),
        created_at=NOW - timedelta(seconds=age),
        deadline_at=NOW + timedelta(seconds=left),
        now=NOW,
        claimed_at=BOOT_SECONDS,
        held_until=BOOT_SECONDS + 30,
    )
    return replace(task, **changes)


def after_poll(task: ClaimedTask, result: UpstreamResult, now: datetime = NOW) -> transitions.Decision:
    return transitions.after_poll(task, result, now, is_last_poll=task.seconds_left() <= 0)


def delay_of(decision: transitions.Decision) -> float:
    return decision.delay_seconds if isinstance(decision, Release | Advance) else 0.0


tasks = st.builds(
    make_task,
    st.sampled_from(["poll", "rehost", "submitting"]),
    left=st.floats(-100, 4000),
    age=st.floats(-600, 4000),  # a clock may be set back
    attempts=st.integers(0, 10_000),
    crashes=st.integers(0, 2),
    progress=st.integers(0, 99),
    upstream_state=UPSTREAM_STATES,
)
results = st.builds(
    UpstreamResult,
    st.sampled_from(ResultKind),
    st.text(max_size=20),
    task_id=st.text(min_size=1, max_size=9),
    urls=st.lists(st.text(min_size=1), max_size=3).map(tuple),
    progress=st.none() | st.integers(0, 100),
    retry_after_seconds=st.none() | st.floats(0, 3600),
)


# ------------------------------------------------------------------ properties


@given(tasks, results)
def test_no_delay_is_negative_or_passes_the_deadline(task: ClaimedTask, result: UpstreamResult) -> None:
    left = max(task.seconds_left(), 0)
    for decision in (
        transitions.after_submit(task, result),
        after_poll(task, result),
        transitions.after_rehost_error(task, "x", is_our_storage=True),
        transitions.after_rehost_error(task, "x", is_our_storage=False),
        transitions.after_exception(task, "x"),
    ):
        assert 0 <= delay_of(decision) <= left + OVERSHOOT


@given(tasks, results)
def test_only_the_rows_of_the_submit_table_end_a_task_and_only_an_unknown_outcome_makes_an_orphan(
    task: ClaimedTask, result: UpstreamResult
) -> None:
    decision = transitions.after_submit(task, result)
    if isinstance(decision, Fail):
        ends = {
            ResultKind.REJECTED: TaskFailure.UPSTREAM_REJECTED,
            ResultKind.UPSTREAM_TIMEOUT: TaskFailure.TIMED_OUT,
            ResultKind.SERVER_ERROR: TaskFailure.UPSTREAM_UNAVAILABLE,
        }
        assert decision.reason is ends.get(result.kind, TaskFailure.UPSTREAM_UNCERTAIN)
        assert decision.is_orphan == (result.kind not in ends)
        assert result.kind not in {
            ResultKind.NOT_SENT,
            ResultKind.RATE_LIMITED,
            ResultKind.ACCOUNT_ERROR,
            ResultKind.ACCEPTED,
            ResultKind.SUCCEEDED,
        }
    else:
        assert isinstance(decision, Advance), "a submit is never left in doubt"
        assert (decision.step == "poll") == (result.kind is ResultKind.ACCEPTED)
        assert (decision.step == "rehost") == (result.kind is ResultKind.SUCCEEDED)
        assert decision.step in {"poll", "rehost", "submit"}
        if decision.step == "submit":
            assert result.kind in {
                ResultKind.NOT_SENT,
                ResultKind.RATE_LIMITED,
                ResultKind.ACCOUNT_ERROR,
                ResultKind.SERVER_ERROR,
            }


@given(tasks, results, st.floats(0, 100))
def test_before_the_deadline_only_the_rows_of_the_poll_table_end_a_task(
    task: ClaimedTask, result: UpstreamResult, gone: float
) -> None:
    since = (NOW - timedelta(seconds=gone)).isoformat()
    task.upstream_state = replace(task.upstream_state, not_found_since=since)
    decision = transitions.after_poll(task, result, NOW, is_last_poll=False)
    if isinstance(decision, Fail):
        assert not decision.is_orphan
        if result.kind is ResultKind.NOT_FOUND:
            assert gone >= transitions.NOT_FOUND_SECONDS
            assert task.upstream_state.not_found_polls + 1 >= transitions.MIN_NOT_FOUND_POLLS
        elif result.kind is ResultKind.SUCCEEDED:
            assert not result.urls
            assert task.upstream_state.empty_results + 1 >= transitions.MAX_EMPTY_RESULTS
        else:
            assert result.kind in {ResultKind.FAILED, ResultKind.REJECTED}
    else:
        assert not isinstance(decision, Complete), "only stored results complete a task"
        has_links = result.kind is ResultKind.SUCCEEDED and bool(result.urls)
        assert isinstance(decision, Advance) == (has_links or task.upstream_state.is_refreshed)


@given(tasks, results)
def test_the_last_poll_ends_everything_but_a_success(task: ClaimedTask, result: UpstreamResult) -> None:
    decision = transitions.after_poll(task, result, NOW, is_last_poll=True)
    if result.kind is ResultKind.SUCCEEDED and result.urls:
        assert isinstance(decision, Advance)
    else:
        assert isinstance(decision, Fail)
        assert not decision.is_orphan


@given(tasks, results)
def test_progress_never_falls_and_leaves_100_to_the_end(task: ClaimedTask, result: UpstreamResult) -> None:
    decision = after_poll(task, result)
    if isinstance(decision, Release):
        assert task.progress <= decision.progress < 100


@given(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9))
def test_clamp_to_deadline_is_a_delay(delay: float, left: float) -> None:
    assert 0 <= transitions.clamp_to_deadline(delay, left) <= max(left + 0.01, 0)


@given(st.integers(0, 10**9), st.floats(0.1, 3600))
def test_backoff_is_half_random_and_bounded(attempts: int, max_length: float) -> None:
    full = min(2.0 ** min(attempts, 10), max_length)
    assert full / 2 <= transitions.backoff_seconds(attempts, max_length) <= full


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.floats(1, 1e4))
def test_the_estimate_grows_and_stays_below_its_limit(one: float, two: float, usual: float) -> None:
    early, late = sorted((one, two))
    assert (
        0
        <= progress.estimate_progress(early, usual)
        <= progress.estimate_progress(late, usual)
        <= transitions.PROGRESS_CEILING
        < 100
    )


# ------------------------------------------------------------------ examples


@pytest.mark.parametrize(
    ("age", "delay"), [(-5, 0.5), (0, 0.5), (2.5, 0.5), (3, 0.6), (10, 2), (24, 4.8), (25, 5), (4000, 5)]
)
def test_a_poll_comes_after_a_fifth_of_the_age(age: float, delay: float) -> None:
    for _ in range(20):
        assert delay * 0.85 <= transitions.poll_delay_seconds(age) <= delay * 1.15


def seen_after(ends_after: float) -> tuple[float, int]:
    """When the end of such a job is seen, and with how many polls."""
    age, polls = transitions.MIN_POLL_SECONDS, 1
    while age < ends_after:
        age, polls = age + transitions.poll_delay_seconds(age), polls + 1
    return age, polls


@given(st.floats(0.01, 2000))
def test_an_end_is_seen_after_a_quarter_more_of_the_age_or_six_seconds(ends_after: float) -> None:
    seen, _ = seen_after(ends_after)
    assert seen - ends_after <= min(max(ends_after / 4, transitions.MIN_POLL_SECONDS * 1.15), 6)


@pytest.mark.parametrize(("ends_after", "most"), [(3.3, 8), (20, 20), (60, 30), (240, 74), (600, 156)])
def test_a_job_costs_a_bounded_number_of_polls(ends_after: float, most: int) -> None:
    """docs/upstream.md says how many on average."""
    assert max(seen_after(ends_after)[1] for _ in range(50)) <= most


def test_a_poll_that_tells_nothing_new_copies_no_state() -> None:
    state = UpstreamState(accepted_age_seconds=1.5, has_own_progress=True)
    running = UpstreamResult(ResultKind.RUNNING, progress=40)
    release = after_poll(make_task(upstream_state=state), running)
    assert isinstance(release, Release)
    assert release.upstream_state is state
    news = after_poll(make_task(upstream_state=replace(state, not_found_polls=2, not_found_since="x")), running)
    assert isinstance(news, Release)
    assert news.upstream_state == state


def test_decisions_before_a_step() -> None:
    assert transitions.before_step(make_task("submit")) is None
    assert transitions.before_step(make_task("poll", left=-1)) is None, "there is one last poll"
    assert transitions.before_step(make_task("rehost", left=-1)) is None, "there is one last attempt"
    assert transitions.before_step(make_task("poll", crashes=transitions.MAX_CRASHES - 1)) is None
    crashed = transitions.before_step(make_task("poll", crashes=transitions.MAX_CRASHES))
    assert isinstance(crashed, Fail)
    assert (crashed.reason, crashed.is_orphan) == (TaskFailure.INTERNAL, False)
    for task in (make_task("submitting"), make_task("submitting", crashes=9, left=-1)):
        found = transitions.before_step(task)
        assert isinstance(found, Fail)
        assert (found.reason, found.is_orphan) == (TaskFailure.UPSTREAM_UNCERTAIN, True)
    for step in ("prepare", "submit"):
        late = transitions.before_step(make_task(step, left=-1, upstream_state=UpstreamState(note="HTTP 429")))
        assert isinstance(late, Fail)
        assert (late.reason, late.note, late.is_orphan) == (TaskFailure.UPSTREAM_UNAVAILABLE, "HTTP 429", False)


def test_the_third_server_error_of_a_submit_ends_it_whatever_came_between() -> None:
    upstream = UpstreamState()
    received = [
        ResultKind.SERVER_ERROR,
        ResultKind.RATE_LIMITED,
        ResultKind.NOT_SENT,
        ResultKind.SERVER_ERROR,
        ResultKind.ACCOUNT_ERROR,
        ResultKind.SERVER_ERROR,
    ]
    for number, kind in enumerate(received):
        decision = transitions.after_submit(
            make_task("submitting", attempts=number, upstream_state=upstream), UpstreamResult(kind, "why")
        )
        if number < len(received) - 1:
            assert isinstance(decision, Advance)
            assert decision.update.attempts == number + 1
            assert decision.update.upstream_state is not None
            upstream = decision.update.upstream_state
    assert isinstance(decision, Fail)
    assert decision.reason is TaskFailure.UPSTREAM_UNAVAILABLE


def test_an_accepted_job_starts_without_errors() -> None:
    task = make_task("submitting", attempts=7, upstream_state=UpstreamState(server_errors=2, note="HTTP 503"))
    decision = transitions.after_submit(task, UpstreamResult(ResultKind.ACCEPTED, task_id="t-1"))
    assert isinstance(decision, Advance)
    assert (decision.update.status, decision.update.upstream_task_id) == ("processing", "t-1")
    assert decision.update.upstream_state == UpstreamState()


@pytest.mark.parametrize(
    "between",
    [
        UpstreamResult(ResultKind.RUNNING),
        UpstreamResult(ResultKind.SERVER_ERROR),
        UpstreamResult(ResultKind.RATE_LIMITED),
        UpstreamResult(ResultKind.SUCCEEDED),
    ],
)
def test_only_consecutive_404s_count(between: UpstreamResult) -> None:
    upstream = UpstreamState()
    now = NOW
    for result in (
        UpstreamResult(ResultKind.NOT_FOUND),
        UpstreamResult(ResultKind.NOT_FOUND),
        between,
        UpstreamResult(ResultKind.NOT_FOUND),
    ):
        decision = after_poll(make_task(upstream_state=upstream), result, now)
        assert isinstance(decision, Release), result
        upstream, now = decision.upstream_state, now + timedelta(seconds=50)
    assert upstream.not_found_polls == 1


def test_a_404_is_final_at_the_third_and_after_a_minute() -> None:
    for missing, gone, is_believed in ((2, 60, True), (2, 59.9, False), (1, 500, False), (9, 61, True)):
        since = (NOW - timedelta(seconds=gone)).isoformat()
        task = make_task(upstream_state=UpstreamState(not_found_polls=missing, not_found_since=since))
        assert isinstance(after_poll(task, UpstreamResult(ResultKind.NOT_FOUND)), Fail) == is_believed


def test_a_requested_pause_is_kept() -> None:
    for kind in (ResultKind.RATE_LIMITED, ResultKind.ACCOUNT_ERROR):
        requested = UpstreamResult(kind, retry_after_seconds=33.0)
        assert delay_of(after_poll(make_task(attempts=5), requested)) == 33.0
        assert delay_of(transitions.after_submit(make_task("submitting"), requested)) == 33.0


def test_progress_of_see2ai_is_kept_and_marked_as_its_own() -> None:
    decision = after_poll(make_task(progress=40), UpstreamResult(ResultKind.RUNNING, progress=30))
    assert isinstance(decision, Release)
    assert (decision.progress, decision.upstream_state.has_own_progress) == (40, True)
    unsaid = after_poll(make_task(progress=40), UpstreamResult(ResultKind.RUNNING))
    assert isinstance(unsaid, Release)
    assert (unsaid.progress, unsaid.upstream_state.has_own_progress) == (40, False)


def test_a_lost_result_is_polled_once_then_retried_then_refunded() -> None:
    first = transitions.after_rehost_error(make_task("rehost"), "404", is_our_storage=False)
    assert isinstance(first, Advance)
    assert (first.step, first.delay_seconds) == ("poll", 0.0)
    again = make_task("rehost", attempts=3, upstream_state=first.update.upstream_state)
    second = transitions.after_rehost_error(again, "404", is_our_storage=False)
    assert isinstance(second, Release)
    assert second.attempts == 4
    storage = transitions.after_rehost_error(make_task("rehost"), "down", is_our_storage=True)
    assert isinstance(storage, Release), "SEE2AI has nothing to do with our storage"
    assert not storage.upstream_state.is_refreshed
    for is_our_storage in (True, False):
        late = transitions.after_rehost_error(make_task("rehost", left=-1), "404", is_our_storage=is_our_storage)
        assert isinstance(late, Fail)
        assert late.reason is TaskFailure.RESULT_LOST


def test_a_step_that_raises_is_tried_three_times() -> None:
    crashes, known = 0, UpstreamState(empty_results=3)
    for _ in range(transitions.MAX_CRASHES - 1):
        decision = transitions.after_exception(make_task(crashes=crashes, progress=40, upstream_state=known), "boom")
        assert isinstance(decision, Release)
        assert (decision.progress, decision.upstream_state) == (40, known)
        crashes = decision.crashes
    assert isinstance(transitions.after_exception(make_task(crashes=crashes), "boom"), Fail)


# ------------------------------------------------------------------ results at once, preparation, approval, fresh URLs


def test_a_submit_that_returns_its_result_is_rehosted_and_never_polled() -> None:
    decision = transitions.after_submit(
        make_task("submitting"), UpstreamResult(ResultKind.SUCCEEDED, urls=("https://x/1",))
    )
    assert isinstance(decision, Advance)
    assert decision.step == "rehost"
    hosted = make_task("rehost", upstream_state=decision.update.upstream_state)
    assert isinstance(transitions.after_rehost_error(hosted, "404", is_our_storage=False), Release)


@given(tasks, results)
def test_a_preparation_is_repeated_and_never_makes_an_orphan(task: ClaimedTask, result: UpstreamResult) -> None:
    decision = transitions.after_preparation(task, result)
    if isinstance(decision, Fail):
        assert not decision.is_orphan
        assert result.kind in {
            ResultKind.REJECTED,
            ResultKind.SERVER_ERROR,
            ResultKind.UNKNOWN_OUTCOME,
            ResultKind.UPSTREAM_TIMEOUT,
        }
        assert (
            result.kind is ResultKind.REJECTED
            or task.upstream_state.server_errors + 1 >= transitions.MAX_SUBMIT_ATTEMPTS
        )
    else:
        assert isinstance(decision, Release)
        assert 0 <= decision.delay_seconds <= max(task.seconds_left(), 0) + OVERSHOOT


def test_a_missing_approval_ends_as_approval_expired() -> None:
    waiting = after_poll(make_task(), UpstreamResult(ResultKind.RUNNING, is_awaiting_approval=True))
    assert isinstance(waiting, Release)
    task = make_task(upstream_state=waiting.upstream_state)
    expired = after_poll(task, UpstreamResult(ResultKind.FAILED, "expired: "))
    assert isinstance(expired, Fail)
    assert expired.reason is TaskFailure.APPROVAL_EXPIRED
    overdue = after_poll(make_task(left=-1), UpstreamResult(ResultKind.RUNNING, is_awaiting_approval=True))
    assert isinstance(overdue, Fail)
    assert overdue.reason is TaskFailure.APPROVAL_EXPIRED
    granted = after_poll(task, UpstreamResult(ResultKind.RUNNING))
    assert isinstance(granted, Release)
    failed = after_poll(make_task(upstream_state=granted.upstream_state), UpstreamResult(ResultKind.FAILED))
    assert isinstance(failed, Fail)
    assert failed.reason is TaskFailure.UPSTREAM_FAILED


def test_a_video_that_needs_repair_is_rejected() -> None:
    decision = after_poll(make_task(), UpstreamResult(ResultKind.REJECTED, "needs_repair"))
    assert isinstance(decision, Fail)
    assert decision.reason is TaskFailure.UPSTREAM_REJECTED


@pytest.mark.parametrize(
    "kind",
    [
        ResultKind.SERVER_ERROR,
        ResultKind.NOT_FOUND,
        ResultKind.RATE_LIMITED,
        ResultKind.ACCOUNT_ERROR,
        ResultKind.RUNNING,
        ResultKind.SUCCEEDED,
    ],
)
def test_a_refresh_without_urls_uses_the_known_urls(kind: ResultKind) -> None:
    upstream = UpstreamState(urls=("https://x/1",), is_refreshed=True, note="404")
    decision = after_poll(make_task(upstream_state=upstream), UpstreamResult(kind))
    assert isinstance(decision, Advance)
    assert (decision.step, decision.update) == ("rehost", TaskUpdate(attempts=1))
    last = after_poll(make_task(upstream_state=upstream, left=-1), UpstreamResult(kind))
    assert isinstance(last, Fail)
    assert last.reason is TaskFailure.RESULT_LOST
