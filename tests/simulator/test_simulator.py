"""No seed reports a violation, and together the seeds reach every fault and every place.

`python -m tests.simulator --seed N --trace` shows the events of a failed seed.
"""

import pytest

from tests.simulator.crowd import run_seeds, together
from tests.simulator.weather import ALL_TURNS, EVENTS, KINDS, PLACES, STEP_POINTS
from tests.simulator.world import simulate

FEW = 5
STEPS = ("prepare", "submit", "submitting", "poll", "rehost")
DECISIONS = (
    "prepare → Advance prepare",
    "prepare → Advance submit",
    "prepare → Release",
    "prepare → Fail UPSTREAM_REJECTED",
    "prepare → Fail UPSTREAM_UNAVAILABLE",
    "submit → Release",
    "submit → Advance submit",
    "submit → Advance poll",
    "submit → Advance rehost",
    "submit → Fail UPSTREAM_UNCERTAIN",
    "submit → Fail UPSTREAM_REJECTED",
    "submit → Fail UPSTREAM_UNAVAILABLE",
    "submit → Fail TIMED_OUT",
    "submitting → Fail UPSTREAM_UNCERTAIN",
    "poll → Release",
    "poll → Advance rehost",
    "poll → Fail INTERNAL",
    "poll → Fail TIMED_OUT",
    "poll → Fail UPSTREAM_FAILED",
    "poll → Fail UPSTREAM_REJECTED",
    "poll → Fail APPROVAL_EXPIRED",
    "rehost → Release",
    "rehost → Advance poll",
    "rehost → Complete",
)
CALLER_ANSWERS = ("cancelled", "not cancelled NotCancellable", "refused InsufficientPoints", "refused TooManyTasks")
CALLER_ANSWERS += ("refused KeyBudgetExceeded", "told of an earlier submit", "unanswered")
LOGS = ("circuit_closed", "circuit_learnt", "circuit_open", "database_away", "lease_lost", "release_failed")
ALSO = ("db.idle_transaction_ended", "db.lock_wait", "poison", "up.lease_over", "no slot free for rehost")
MARKS = frozenset(
    [
        *(KINDS | EVENTS),
        *ALSO,
        *[f"{what} at {place}" for what in ("killed", "frozen") for place in PLACES],
        *[f"point {point}" for point in STEP_POINTS],
        *[f"step {step}" for step in STEPS],
        *[f"decision {decision}" for decision in DECISIONS],
        *[f"caller {answer}" for answer in CALLER_ANSWERS],
        *[f"log {event}" for event in LOGS],
    ]
)


def test_no_seed_of_a_few_breaks_a_promise() -> None:
    outcomes = [simulate(seed) for seed in range(FEW)]
    assert {one.seed: one.violations for one in outcomes if one.violations} == {}
    assert sum(one.tasks for one in outcomes) > 2 * FEW


@pytest.mark.full
def test_no_seed_breaks_a_promise() -> None:
    outcomes = list(run_seeds(range(ALL_TURNS)))
    assert {one.seed: one.violations for one in outcomes if one.violations} == {}
    assert len(outcomes) == ALL_TURNS
    assert MARKS - set(together(outcomes)) == set()
    assert sum(one.tasks for one in outcomes) > 2 * ALL_TURNS


@pytest.mark.full
def test_a_seed_reports_the_same_story_twice() -> None:
    """Also in another process, where hashes differ."""
    for far in run_seeds(range(6)):
        near = simulate(far.seed, trace=True)
        assert near.digest == far.digest
        assert near.story == simulate(far.seed, trace=True).story
