"""The circuit: what opens it, how long it waits, who may probe, what closes it."""

from app.see2ai.circuit import BUSY_SECONDS, FIRST_PAUSE_SECONDS, PROBE_SECONDS, Circuit, Circuits, BreakerState


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_closed_it_lets_everybody_through() -> None:
    circuit = Circuit(60)
    assert [circuit.wait_seconds() for _ in range(5)] == [0.0] * 5


def test_open_it_holds_everybody_off_then_lets_one_probe() -> None:
    clock = Clock()
    circuit = Circuit(60, clock)
    circuit.trip("HTTP 401")
    assert circuit.wait_seconds() > 0
    clock.now += FIRST_PAUSE_SECONDS
    assert circuit.wait_seconds() == 0.0
    assert circuit.wait_seconds() > 0, "a second probe in the same pause"


def test_each_refused_probe_doubles_the_pause_up_to_its_longest() -> None:
    clock = Clock()
    circuit = Circuit(60, clock)
    pauses = []
    for _ in range(8):
        circuit.trip("HTTP 402")
        wait = circuit._probe_from - clock.now
        pauses.append(wait)
        clock.now += wait
        assert circuit.wait_seconds() == 0.0
    assert pauses == [2, 4, 8, 16, 32, 60, 60, 60]


def test_refusals_that_were_under_way_when_it_opened_do_not_lengthen_it() -> None:
    clock = Clock()
    circuit = Circuit(60, clock)
    for _ in range(50):
        circuit.trip("HTTP 401")
    assert circuit._probe_from - clock.now == FIRST_PAUSE_SECONDS


def test_an_answer_closes_it() -> None:
    circuit = Circuit(60, Clock())
    circuit.trip("HTTP 401")
    circuit.reset()
    assert not circuit.is_open
    assert circuit.wait_seconds() == 0.0


def test_a_probe_that_heard_nothing_waits_the_same_again_and_a_lost_one_is_forgotten() -> None:
    clock = Clock()
    circuit = Circuit(60, clock)
    circuit.trip("HTTP 401")
    clock.now += FIRST_PAUSE_SECONDS
    assert circuit.wait_seconds() == 0.0
    circuit.record_no_answer()
    assert circuit._probe_from - clock.now == FIRST_PAUSE_SECONDS
    clock.now += FIRST_PAUSE_SECONDS
    assert circuit.wait_seconds() == 0.0
    clock.now += PROBE_SECONDS
    assert circuit.wait_seconds() == 0.0


def test_a_429_keeps_all_polls_away_for_a_while_and_submits_not() -> None:
    clock = Clock()
    circuit = Circuit(60, clock)
    circuit.slow_polls(7)
    assert 7 <= circuit.poll_pause_seconds() <= 8
    assert circuit.wait_seconds() == 0.0
    clock.now += 7
    assert circuit.poll_pause_seconds() == 0.0
    circuit.slow_polls(None)
    assert circuit.poll_pause_seconds() >= BUSY_SECONDS
    circuit.slow_polls(9999)
    assert circuit.poll_pause_seconds() <= 61


# ------------------------------------------------------------------ jobs cost money, looks are free


def test_a_refused_job_keeps_jobs_away_and_leaves_looks_alone() -> None:
    """An empty purse: jobs that run are looked after, and that their looks are answered does not fill it."""
    clock = Clock()
    circuit = Circuit(60, clock)
    circuit.trip("HTTP 402")
    assert circuit.poll_pause_seconds() == 0.0
    circuit.reset(is_look=True)
    assert circuit.is_open
    clock.now += FIRST_PAUSE_SECONDS
    assert [circuit.poll_pause_seconds() for _ in range(3)] == [0.0] * 3
    assert circuit.wait_seconds() == 0.0, "looks took the place of the probe"
    circuit.record_no_answer(is_look=True)
    assert circuit.is_probe(), "a look's trouble ended the job's probe"
    circuit.reset()
    assert not circuit.is_open


def test_a_refused_look_keeps_both_away_and_either_closes() -> None:
    for is_look in (True, False):
        clock = Clock()
        circuit = Circuit(60, clock)
        circuit.trip("HTTP 401", is_look=True)
        assert circuit.wait_seconds() > 0
        assert circuit.poll_pause_seconds() > 0
        clock.now += FIRST_PAUSE_SECONDS
        assert circuit.wait_seconds(is_look=is_look) == 0.0
        circuit.reset(is_look=is_look)
        assert not circuit.is_open


def test_where_both_were_refused_an_answered_look_frees_the_looks_and_lets_a_job_try() -> None:
    circuit = Circuit(60, Clock())
    circuit.trip("HTTP 401", is_look=True)
    circuit.trip("HTTP 401")
    circuit.reset(is_look=True)
    assert circuit.poll_pause_seconds() == 0.0
    assert circuit.is_open
    assert circuit.wait_seconds() == 0.0
    assert circuit.wait_seconds() > 0


def test_a_good_look_on_purpose_lets_a_job_try_and_only_its_answer_closes() -> None:
    clock = Clock()
    circuit = Circuit(60, clock)
    circuit.trip("HTTP 403")
    clock.now += 30
    circuit.take_probe()
    circuit.looked_well(invites=False)
    assert (circuit.is_open, circuit.is_inviting, circuit.open_seconds()) == (True, False, 30)
    assert circuit.wait_seconds() == 0.0
    assert circuit.wait_seconds() > 0, "a second job tries"
    circuit.trip("HTTP 403")
    assert (circuit.open_seconds(), circuit._pause) == (30, 2 * FIRST_PAUSE_SECONDS), "it began anew"
    circuit.reset()
    assert not circuit.is_open


def test_an_invitation_stands_until_one_job_has_come() -> None:
    for come in (Circuit.let_in, Circuit.wait_seconds):
        clock, there = Clock(), Circuit(60, Clock())
        circuit = Circuit(60, clock)
        circuit.trip("HTTP 403")
        circuit.take_probe()
        circuit.looked_well(invites=True)
        clock.now += 1000
        there.adopt(circuit.state())
        assert (circuit.is_inviting, there.is_inviting, there.open_seconds()) == (True, True, 1000)
        come(circuit)
        there.adopt(circuit.state())
        assert (circuit.is_inviting, there.is_inviting) == (False, False)
        assert circuit.is_open
        circuit.reset()
        assert not circuit.is_open


def test_a_good_look_on_purpose_closes_what_looks_have_opened() -> None:
    circuit = Circuit(60, Clock())
    circuit.trip("HTTP 401", is_look=True)
    circuit.looked_well(invites=True)
    assert (circuit.is_open, circuit.is_inviting) == (False, False)


def test_a_call_that_never_came_to_an_answer_does_not_keep_the_others_waiting() -> None:
    clock = Clock()
    circuit = Circuit(60, clock)
    circuit.trip("HTTP 401")
    clock.now += FIRST_PAUSE_SECONDS
    assert circuit.wait_seconds() == 0.0
    with circuit.call():
        pass
    clock.now += FIRST_PAUSE_SECONDS
    assert circuit.wait_seconds() == 0.0


# ------------------------------------------------------------------ between processes


def test_what_one_records_another_adopts_on_a_clock_of_its_own() -> None:
    here, there = Clock(), Clock()
    there.now += 5000
    first, second = Circuit(60, here), Circuit(60, there)
    first.trip("HTTP 402: empty")
    here.now += 1.5
    second.adopt(first.state())
    assert (second.is_open, second.reason) == (True, "HTTP 402: empty")
    assert second.open_seconds() == 1.5
    assert second.next_probe_seconds() == FIRST_PAUSE_SECONDS - 1.5
    assert not second.is_news
    here.now += 1
    there.now += 1
    assert first.wait_seconds() == 0.0
    second.adopt(first.state())
    assert second.wait_seconds() > 0, "the other one asks"
    assert second.is_probe() is False
    second.trip("HTTP 402: an answer from before")
    assert second.state().pause_seconds == FIRST_PAUSE_SECONDS, "only the one that asks doubles the pause"
    second.adopt(BreakerState(version=9))
    assert (second.is_open, second.wait_seconds(), second.open_seconds()) == (False, 0.0, 0.0)


def test_it_says_when_it_has_news_and_forgets_them_once_they_are_told() -> None:
    told = []
    circuit = Circuit(60, Clock(), on_news=lambda: told.append(1))
    circuit.reset()
    circuit.record_no_answer()
    assert (told, circuit.is_news) == ([], False)
    circuit.trip("HTTP 401")
    assert (len(told), circuit.is_news) == (1, True)
    record, edits = circuit.state(), circuit.revision
    circuit.reset()
    circuit.mark_synced(record, edits)
    assert circuit.is_news, "it closed while its opening was on the way"
    circuit.mark_synced(circuit.state(), circuit.revision)
    assert (circuit.version, circuit.is_news) == (2, False)


def test_each_provider_has_a_circuit_of_its_own() -> None:
    circuits = Circuits(60, ["see2ai"])
    circuits["see2ai"].trip("HTTP 401")
    assert not circuits["another"].is_open
    assert sorted(circuits) == ["another", "see2ai"]
    assert circuits.news.is_set()
