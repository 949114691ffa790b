"""What a task does next, without clock, network or database: the two tables as pure functions, and their properties."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine import claim
from app.engine import transitions as decide
from app.engine.claim import ClaimedTask, boottime
from app.engine.transitions import Advance, Complete, Fail, Reschedule
from app.errors import TaskFailure
from app.upstreams.protocol import ResultKind, UpstreamResult

BOOT_SECONDS = boottime()
NOW = datetime(2026, 3, 23, 12, 0, tzinfo=UTC)
OVERSHOOT = 0.011
"""A delay may pass the deadline by a hundredth, so that the last look comes after it."""
UPSTREAM_KEYS = st.fixed_dictionaries(
    {},
    optional={
        "troubles": st.integers(0, 2),
        "empty": st.integers(0, 4),
        "missing": st.integers(0, 9),
        "accepted_age": st.integers(0, 99),
        "is_refreshed": st.booleans(),
        "told": st.booleans(),
        "note": st.text(max_size=9),
    },
)


@pytest.fixture(scope="module", autouse=True)
def no_time_passes() -> Iterator[None]:
    """Between a decision and what is said of it; a busy machine may well stop there for a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claim, "boottime", lambda: BOOT_SECONDS)
        yield


def make_visit(step: str = "poll", *, left: float = 600, age: float = 0, **changes: Any) -> ClaimedTask:
    visit = ClaimedTask(
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
        upstream_state={},
        created_at=NOW - timedelta(seconds=age),
        deadline_at=NOW + timedelta(seconds=left),
        now=NOW,
        claimed_at=BOOT_SECONDS,
        held_until=BOOT_SECONDS + 30,
    )
    return replace(visit, **changes)


def after_poll(visit: ClaimedTask, result: UpstreamResult, now: datetime = NOW) -> decide.Decision:
    return decide.after_poll(visit, result, now, is_last_poll=visit.seconds_left() <= 0)


def delay_of(decision: decide.Decision) -> float:
    return decision.delay_seconds if isinstance(decision, Reschedule | Advance) else 0.0


visits = st.builds(
    make_visit,
    st.sampled_from(["poll", "host", "submitting"]),
    left=st.floats(-100, 4000),
    age=st.floats(-600, 4000),  # a clock may be set back
    attempts=st.integers(0, 10_000),
    crashes=st.integers(0, 2),
    progress=st.integers(0, 99),
    upstream_state=UPSTREAM_KEYS,
)
verdicts = st.builds(
    UpstreamResult,
    st.sampled_from(ResultKind),
    st.text(max_size=20),
    task_id=st.text(min_size=1, max_size=9),
    urls=st.lists(st.text(min_size=1), max_size=3).map(tuple),
    progress=st.none() | st.integers(0, 100),
    retry_after_seconds=st.none() | st.floats(0, 3600),
)


# ------------------------------------------------------------------ properties


@given(visits, verdicts)
def test_no_delay_is_negative_or_passes_the_deadline(visit: ClaimedTask, result: UpstreamResult) -> None:
    left = max(visit.seconds_left(), 0)
    for decision in (
        decide.after_submit(visit, result),
        after_poll(visit, result),
        decide.after_host_fault(visit, "x", is_our_storage=True),
        decide.after_host_fault(visit, "x", is_our_storage=False),
        decide.after_fault(visit, "x"),
    ):
        assert 0 <= delay_of(decision) <= left + OVERSHOOT


@given(visits, verdicts)
def test_only_the_rows_of_the_submit_table_end_a_task_and_only_doubt_makes_an_orphan(
    visit: ClaimedTask, result: UpstreamResult
) -> None:
    decision = decide.after_submit(visit, result)
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
        assert (decision.step == "host") == (result.kind is ResultKind.SUCCEEDED)
        assert decision.step in {"poll", "host", "submit"}
        if decision.step == "submit":
            assert result.kind in {
                ResultKind.NOT_SENT,
                ResultKind.RATE_LIMITED,
                ResultKind.ACCOUNT_ERROR,
                ResultKind.SERVER_ERROR,
            }


@given(visits, verdicts, st.floats(0, 100))
def test_before_the_deadline_only_the_rows_of_the_poll_table_end_a_task(
    visit: ClaimedTask, result: UpstreamResult, gone: float
) -> None:
    visit.upstream_state["missing_since"] = (NOW - timedelta(seconds=gone)).isoformat()
    decision = decide.after_poll(visit, result, NOW, is_last_poll=False)
    if isinstance(decision, Fail):
        assert not decision.is_orphan
        if result.kind is ResultKind.NOT_FOUND:
            assert gone >= decide.NOT_FOUND_SECONDS
            assert visit.upstream_state.get("missing", 0) + 1 >= decide.MIN_NOT_FOUND_POLLS
        elif result.kind is ResultKind.SUCCEEDED:
            assert not result.urls
            assert visit.upstream_state["empty"] + 1 >= decide.MAX_EMPTY_RESULTS
        else:
            assert result.kind in {ResultKind.FAILED, ResultKind.REJECTED}
    else:
        assert not isinstance(decision, Complete), "only stored results complete a task"
        has_links = result.kind is ResultKind.SUCCEEDED and bool(result.urls)
        assert isinstance(decision, Advance) == (has_links or bool(visit.upstream_state.get("is_refreshed")))


@given(visits, verdicts)
def test_the_last_look_ends_everything_but_a_success(visit: ClaimedTask, result: UpstreamResult) -> None:
    decision = decide.after_poll(visit, result, NOW, is_last_poll=True)
    if result.kind is ResultKind.SUCCEEDED and result.urls:
        assert isinstance(decision, Advance)
    else:
        assert isinstance(decision, Fail)
        assert not decision.is_orphan


@given(visits, verdicts)
def test_progress_never_falls_and_leaves_100_to_the_end(visit: ClaimedTask, result: UpstreamResult) -> None:
    decision = after_poll(visit, result)
    if isinstance(decision, Reschedule):
        assert visit.progress <= decision.progress < 100


@given(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9))
def test_within_is_a_delay(delay: float, left: float) -> None:
    assert 0 <= decide.clamp_to_deadline(delay, left) <= max(left + 0.01, 0)


@given(st.integers(0, 10**9), st.floats(0.1, 3600))
def test_backoff_is_half_random_and_bounded(attempts: int, longest: float) -> None:
    full = min(2.0 ** min(attempts, 10), longest)
    assert full / 2 <= decide.backoff_seconds(attempts, longest) <= full


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.floats(1, 1e4))
def test_the_estimate_grows_and_keeps_below_its_ceiling(one: float, two: float, usual: float) -> None:
    early, late = sorted((one, two))
    assert (
        0
        <= decide.estimate_progress(early, usual)
        <= decide.estimate_progress(late, usual)
        <= decide.PROGRESS_CEILING
        < 100
    )


# ------------------------------------------------------------------ examples


@pytest.mark.parametrize(
    ("age", "delay"), [(-5, 2), (0, 2), (1.9, 2), (2, 3), (4.9, 3), (5, 5), (15, 8), (39, 8), (40, 10), (4000, 10)]
)
def test_the_stairs_of_polling(age: float, delay: float) -> None:
    for _ in range(20):
        assert delay * 0.85 <= decide.poll_delay_seconds(age) <= delay * 1.15


def test_what_is_found_on_arrival() -> None:
    assert decide.before_step(make_visit("submit")) is None
    assert decide.before_step(make_visit("poll", left=-1)) is None, "there is one last look"
    assert decide.before_step(make_visit("host", left=-1)) is None, "there is one last try"
    assert decide.before_step(make_visit("poll", crashes=decide.MAX_CRASHES - 1)) is None
    crashed = decide.before_step(make_visit("poll", crashes=decide.MAX_CRASHES))
    assert isinstance(crashed, Fail)
    assert (crashed.reason, crashed.is_orphan) == (TaskFailure.INTERNAL, False)
    for visit in (make_visit("submitting"), make_visit("submitting", crashes=9, left=-1)):
        found = decide.before_step(visit)
        assert isinstance(found, Fail)
        assert (found.reason, found.is_orphan) == (TaskFailure.UPSTREAM_UNCERTAIN, True)
    for step in ("prepare", "submit"):
        late = decide.before_step(make_visit(step, left=-1, upstream_state={"note": "HTTP 429"}))
        assert isinstance(late, Fail)
        assert (late.reason, late.note, late.is_orphan) == (TaskFailure.UPSTREAM_UNAVAILABLE, "HTTP 429", False)


def test_the_third_trouble_of_a_submit_ends_it_whatever_came_between() -> None:
    upstream: dict[str, Any] = {}
    heard = [
        ResultKind.SERVER_ERROR,
        ResultKind.RATE_LIMITED,
        ResultKind.NOT_SENT,
        ResultKind.SERVER_ERROR,
        ResultKind.ACCOUNT_ERROR,
        ResultKind.SERVER_ERROR,
    ]
    for number, kind in enumerate(heard):
        decision = decide.after_submit(
            make_visit("submitting", attempts=number, upstream_state=upstream), UpstreamResult(kind, "why")
        )
        if number < len(heard) - 1:
            assert isinstance(decision, Advance)
            assert decision.changes["attempts"] == number + 1
            upstream = decision.changes["upstream_state"]
    assert isinstance(decision, Fail)
    assert decision.reason is TaskFailure.UPSTREAM_UNAVAILABLE


def test_an_accepted_job_starts_with_a_clean_slate() -> None:
    visit = make_visit("submitting", attempts=7, upstream_state={"troubles": 2, "note": "HTTP 503"})
    decision = decide.after_submit(visit, UpstreamResult(ResultKind.ACCEPTED, task_id="t-1"))
    assert isinstance(decision, Advance)
    assert (decision.changes["status"], decision.changes["upstream_task_id"]) == ("processing", "t-1")
    assert not {"troubles", "note"} & set(decision.changes["upstream_state"])


@pytest.mark.parametrize(
    "between",
    [
        UpstreamResult(ResultKind.RUNNING),
        UpstreamResult(ResultKind.SERVER_ERROR),
        UpstreamResult(ResultKind.RATE_LIMITED),
        UpstreamResult(ResultKind.SUCCEEDED),
    ],
)
def test_404s_count_in_a_row_only(between: UpstreamResult) -> None:
    upstream: dict[str, Any] = {}
    now = NOW
    for result in (
        UpstreamResult(ResultKind.NOT_FOUND),
        UpstreamResult(ResultKind.NOT_FOUND),
        between,
        UpstreamResult(ResultKind.NOT_FOUND),
    ):
        decision = after_poll(make_visit(upstream_state=upstream), result, now)
        assert isinstance(decision, Reschedule), result
        upstream, now = decision.upstream_state, now + timedelta(seconds=50)
    assert upstream["missing"] == 1


def test_a_404_is_believed_at_the_third_and_after_a_minute() -> None:
    for missing, gone, is_believed in ((2, 60, True), (2, 59.9, False), (1, 500, False), (9, 61, True)):
        since = (NOW - timedelta(seconds=gone)).isoformat()
        visit = make_visit(upstream_state={"missing": missing, "missing_since": since})
        assert isinstance(after_poll(visit, UpstreamResult(ResultKind.NOT_FOUND)), Fail) == is_believed


def test_a_pause_that_was_asked_for_is_kept() -> None:
    for kind in (ResultKind.RATE_LIMITED, ResultKind.ACCOUNT_ERROR):
        asked = UpstreamResult(kind, retry_after_seconds=33.0)
        assert delay_of(after_poll(make_visit(attempts=5), asked)) == 33.0
        assert delay_of(decide.after_submit(make_visit("submitting"), asked)) == 33.0


def test_a_figure_of_see2ai_is_kept_and_said_to_be_its_own() -> None:
    decision = after_poll(make_visit(progress=40), UpstreamResult(ResultKind.RUNNING, progress=30))
    assert isinstance(decision, Reschedule)
    assert (decision.progress, decision.upstream_state["told"]) == (40, True)
    unsaid = after_poll(make_visit(progress=40), UpstreamResult(ResultKind.RUNNING))
    assert isinstance(unsaid, Reschedule)
    assert (unsaid.progress, unsaid.upstream_state["told"]) == (40, False)


def test_a_lost_result_is_looked_for_once_then_waited_for_then_refunded() -> None:
    first = decide.after_host_fault(make_visit("host"), "404", is_our_storage=False)
    assert isinstance(first, Advance)
    assert (first.step, first.delay_seconds) == ("poll", 0.0)
    again = make_visit("host", attempts=3, upstream_state=first.changes["upstream_state"])
    second = decide.after_host_fault(again, "404", is_our_storage=False)
    assert isinstance(second, Reschedule)
    assert second.attempts == 4
    storage = decide.after_host_fault(make_visit("host"), "down", is_our_storage=True)
    assert isinstance(storage, Reschedule), "SEE2AI has no part in our storage"
    assert "is_refreshed" not in storage.upstream_state
    for is_our_storage in (True, False):
        late = decide.after_host_fault(make_visit("host", left=-1), "404", is_our_storage=is_our_storage)
        assert isinstance(late, Fail)
        assert late.reason is TaskFailure.RESULT_LOST


def test_a_handler_that_raises_has_three_visits() -> None:
    crashes = 0
    for _ in range(decide.MAX_CRASHES - 1):
        decision = decide.after_fault(make_visit(crashes=crashes, progress=40, upstream_state={"looks": 3}), "boom")
        assert isinstance(decision, Reschedule)
        assert (decision.progress, decision.upstream_state) == (40, {"looks": 3})
        crashes = decision.crashes
    assert isinstance(decide.after_fault(make_visit(crashes=crashes), "boom"), Fail)


# ------------------------------------------------------------------ results at once, chores, approval, fresh looks


def test_a_submit_that_brings_its_result_is_hosted_and_never_polled() -> None:
    decision = decide.after_submit(
        make_visit("submitting"), UpstreamResult(ResultKind.SUCCEEDED, urls=("https://x/1",))
    )
    assert isinstance(decision, Advance)
    assert decision.step == "host"
    hosted = make_visit("host", upstream_state=decision.changes["upstream_state"])
    assert isinstance(decide.after_host_fault(hosted, "404", is_our_storage=False), Reschedule)


@given(visits, verdicts)
def test_a_chore_is_repeated_and_never_makes_an_orphan(visit: ClaimedTask, result: UpstreamResult) -> None:
    decision = decide.after_preparation(visit, result)
    if isinstance(decision, Fail):
        assert not decision.is_orphan
        assert result.kind in {
            ResultKind.REJECTED,
            ResultKind.SERVER_ERROR,
            ResultKind.UNKNOWN_OUTCOME,
            ResultKind.UPSTREAM_TIMEOUT,
        }
        assert result.kind is ResultKind.REJECTED or visit.upstream_state["troubles"] + 1 >= decide.MAX_SUBMIT_ATTEMPTS
    else:
        assert isinstance(decision, Reschedule)
        assert 0 <= decision.delay_seconds <= max(visit.seconds_left(), 0) + OVERSHOOT


def test_an_approval_that_nobody_gives_ends_with_words_of_its_own() -> None:
    waiting = after_poll(make_visit(), UpstreamResult(ResultKind.RUNNING, is_awaiting_approval=True))
    assert isinstance(waiting, Reschedule)
    visit = make_visit(upstream_state=waiting.upstream_state)
    expired = after_poll(visit, UpstreamResult(ResultKind.FAILED, "expired: "))
    assert isinstance(expired, Fail)
    assert expired.reason is TaskFailure.APPROVAL_EXPIRED
    overdue = after_poll(make_visit(left=-1), UpstreamResult(ResultKind.RUNNING, is_awaiting_approval=True))
    assert isinstance(overdue, Fail)
    assert overdue.reason is TaskFailure.APPROVAL_EXPIRED
    granted = after_poll(visit, UpstreamResult(ResultKind.RUNNING))
    assert isinstance(granted, Reschedule)
    failed = after_poll(make_visit(upstream_state=granted.upstream_state), UpstreamResult(ResultKind.FAILED))
    assert isinstance(failed, Fail)
    assert failed.reason is TaskFailure.UPSTREAM_FAILED


def test_a_video_that_needs_repair_is_told_as_refused() -> None:
    decision = after_poll(make_visit(), UpstreamResult(ResultKind.REJECTED, "needs_repair"))
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
def test_a_fresh_look_without_news_goes_back_to_the_known_links(kind: ResultKind) -> None:
    upstream = {"urls": ["https://x/1"], "is_refreshed": True, "note": "404"}
    decision = after_poll(make_visit(upstream_state=upstream), UpstreamResult(kind))
    assert isinstance(decision, Advance)
    assert (decision.step, decision.changes) == ("host", {"attempts": 1})
    last = after_poll(make_visit(upstream_state=upstream, left=-1), UpstreamResult(kind))
    assert isinstance(last, Fail)
    assert last.reason is TaskFailure.RESULT_LOST
