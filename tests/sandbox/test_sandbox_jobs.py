from collections import Counter
from uuid import uuid4

import pytest

from app.sandbox.jobs import Job, JobBook, Words, first_look, look_at, next_trouble, usual_seconds
from app.sandbox.markers import parse_prompt
from app.sandbox.pictures import Picture


def job(clauses: str = "take 10", *, digest: str = "d") -> Job:
    plan = parse_prompt(f"[[sandbox: {clauses}]]")
    return Job(
        task_id=uuid4().hex,
        action="see2ai_image",
        plan=plan,
        work=Picture("a cat", digest, "label", (64, 64), "jpg"),
        words=Words("pending", "running", "success", shouts=True),
        prompt_digest=digest,
        cost_points=10,
        submitted_at=100.0,
        take_seconds=10.0,
    )


def words(of: Job, *moments: float) -> list[str]:
    return [look_at(of, 100 + moment).status for moment in moments]


def test_a_job_is_pending_then_running_then_done() -> None:
    assert words(job(), 0, 1, 2, 9.9, 10, 99) == ["PENDING", "PENDING", "RUNNING", "RUNNING", "SUCCESS", "SUCCESS"]
    assert look_at(job(), 105).state == "running"
    assert look_at(job(), 105).progress == 50


def test_a_job_that_takes_no_time_is_done_at_once() -> None:
    instant = job()
    instant.take_seconds = 0.0
    assert look_at(instant, 100).has_succeeded


def test_never_finishing() -> None:
    endless = job("never finish")
    assert words(endless, 1e6) == ["RUNNING"]
    assert endless.ends_at is None


@pytest.mark.parametrize(
    ("word", "succeeds"), [("failed", False), ("CANCELLED", False), ("Done", True), ("succeeded", True)]
)
def test_the_end_is_the_word_asked_for(word: str, succeeds: bool) -> None:
    look = look_at(job(f"end {word}"), 200)
    assert (look.status, look.state, look.has_ended, look.has_succeeded) == (word, word, True, succeeds)


def test_a_job_that_nobody_approves_expires() -> None:
    waiting = job("approval 5; end done")
    assert words(waiting, 0, 4.9, 5, 99) == ["AWAITING_USER_APPROVAL"] * 2 + ["EXPIRED"] * 2
    assert [look_at(waiting, 100 + moment).approval_left_seconds for moment in (0, 2, 5)] == [5, 3, None]
    assert first_look(waiting).state == "awaiting_user_approval"
    assert not look_at(waiting, 200).has_succeeded
    book = JobBook()
    book.open(waiting)
    assert book.cost_points.total() == 0


def test_an_approved_job_begins_when_it_is_approved() -> None:
    approved = job("approval 5 granted")
    assert words(approved, 0, 5, 10, 14.9, 15) == [
        "AWAITING_USER_APPROVAL",
        "PENDING",
        "RUNNING",
        "RUNNING",
        "SUCCESS",
    ]


def test_a_running_word_of_ones_own_lasts_until_the_end() -> None:
    assert words(job("state Rendering"), 0, 5, 10) == ["Rendering", "Rendering", "SUCCESS"]


def test_progress_is_spread_over_the_time() -> None:
    steps = job("progress 10,40,80")
    assert [look_at(steps, 100 + moment).progress for moment in (0, 4, 9.9, 10)] == [10, 40, 80, 100]


def test_troubles_queue_up_and_run_out() -> None:
    troubles = parse_prompt("[[sandbox: poll 503 twice; submit 400; poll reset once]]").troubles
    used: Counter[int] = Counter()
    met = [next_trouble(troubles, "poll", used) for _ in range(4)]
    assert [trouble.name if trouble else None for trouble in met] == [
        "poll fail 503",
        "poll fail 503",
        "poll reset",
        None,
    ]


def test_the_book_forgets_the_oldest() -> None:
    book = JobBook(limit=3)
    jobs = [job() for _ in range(5)]
    for each in jobs:
        book.open(each)
        book.used_by(each.task_id)
    assert [book.find(each.task_id) is not None for each in jobs] == [False, False, True, True, True]
    assert (book.newest_id("see2ai_image"), book.newest_id("another")) == (jobs[-1].task_id, None)
    assert (book.requests["see2ai_image"], book.cost_points.total()) == (5, 50)
    assert len(book._used_by_prompt) == 3


def test_usual_seconds_stay_pleasant() -> None:
    assert all(3 <= usual_seconds(uuid4().hex) <= 6 for _ in range(200))
    assert usual_seconds("a") == usual_seconds("a")
