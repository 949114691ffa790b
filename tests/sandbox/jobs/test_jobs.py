"""Jobs without HTTP: their status over time, and the limits of the job store."""

from typing import Any
from uuid import uuid4

import pytest

from app.sandbox.jobs.job import Job, StateNames, initial_status, status_at, typical_seconds
from app.sandbox.jobs.job_store import JobStore
from app.sandbox.media.images import ImageSpec
from app.sandbox.rules.scenario import Scenario

ACTION = "see2ai_image"


def job(**scenario: Any) -> Job:
    """A job that was submitted at 100 s and takes 10 s."""
    return Job(
        task_id=uuid4().hex,
        action=ACTION,
        scenario=Scenario(**scenario),
        media=ImageSpec("a cat", "d", "label", (64, 64), "jpg"),
        state_names=StateNames("pending", "running", "success", uppercase=True),
        cost_points=10,
        submitted_at=100.0,
        take_seconds=10.0,
    )


def statuses(of: Job, *seconds: float) -> list[str]:
    """The statuses at these numbers of seconds after the submit."""
    return [status_at(of, 100 + one).status for one in seconds]


def test_a_job_is_pending_then_running_then_done() -> None:
    assert statuses(job(), 0, 1, 2, 9.9, 10, 99) == ["PENDING", "PENDING", "RUNNING", "RUNNING", "SUCCESS", "SUCCESS"]
    assert status_at(job(), 105).state == "running"
    assert status_at(job(), 105).progress == 50


def test_a_job_that_takes_no_time_is_done_at_once() -> None:
    instant = job()
    instant.take_seconds = 0.0
    assert status_at(instant, 100).has_succeeded


def test_a_job_that_never_ends() -> None:
    endless = job(end="never")
    assert statuses(endless, 1e6) == ["RUNNING"]
    assert endless.ends_at is None


@pytest.mark.parametrize(
    ("state", "succeeds"), [("failed", False), ("CANCELLED", False), ("Done", True), ("succeeded", True)]
)
def test_the_final_state_is_the_requested_one(state: str, succeeds: bool) -> None:
    status = status_at(job(end=state), 200)
    assert (status.status, status.state, status.has_ended, status.has_succeeded) == (state, state, True, succeeds)


def test_a_job_that_is_not_approved_expires() -> None:
    waiting = job(approval_seconds=5, end="done")
    assert statuses(waiting, 0, 4.9, 5, 99) == ["AWAITING_USER_APPROVAL"] * 2 + ["EXPIRED"] * 2
    assert [status_at(waiting, 100 + one).approval_left_seconds for one in (0, 2, 5)] == [5, 3, None]
    assert initial_status(waiting).state == "awaiting_user_approval"
    assert not status_at(waiting, 200).has_succeeded
    store = JobStore()
    store.add(waiting)
    assert store.cost_points.total() == 0


def test_an_approved_job_begins_when_it_is_approved() -> None:
    approved = job(approval_seconds=5, approved=True)
    assert statuses(approved, 0, 5, 10, 14.9, 15) == [
        "AWAITING_USER_APPROVAL",
        "PENDING",
        "RUNNING",
        "RUNNING",
        "SUCCESS",
    ]


def test_a_running_state_of_a_rule_lasts_until_the_end() -> None:
    assert statuses(job(state="Rendering"), 0, 5, 10) == ["Rendering", "Rendering", "SUCCESS"]


def test_progress_is_spread_over_the_time() -> None:
    steps = job(progress=[10, 40, 80])
    assert [status_at(steps, 100 + one).progress for one in (0, 4, 9.9, 10)] == [10, 40, 80, 100]


def test_the_store_forgets_the_oldest() -> None:
    store = JobStore(max_jobs=3)
    jobs = [job() for _ in range(5)]
    for each in jobs:
        store.add(each)
        store.uses_of(each.task_id)
    assert [store.find(each.task_id) is not None for each in jobs] == [False, False, True, True, True]
    assert (store.newest_id(ACTION), store.newest_id("another")) == (jobs[-1].task_id, None)
    assert (store.requests[ACTION], store.cost_points.total()) == (5, 50)
    assert len(store._uses_by_prompt) == 3


def test_typical_seconds_are_three_to_six() -> None:
    assert all(3 <= typical_seconds(uuid4().hex) <= 6 for _ in range(200))
    assert typical_seconds("a") == typical_seconds("a")
