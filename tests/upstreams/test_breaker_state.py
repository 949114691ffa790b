"""What opens a breaker, how long it pauses, who may probe, what closes it."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.upstreams.breaker_state import FIRST_PAUSE_SECONDS, BreakerState

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MAX_PAUSE_SECONDS = 60.0


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def refused(state: BreakerState, now: datetime = NOW, *, is_free: bool = False, probe: Any = None) -> BreakerState:
    return state.opened(now, probe, "HTTP 401", MAX_PAUSE_SECONDS, is_free=is_free)


def probing(state: BreakerState, now: datetime, *, is_free: bool = False) -> tuple[BreakerState, datetime]:
    """The state with a new probe, and the probe."""
    probe = now + timedelta(seconds=70)
    probed = state.probed(now, probe, is_free=is_free)
    assert probed is not state
    return probed, probe


def test_closed_it_blocks_nothing() -> None:
    state = BreakerState()
    assert not state.is_open
    assert not state.blocks(is_free=False)
    assert state.closed(NOW, is_free=False) is state


def test_open_it_blocks_until_the_pause_ends_and_then_admits_one_probe() -> None:
    state = refused(BreakerState())
    assert (state.blocks(is_free=False), state.opened_at, state.open_until) == (True, NOW, after(FIRST_PAUSE_SECONDS))
    assert state.probed(after(1.9), after(72), is_free=False) is state
    probed, _ = probing(state, after(2))
    assert probed.probed(after(3), after(73), is_free=False) is probed, "a second probe in the same pause"


def test_each_refused_probe_doubles_the_pause_up_to_the_maximum() -> None:
    state, now, pauses = refused(BreakerState()), NOW, []
    for _ in range(7):
        pauses.append(state.pause_seconds)
        now += timedelta(seconds=state.pause_seconds)
        state, probe = probing(state, now)
        state = refused(state, now, probe=probe)
    assert pauses == [2, 4, 8, 16, 32, 60, 60]
    assert state.opened_at == NOW


def test_refusals_of_calls_that_were_under_way_do_not_lengthen_the_pause() -> None:
    state = refused(BreakerState())
    assert refused(state, after(1)) is state
    assert refused(state, after(1), probe=after(71)) is state, "a probe that is not the current one"


def test_an_answer_closes_it_and_only_a_probe_without_a_result_pauses_again() -> None:
    state, probe = probing(refused(BreakerState()), after(2))
    assert not state.closed(after(3), is_free=False).is_open
    assert state.unanswered(after(3), None) is state
    assert state.unanswered(after(3), after(99)) is state
    paused = state.unanswered(after(3), probe)
    assert (paused.open_until, paused.pause_seconds, paused.probe_until) == (after(5), 2, None)


def test_a_lost_probe_is_forgotten_after_its_time() -> None:
    state, probe = probing(refused(BreakerState()), after(2))
    assert state.probed(after(71), after(141), is_free=False) is state
    assert probe == after(72)
    assert state.probed(after(72), after(142), is_free=False).probe_until == after(142)


# ------------------------------------------------------------------ billable and free calls


def test_a_refused_job_leaves_free_calls_alone_and_a_free_answer_does_not_close_it() -> None:
    state = refused(BreakerState())
    assert (state.blocks(is_free=False), state.blocks(is_free=True)) == (True, False)
    assert state.closed(after(1), is_free=True) is state
    assert state.probed(after(2), after(72), is_free=True) is state, "a free call took the probe"


def test_a_refused_free_call_blocks_both_kinds_and_either_closes() -> None:
    for is_free in (True, False):
        state = refused(BreakerState(), is_free=True)
        assert (state.blocks(is_free=False), state.blocks(is_free=True)) == (True, True)
        state, _ = probing(state, after(2), is_free=is_free)
        assert not state.closed(after(3), is_free=is_free).is_open


def test_if_both_kinds_were_refused_a_free_answer_admits_free_calls_and_one_job() -> None:
    state = refused(refused(BreakerState(), is_free=True), after(0.5))
    assert (state.billable_open, state.free_open, state.pause_seconds, state.opened_at) == (True, True, 2, NOW)
    state = state.closed(after(1), is_free=True)
    assert (state.billable_open, state.free_open, state.open_until) == (True, False, after(1))
    probing(state, after(1))


def test_a_good_account_admits_one_job_and_only_its_answer_closes() -> None:
    state = refused(BreakerState()).half_open(after(30))
    assert (state.is_open, state.admits_trial, state.opened_at) == (True, False, NOW)
    state, probe = probing(state, after(30))
    state = refused(state, after(31), probe=probe)
    assert (state.opened_at, state.pause_seconds) == (NOW, 2 * FIRST_PAUSE_SECONDS), "a new outage began"
    assert not state.closed(after(32), is_free=False).is_open


def test_a_good_account_closes_what_free_calls_opened() -> None:
    state = refused(BreakerState(), is_free=True).half_open(after(1), admits_trial=True)
    assert (state.is_open, state.admits_trial) == (False, False)
    assert state.half_open(after(2)) is state


def test_a_trial_is_admitted_until_a_job_takes_the_probe() -> None:
    state = refused(BreakerState()).half_open(after(1), admits_trial=True)
    assert state.admits_trial
    assert state.pause_ended(after(1000)) is state
    state, _ = probing(state, after(1000))
    assert (state.is_open, state.admits_trial) == (True, False)


def test_a_pause_may_be_ended_early() -> None:
    state = refused(BreakerState())
    assert state.pause_ended(after(1)).open_until == after(1)
    assert state.pause_ended(after(3)) is state
    assert BreakerState().pause_ended(NOW) == BreakerState()


# ------------------------------------------------------------------ accepted jobs


def accepted(state: BreakerState) -> BreakerState:
    return state.closed(NOW, is_free=False, is_accepted=True)


def test_accepted_jobs_are_counted_up_to_the_second_after_each_opening() -> None:
    state = accepted(accepted(BreakerState()))
    assert state.successes == 2
    assert accepted(state) is state, "each success of a closed breaker writes the row"
    state = accepted(refused(state))
    assert (state.is_open, state.successes) == (False, 3)
    state = accepted(state)
    assert state.successes == 4
    assert accepted(state) is state


@pytest.mark.parametrize("is_free", [True, False])
def test_other_answers_close_without_being_counted(is_free: bool) -> None:
    state = refused(replace(BreakerState(), successes=5, successes_at_open=3), is_free=is_free)
    closed = state.closed(NOW, is_free=is_free)
    assert (closed.is_open, closed.successes, closed.successes_at_open) == (False, 5, 5)
