"""Progress and the time left: durations of models come from recent rows, and progress never goes back."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import update

from app.aio import cancel_and_wait
from app.catalog import durations
from app.catalog.durations import read_durations, refresh_durations, typical_seconds, update_durations
from app.catalog.progress import estimate_seconds_left
from app.database import utc_after
from app.engine import transitions
from app.engine.state import ClaimedTask, Release, UpstreamState, boottime
from app.engine.transitions import Advance, Fail, with_estimate
from app.jobs import scheduler
from app.runtime import Runtime, open_runtime
from app.tables import tasks
from app.upstreams.protocol import ResultKind, UpstreamResult
from tests.support.makers import TEXT_MODEL, Maker, User
from tests.support.run import full
from tests.support.task_rows import shorten_delays
from tests.support.waiting import until
from tests.support.worlds import REAL, execute

pytestmark = [pytest.mark.anyio, pytest.mark.both_worlds(usually=REAL)]
NOW = datetime(2026, 11, 21, tzinfo=UTC)
ACTION = "see2ai_image_generation_fast_v1"
OTHER_MODEL = "sc_soraimg_text_2x3"
VIDEO_MODEL = "sc_video_text_fast"


# ------------------------------------------------------------------ progress for any sequence of polls


@dataclass(frozen=True)
class Poll:
    """One poll: the seconds since the one before, SEE2AI's answer, and whether the process crashes after it."""

    seconds: float
    result: UpstreamResult
    typical_seconds: float
    crashes: bool
    storage_fails: bool


poll_entries = st.builds(
    Poll,
    st.floats(-60, 600),  # a clock may be set back
    st.builds(
        UpstreamResult,
        st.sampled_from([*[ResultKind.RUNNING] * 4, *ResultKind]),
        urls=st.sampled_from([(), ("https://see2ai.example/1.png",)]),
        progress=st.none() | st.integers(0, 100) | st.integers(94, 100),
    ),
    st.floats(1, 4000),  # the duration of the model may be updated at any time
    st.booleans(),
    st.booleans(),
)


def task_of(row: dict[str, Any], age_seconds: float) -> ClaimedTask:
    """The task as a worker claims it from its row."""
    return ClaimedTask(
        id=1,
        task_no="TASK-1",
        user_id=1,
        model_name="m",
        task_type="text_to_image",
        action=ACTION,
        upstream_request={},
        points_cost=30,
        status="processing",
        version=1,
        crashes=0,
        history=[],
        upstream_task_id="1",
        created_at=NOW - timedelta(seconds=age_seconds),
        deadline_at=NOW + timedelta(seconds=600),
        now=NOW,
        claimed_at=boottime(),
        held_until=boottime() + 30,
        **row,
    )


def next_row(row: dict[str, Any], age_seconds: float, poll: Poll) -> dict[str, Any] | None:
    """The row after a poll. None if the task has ended."""
    task = task_of(row, age_seconds)
    if task.step == "poll":
        decision = transitions.after_poll(task, poll.result, NOW, is_last_poll=False)
    else:
        decision = transitions.after_rehost_error(task, "lost", is_our_storage=poll.storage_fails)
    if isinstance(decision, Release):
        decision = with_estimate(task, decision, poll.typical_seconds)
        return row | {
            "progress": decision.progress,
            "upstream_state": decision.upstream_state,
            "attempts": decision.attempts,
        }
    if isinstance(decision, Advance):
        decision.update.apply_to(task)
        return {"step": decision.step} | {name: getattr(task, name) for name in row if name != "step"}
    assert isinstance(decision, Fail)
    return None


@given(st.lists(poll_entries, max_size=40))
def test_progress_never_falls_and_never_passes_its_limit(received: list[Poll]) -> None:
    row: dict[str, Any] | None = {"step": "poll", "progress": 0, "upstream_state": UpstreamState(3.0), "attempts": 0}
    age_seconds, reported_before = 0.0, 0
    for poll in received:
        age_seconds += poll.seconds
        after = next_row(row, age_seconds, poll)
        if after is None:
            return
        assert reported_before <= after["progress"] <= transitions.PROGRESS_CEILING < 100
        reported_before = after["progress"]
        if not poll.crashes:
            row = after
        reported_before = row["progress"]


@pytest.mark.parametrize("step", ["prepare", "submit", "poll", "rehost"])
@given(st.integers(0, 95), st.floats(0, 100))
def test_other_decisions_leave_the_progress_unchanged(step: str, progress: int, seconds: float) -> None:
    task = task_of(
        {"step": step, "progress": progress, "upstream_state": UpstreamState(has_own_progress=True), "attempts": 0}, 10
    )
    moves = (
        transitions.unchanged(task, seconds),
        transitions.wait_for_upstream(task, seconds, "breaker open"),
        transitions.after_exception(task, "boom"),
        transitions.after_preparation(task, UpstreamResult(ResultKind.RATE_LIMITED)),
    )
    for decision in moves:
        assert isinstance(decision, Release)
        assert with_estimate(task, decision, 60).progress == progress


def test_a_result_that_is_not_stored_yet_has_95_percent() -> None:
    row = {"step": "poll", "progress": 40, "upstream_state": UpstreamState(), "attempts": 0}
    done = next_row(
        row, 10, Poll(0, UpstreamResult(ResultKind.SUCCEEDED, urls=("u",)), 60, crashes=False, storage_fails=False)
    )
    assert done is not None
    assert (done["step"], done["progress"]) == ("rehost", 95)
    at_once = transitions.after_submit(
        task_of(row | {"step": "submitting"}, 10), UpstreamResult(ResultKind.SUCCEEDED, urls=("u",))
    )
    assert isinstance(at_once, Advance)
    assert at_once.update.progress == 95


def test_without_a_figure_of_see2ai_progress_is_estimated_from_the_models_duration() -> None:
    row = {"step": "poll", "progress": 0, "upstream_state": UpstreamState(100.0), "attempts": 0}
    quiet = Poll(0, UpstreamResult(ResultKind.RUNNING), 40, crashes=False, storage_fails=False)
    slow = replace(quiet, typical_seconds=400)
    payload = replace(quiet, result=UpstreamResult(ResultKind.RUNNING, progress=7))
    over = replace(quiet, result=UpstreamResult(ResultKind.RUNNING, progress=100))
    figures = [(next_row(row, 120, poll) or {})["progress"] for poll in (quiet, slow, payload, over)]
    assert figures == [60, 9, 7, 95]  # 20 s after SEE2AI accepted it; the wait before does not count


@given(st.integers(0, 95), st.integers(0, 95), st.floats(-10, 1e5), st.floats(-10, 1e5), st.floats(1, 4000))
def test_the_time_left_shrinks_with_time_and_progress_to_zero(
    one: int, two: int, age: float, later: float, usual: float
) -> None:
    less, more = sorted((one, two))
    early, late = sorted((age, later))
    left = estimate_seconds_left(less, early, usual)
    assert isinstance(left, int)
    assert left >= estimate_seconds_left(more, early, usual) >= estimate_seconds_left(more, late, usual)
    assert estimate_seconds_left(more, late, usual) >= 0
    assert estimate_seconds_left(0, 0, 60) == 60
    assert estimate_seconds_left(50, 10, 60) == 20


# ------------------------------------------------------------------ durations of models


async def completed(make: Maker, user: User, model: str, *seconds: float, waited: float = 0.0) -> None:
    """Completed tasks with these seconds since SEE2AI's acceptance, after a wait for it. The newest is last."""
    for took in seconds:
        task_no = await make.task_no(user, '[[sandbox: {"take_seconds": 0}]]', model=model)
        await make.ended(user, task_no)
        async with make.runtime.database.begin() as connection:
            fields = {"created_at": NOW - timedelta(seconds=took + waited), "completed_at": NOW}
            fields |= {"upstream_state": UpstreamState(waited).to_json()}
            await connection.execute(durations.tasks.update().filter_by(task_no=task_no).values(**fields))


@pytest.mark.usefixtures("working")
async def test_the_duration_is_the_median_of_the_newest_tasks_since_acceptance(
    make: Maker, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await make.user(points=10_000)
    await completed(make, user, TEXT_MODEL, 12, 500, 10, 11, 0.5, waited=1000)
    await completed(make, user, OTHER_MODEL, 10, 10)
    failed = await make.task_no(user, '[[sandbox: {"end": "failed"}]]', model=OTHER_MODEL)
    await make.ended(user, failed)
    assert await update_durations(runtime.database) == 1
    await read_durations(runtime)
    assert runtime.durations == {TEXT_MODEL: 11.0}
    action = runtime.actions[ACTION]
    assert typical_seconds(runtime.durations, TEXT_MODEL, action) == 11.0
    assert typical_seconds(runtime.durations, OTHER_MODEL, action) == action.typical_seconds == 60

    await completed(make, user, OTHER_MODEL, 0.1)
    monkeypatch.setattr(durations, "MAX_SAMPLES", 3)
    assert await update_durations(runtime.database) == 2
    await read_durations(runtime)
    assert runtime.durations == {TEXT_MODEL: 10.0, OTHER_MODEL: 10.0}  # of 10, 11 and 0.5 alone; and of 10, 10, 0.1
    rows = await execute(runtime, "SELECT model_name, samples FROM model_durations ORDER BY model_name")
    assert [tuple(row) for row in rows] == [(TEXT_MODEL, 3), (OTHER_MODEL, 3)]

    await execute(runtime, "UPDATE tasks SET upstream_state = :upstream", upstream='{"accepted_age_seconds":1e9}')
    await update_durations(runtime.database)  # the clock was changed; no division by zero
    await read_durations(runtime)
    assert set(runtime.durations.values()) == {durations.MIN_SECONDS}


@pytest.mark.parametrize(
    ("state", "seconds"), [({"accepted_age_seconds": 40.0}, 60), ({"accepted_age": 40.0}, 60), ({}, 100), (None, 100)]
)
async def test_the_wait_before_acceptance_does_not_count_also_in_rows_of_an_earlier_release(
    state: dict[str, Any] | None, seconds: float
) -> None:
    row: Any = SimpleNamespace(created_at=NOW, completed_at=NOW + timedelta(seconds=100), upstream_state=state)
    assert durations._generation_seconds(row) == seconds


@pytest.mark.usefixtures("working")
async def test_a_model_without_recent_tasks_keeps_its_duration(
    make: Maker, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await make.user(points=10_000)
    await completed(make, user, TEXT_MODEL, 20, 20, 20)
    assert await update_durations(runtime.database) == 1
    await completed(make, user, OTHER_MODEL, 30, 30, 30)
    monkeypatch.setattr(durations, "_NEWEST", durations._NEWEST.limit(3))
    assert await update_durations(runtime.database) == 1
    await read_durations(runtime)
    assert runtime.durations == {TEXT_MODEL: 20.0, OTHER_MODEL: 30.0}


@asynccontextmanager
async def watching(*runtimes: Runtime) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(refresh_durations(runtime)) for runtime in runtimes]
    try:
        yield
    finally:
        await cancel_and_wait(*tasks)


async def test_every_process_reads_the_durations_and_survives_a_failed_read(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durations, "REFRESH_SECONDS", 0.05)
    real, is_broken, stumbled = durations.read_durations, False, []

    async def flaky(one: Runtime) -> None:
        if is_broken:
            stumbled.append(one)
            raise ZeroDivisionError
        await real(one)

    monkeypatch.setattr(durations, "read_durations", flaky)
    statement = "INSERT INTO model_durations VALUES (:model, 7.5, 3, '2026-11-21 00:00:00.000000')"
    async with open_runtime(runtime.settings) as other, watching(runtime, other):
        await execute(runtime, statement, model=TEXT_MODEL)
        await until("received", lambda: runtime.durations == other.durations == {TEXT_MODEL: 7.5})
        is_broken = True
        for number in range(2):  # the first failures end any read that was under way
            stumbled.clear()
            await until("both have failed reads", lambda: runtime in stumbled and other in stumbled)
            await execute(runtime, f"UPDATE model_durations SET typical_seconds = {8 + number}")
        assert runtime.durations == other.durations == {TEXT_MODEL: 7.5}
        is_broken = False
        await until("both have read it again", lambda: runtime.durations == other.durations == {TEXT_MODEL: 9.0})


# ------------------------------------------------------------------ what a caller sees


@pytest.fixture
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_delays(monkeypatch)
    monkeypatch.setattr(durations, "REFRESH_SECONDS", 0.05)
    monkeypatch.setattr(scheduler, "TICK_SECONDS", 0.05)
    monkeypatch.setattr(scheduler, "DURATIONS_SECONDS", 0.1)


@pytest.mark.usefixtures("short_delays", "working")
async def test_a_new_duration_of_a_worker_is_used_at_the_next_submit(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=1000)
    first = (await make.submit(user, '[[sandbox: {"take_seconds": 0}]]')).json()["data"]
    assert first["estimatedSecondsLeft"] == 60
    for _ in range(durations.MIN_SAMPLES):
        await make.ended(user, await make.task_no(user, '[[sandbox: {"take_seconds": 0}]]'))
    await until("the duration is known", lambda: TEXT_MODEL in runtime.durations)
    second = (await make.submit(user, '[[sandbox: {"take_seconds": 0}]]')).json()["data"]
    assert 1 <= second["estimatedSecondsLeft"] < 30


@pytest.mark.usefixtures("short_delays", "working")
@pytest.mark.parametrize(
    "prompt",
    [
        '[[sandbox: {"progress": [50, 10, 90, 100], "take_seconds": 600}]]',
        *full('[[sandbox: {"take_seconds": 600}]]'),
    ],
)
async def test_one_task_has_the_same_estimate_in_every_answer(
    make: Maker, runtime: Runtime, prompt: str, advance_sandbox: Callable[[float], None]
) -> None:
    """A model without a known duration, then a task whose figures go back and to 100."""
    runtime.durations[VIDEO_MODEL] = 10.0
    user = await make.user(points=10_000)
    params = {"duration": 4, "resolution": "480p"}
    task = (await make.submit(user, prompt, model=VIDEO_MODEL, params=params)).json()["data"]
    assert (task["progress"], task["estimatedSecondsLeft"]) == (0, 10)
    seen, path = [task], f"/user/ai/tasks/{task['taskNo']}"
    while seen[-1]["status"] not in {"completed", "failed"}:
        for where in (path, "/user/ai/tasks/list", f"{path}?wait=0"):
            data = (await make.api.get(where, headers=user.headers)).json()["data"]
            seen.append(data["records"][0] if "records" in data else data)
        advance_sandbox(30)
        await asyncio.sleep(0.1)
    assert seen[-1]["status"] == "completed"
    figures = [one["progress"] for one in seen]
    assert figures == sorted(figures)
    assert len(set(figures)) > 4, "the progress must change"
    for one in seen:
        is_over = one["status"] == "completed"
        assert (one["progress"] == 100) == is_over
        assert one["progress"] <= 95 or is_over
        assert (one["estimatedSecondsLeft"] is None) == is_over
        assert is_over or 0 <= one["estimatedSecondsLeft"] <= 10


@pytest.mark.usefixtures("short_delays", "working")
async def test_the_time_left_shrinks_while_the_progress_stays(make: Maker, runtime: Runtime) -> None:
    runtime.durations[TEXT_MODEL] = 400.0
    user = await make.user(points=100)
    task_no = await make.task_no(user, '[[sandbox: {"progress": [50], "end": "never"}]]')

    async def is_half_done() -> bool:
        return bool((await make.task(user, task_no))["progress"] == 50)

    async def seconds_left(age_seconds: float) -> int:
        """As if the progress had been written that many seconds ago."""
        async with runtime.database.begin() as connection:
            await connection.execute(update(tasks).values(updated_at=utc_after(-age_seconds)))
        return int((await make.task(user, task_no))["estimatedSecondsLeft"])

    await until("half of it is done", is_half_done)
    assert 150 < await seconds_left(0) <= 200
    assert 50 < await seconds_left(100) <= 100
    assert await seconds_left(300) == 0


async def test_a_task_that_ended_without_a_result_has_no_time_left(make: Maker) -> None:
    user = await make.user(points=100)
    task_no = await make.task_no(user)
    assert (await make.task(user, task_no))["estimatedSecondsLeft"] == 60
    answer = await make.api.post(f"/user/ai/tasks/{task_no}/cancel", headers=user.headers)
    assert (answer.json()["data"]["status"], answer.json()["data"]["estimatedSecondsLeft"]) == ("failed", None)
