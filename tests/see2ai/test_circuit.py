"""The circuit: what opens it, how long it waits, who may probe, what closes it."""

from app.upstreams.breaker import (
    FIRST_PAUSE_SECONDS,
    PROBE_SECONDS,
    THROTTLE_SECONDS,
    BreakerState,
    CircuitBreaker,
    CircuitBreakers,
)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_closed_it_lets_everybody_through() -> None:
    breaker = CircuitBreaker(60)
    assert [breaker.wait_seconds() for _ in range(5)] == [0.0] * 5


def test_open_it_holds_everybody_off_then_lets_one_probe() -> None:
    clock = Clock()
    breaker = CircuitBreaker(60, clock)
    breaker.trip("HTTP 401")
    assert breaker.wait_seconds() > 0
    clock.now += FIRST_PAUSE_SECONDS
    assert breaker.wait_seconds() == 0.0
    assert breaker.wait_seconds() > 0, "a second probe in the same pause"


def test_each_refused_probe_doubles_the_pause_up_to_its_longest() -> None:
    clock = Clock()
    breaker = CircuitBreaker(60, clock)
    pauses = []
    for _ in range(8):
        breaker.trip("HTTP 402")
        wait = breaker._open_until - clock.now
        pauses.append(wait)
        clock.now += wait
        assert breaker.wait_seconds() == 0.0
    assert pauses == [2, 4, 8, 16, 32, 60, 60, 60]


def test_refusals_that_were_under_way_when_it_opened_do_not_lengthen_it() -> None:
    clock = Clock()
    breaker = CircuitBreaker(60, clock)
    for _ in range(50):
        breaker.trip("HTTP 401")
    assert breaker._open_until - clock.now == FIRST_PAUSE_SECONDS


def test_an_answer_closes_it() -> None:
    breaker = CircuitBreaker(60, Clock())
    breaker.trip("HTTP 401")
    breaker.reset()
    assert not breaker.is_open
    assert breaker.wait_seconds() == 0.0


def test_a_probe_that_heard_nothing_waits_the_same_again_and_a_lost_one_is_forgotten() -> None:
    clock = Clock()
    breaker = CircuitBreaker(60, clock)
    breaker.trip("HTTP 401")
    clock.now += FIRST_PAUSE_SECONDS
    assert breaker.wait_seconds() == 0.0
    breaker.record_no_answer()
    assert breaker._open_until - clock.now == FIRST_PAUSE_SECONDS
    clock.now += FIRST_PAUSE_SECONDS
    assert breaker.wait_seconds() == 0.0
    clock.now += PROBE_SECONDS
    assert breaker.wait_seconds() == 0.0


def test_a_429_keeps_all_polls_away_for_a_while_and_submits_not() -> None:
    clock = Clock()
    breaker = CircuitBreaker(60, clock)
    breaker.throttle_polls(7)
    assert 7 <= breaker.poll_pause_seconds() <= 8
    assert breaker.wait_seconds() == 0.0
    clock.now += 7
    assert breaker.poll_pause_seconds() == 0.0
    breaker.throttle_polls(None)
    assert breaker.poll_pause_seconds() >= THROTTLE_SECONDS
    breaker.throttle_polls(9999)
    assert breaker.poll_pause_seconds() <= 61


# ------------------------------------------------------------------ jobs cost money, looks are free


def test_a_refused_job_keeps_jobs_away_and_leaves_looks_alone() -> None:
    """An empty purse: jobs that run are looked after, and that their looks are answered does not fill it."""
    clock = Clock()
    breaker = CircuitBreaker(60, clock)
    breaker.trip("HTTP 402")
    assert breaker.poll_pause_seconds() == 0.0
    breaker.reset(is_free=True)
    assert breaker.is_open
    clock.now += FIRST_PAUSE_SECONDS
    assert [breaker.poll_pause_seconds() for _ in range(3)] == [0.0] * 3
    assert breaker.wait_seconds() == 0.0, "looks took the place of the probe"
    breaker.record_no_answer(is_free=True)
    assert breaker.is_probe(), "a look's trouble ended the job's probe"
    breaker.reset()
    assert not breaker.is_open


def test_a_refused_look_keeps_both_away_and_either_closes() -> None:
    for is_free in (True, False):
        clock = Clock()
        breaker = CircuitBreaker(60, clock)
        breaker.trip("HTTP 401", is_free=True)
        assert breaker.wait_seconds() > 0
        assert breaker.poll_pause_seconds() > 0
        clock.now += FIRST_PAUSE_SECONDS
        assert breaker.wait_seconds(is_free=is_free) == 0.0
        breaker.reset(is_free=is_free)
        assert not breaker.is_open


def test_where_both_were_refused_an_answered_look_frees_the_looks_and_lets_a_job_try() -> None:
    breaker = CircuitBreaker(60, Clock())
    breaker.trip("HTTP 401", is_free=True)
    breaker.trip("HTTP 401")
    breaker.reset(is_free=True)
    assert breaker.poll_pause_seconds() == 0.0
    assert breaker.is_open
    assert breaker.wait_seconds() == 0.0
    assert breaker.wait_seconds() > 0


def test_a_good_look_on_purpose_lets_a_job_try_and_only_its_answer_closes() -> None:
    clock = Clock()
    breaker = CircuitBreaker(60, clock)
    breaker.trip("HTTP 403")
    clock.now += 30
    breaker.start_probe()
    breaker.half_open(invites=False)
    assert (breaker.is_open, breaker.admits_trial, breaker.open_seconds()) == (True, False, 30)
    assert breaker.wait_seconds() == 0.0
    assert breaker.wait_seconds() > 0, "a second job tries"
    breaker.trip("HTTP 403")
    assert (breaker.open_seconds(), breaker._pause) == (30, 2 * FIRST_PAUSE_SECONDS), "it began anew"
    breaker.reset()
    assert not breaker.is_open


def test_an_invitation_stands_until_one_job_has_come() -> None:
    for come in (CircuitBreaker.admit_trial, CircuitBreaker.wait_seconds):
        clock, there = Clock(), CircuitBreaker(60, Clock())
        breaker = CircuitBreaker(60, clock)
        breaker.trip("HTTP 403")
        breaker.start_probe()
        breaker.half_open(invites=True)
        clock.now += 1000
        there.load_state(breaker.state())
        assert (breaker.admits_trial, there.admits_trial, there.open_seconds()) == (True, True, 1000)
        come(breaker)
        there.load_state(breaker.state())
        assert (breaker.admits_trial, there.admits_trial) == (False, False)
        assert breaker.is_open
        breaker.reset()
        assert not breaker.is_open


def test_a_good_look_on_purpose_closes_what_looks_have_opened() -> None:
    breaker = CircuitBreaker(60, Clock())
    breaker.trip("HTTP 401", is_free=True)
    breaker.half_open(invites=True)
    assert (breaker.is_open, breaker.admits_trial) == (False, False)


def test_a_call_that_never_came_to_an_answer_does_not_keep_the_others_waiting() -> None:
    clock = Clock()
    breaker = CircuitBreaker(60, clock)
    breaker.trip("HTTP 401")
    clock.now += FIRST_PAUSE_SECONDS
    assert breaker.wait_seconds() == 0.0
    with breaker.call():
        pass
    clock.now += FIRST_PAUSE_SECONDS
    assert breaker.wait_seconds() == 0.0


# ------------------------------------------------------------------ between processes


def test_what_one_records_another_adopts_on_a_clock_of_its_own() -> None:
    here, there = Clock(), Clock()
    there.now += 5000
    first, second = CircuitBreaker(60, here), CircuitBreaker(60, there)
    first.trip("HTTP 402: empty")
    here.now += 1.5
    second.load_state(first.state())
    assert (second.is_open, second.reason) == (True, "HTTP 402: empty")
    assert second.open_seconds() == 1.5
    assert second.seconds_until_probe() == FIRST_PAUSE_SECONDS - 1.5
    assert not second.is_dirty
    here.now += 1
    there.now += 1
    assert first.wait_seconds() == 0.0
    second.load_state(first.state())
    assert second.wait_seconds() > 0, "the other one asks"
    assert second.is_probe() is False
    second.trip("HTTP 402: an answer from before")
    assert second.state().pause_seconds == FIRST_PAUSE_SECONDS, "only the one that asks doubles the pause"
    second.load_state(BreakerState(version=9))
    assert (second.is_open, second.wait_seconds(), second.open_seconds()) == (False, 0.0, 0.0)


def test_it_says_when_it_has_news_and_forgets_them_once_they_are_told() -> None:
    told = []
    breaker = CircuitBreaker(60, Clock(), on_news=lambda: told.append(1))
    breaker.reset()
    breaker.record_no_answer()
    assert (told, breaker.is_dirty) == ([], False)
    breaker.trip("HTTP 401")
    assert (len(told), breaker.is_dirty) == (1, True)
    record, edits = breaker.state(), breaker.revision
    breaker.reset()
    breaker.mark_synced(record, edits)
    assert breaker.is_dirty, "it closed while its opening was on the way"
    breaker.mark_synced(breaker.state(), breaker.revision)
    assert (breaker.version, breaker.is_dirty) == (2, False)


def test_each_provider_has_a_circuit_of_its_own() -> None:
    breakers = CircuitBreakers(60, ["see2ai"])
    breakers["see2ai"].trip("HTTP 401")
    assert not breakers["another"].is_open
    assert sorted(breakers) == ["another", "see2ai"]
    assert breakers.news.is_set()
