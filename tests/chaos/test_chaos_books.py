"""The comparison of records finds each difference: each test adds one to records that agree."""

from collections.abc import Callable
from copy import deepcopy
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.chaos.bank import ActionInput
from tests.chaos.books import Story, differences
from tests.chaos.callers import Diary, Timing
from tests.chaos.hostile import Period, complaints, notice
from tests.chaos.weather import TROUBLE, WEIGHTS, draw, rules

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def task(number: int, status: str, **columns: Any) -> dict[str, Any]:
    return {
        "id": number,
        "user_id": 1,
        "task_no": f"T-{number}",
        "prompt": f"s1-{number:05d}. 一只柴犬",
        "image_url": None,
        "points_cost": 30,
        "status": status,
        "step": "done",
        "error_code": None,
        "upstream_task_id": f"job-{number}",
        "suspected_orphan": False,
        "completed_at": NOON,
        "results": [{"key": f"r/{number}.jpg", "thumbnailKey": f"r/{number}-thumb.jpg"}],
    } | columns


def entry(task_id: int | None, kind: str, held: int) -> dict[str, Any]:
    return {"task_id": task_id, "kind": kind, "held": held}


def job(number: int, seconds: float = -5.0) -> dict[str, Any]:
    body = {"prompt": f"s1-{number:05d}. 一只柴犬"}
    return {"body": body, "time": NOON.timestamp() + seconds, "outcome": "accepted"}


def story() -> Story:
    """Four tasks: one completed, one failed after SEE2AI accepted it, one whose submit was lost, one cancelled."""
    lost = {"upstream_task_id": None, "suspected_orphan": True, "error_code": "UPSTREAM_UNCERTAIN", "results": None}
    tasks = [
        task(1, "completed"),
        task(2, "failed", error_code="UPSTREAM_FAILED", results=None),
        task(3, "failed", **lost),
        task(4, "failed", error_code="CANCELLED", upstream_task_id=None, results=None),
    ]
    ledger = [entry(number, "deduct", 30) for number in (1, 2, 3, 4)] + [entry(None, "grant", 0)]
    ledger += [entry(1, "settle", -30), *(entry(number, "refund", -30) for number in (2, 3, 4))]
    diary = Diary(payload={f"s1-{number:05d}.": {f"T-{number}"} for number in (1, 2, 4)}, cancelled={"T-4"})
    diary.answers.update({"submit: 200": 3, "submit: 503": 2, "submit: 402": 1, "cancel: 409": 1})
    accounts = [{"user_id": 1, "granted": 120, "available": 90, "held": 0, "spent": 30, "expired": 0}]
    jobs = [job(1), job(2), job(3), {"body": {"image_url": "https://example.com/x.jpg"}, "time": 0.0}]
    return Story(tasks, accounts, ledger, jobs, diary, {"r": ActionInput(1, 120, "r")}, run="s1")


def payload(change: Callable[[Story], Any] = lambda _: None, *, missing: str = "") -> list[str]:
    one = deepcopy(story())
    change(one)
    one.__post_init__()
    return differences(one, is_stored=lambda key: key != missing)


def test_books_that_agree_have_no_differences() -> None:
    assert payload() == []


PLANTED: dict[str, tuple[Callable[[Story], Any], str]] = {
    "a task that never ends": (lambda s: s.tasks[1].update(status="queued"), "T-2 has not ended"),
    "points nobody ordered": (lambda s: s.accounts[0].update(granted=150), "was granted 150, ordered 120"),
    "points left held": (lambda s: s.accounts[0].update(held=30), "held by no task"),
    "two refunds": (lambda s: s.ledger.append(entry(2, "refund", -30)), "T-2 (failed) has not just"),
    "a refund of another price": (lambda s: s.ledger[-1].update(held=-31), "T-4 (failed) has not just"),
    "a settle of what failed": (lambda s: s.ledger[-1].update(kind="settle"), "T-4 (failed) has not just"),
    "a deduction for no task": (lambda s: s.ledger.append(entry(9, "deduct", 30)), "names task 9"),
    "two jobs": (lambda s: s.accepted.append(job(1)), "2 jobs for s1-00001."),
    "a job for no task": (lambda s: s.accepted.append(job(7)), "which is no task"),
    "a result out of nothing": (lambda s: s.accepted.pop(0), "T-1 is completed with 0 jobs"),
    "sent after the refund": (lambda s: s.accepted[1].update(time=NOON.timestamp() + 1), "1.00 s after its refund"),
    "a lost job unflagged": (lambda s: s.tasks[2].update(suspected_orphan=False), "T-3 (UPSTREAM_UNCERTAIN) left"),
    "two tasks of one key": (lambda s: s.tasks.append(task(1, "completed", id=5, task_no="T-5")), "became 2 tasks"),
    "two answers": (lambda s: s.diary.payload["s1-00001."].add("T-9"), "was answered with ['T-1', 'T-9']"),
    "an acknowledged task that is gone": (
        lambda s: s.diary.payload.update({"s1-00008.": {"T-8"}}),
        "stored is nothing",
    ),
    "cancelled, and yet": (lambda s: s.diary.cancelled.add("T-1"), "answered as cancelled and is completed"),
    "cancelled and sent": (lambda s: s.accepted.append(job(4)), "T-4 was cancelled and sent"),
    "a fault told to a caller": (lambda s: s.diary.answers.update({"look: 500": 1}), "callers were answered look: 500"),
    "an unsound audit": (lambda s: s.violations.append("I1 x"), "gateway audit: I1 x"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_difference_is_found(name: str) -> None:
    change, words = PLANTED[name]
    assert any(words in line for line in payload(change)), payload(change)


def test_a_lost_result_is_found() -> None:
    assert payload(missing="r/1-thumb.jpg") == ["T-1: r/1-thumb.jpg is not in the bucket"]


def test_a_seed_is_a_schedule() -> None:
    first = draw(7, 600, gap_seconds=4, lease_seconds=5)
    assert first == draw(7, 600, gap_seconds=4, lease_seconds=5) != draw(8, 600, gap_seconds=4, lease_seconds=5)
    assert {strike.fault for strike in first} == set(WEIGHTS)
    assert all(strike.lasting_seconds > 5 for strike in first if strike.fault == "worker: frozen past its lease")


@pytest.mark.parametrize("where", ["submit", "poll", "result", "upload"])
def test_thirty_percent_of_the_answers_fail(where: str) -> None:
    assert sum(share for rule, share in TROUBLE if rule["where"] == where) == pytest.approx(0.3, abs=0.011)
    calm = 1.0
    for rule in rules():
        if rule["where"] == where:
            calm *= 1 - float(str(rule["probability"]))
    assert 1 - calm == pytest.approx(0.3, abs=0.011)


# ------------------------------------------------------------------ the hostile user


PERIODS = [Period(n * 10.0, n * 10.0 + 10, is_hostile=n % 2 == 1) for n in range(20)]


def timings(hostile_seconds: float, hostile_share: float = 1.0) -> list[Timing]:
    """Twenty requests in each period; in one calm period an outage struck."""
    found = []
    for period in PERIODS:
        seconds, share = (hostile_seconds, hostile_share) if period.is_hostile else (0.2, 1.0)
        if period.began == 40.0:
            seconds, share = 10.0, 0.0
        found += [Timing(period.began + n / 2, seconds, is_answered=n < 20 * share) for n in range(20)]
    return found


@pytest.mark.parametrize(
    ("hostile_seconds", "share", "words"),
    [(0.3, 1.0, []), (0.5, 1.0, ["p95 of others"]), (0.2, 0.9, ["answered to others"])],
)
def test_what_others_noticed_of_the_hostile_user_is_judged_by_spells(
    hostile_seconds: float, share: float, words: list[str]
) -> None:
    seen = timings(hostile_seconds, share)
    notices = [notice(seen, PERIODS, is_hostile=is_hostile) for is_hostile in (False, True)]
    assert [one.periods for one in notices] == [10, 10]
    assert [line.partition(":")[0] for line in complaints(*notices)] == words
    few = [notice(seen, PERIODS[:6], is_hostile=is_hostile) for is_hostile in (False, True)]
    assert complaints(*few) == [], "too few periods to say"


def test_tasks_of_the_hostile_user_need_no_job_but_must_end() -> None:
    def add(one: Story) -> None:
        one.hostile_id = 9
        one.tasks.append(task(5, "completed", user_id=9, prompt="x", results=[]))
        one.ledger += [entry(5, "deduct", 30), entry(5, "settle", -30)]

    assert payload(add) == []
    assert any("T-5 has not ended" in line for line in payload(lambda s: (add(s), s.tasks[-1].update(status="queued"))))
