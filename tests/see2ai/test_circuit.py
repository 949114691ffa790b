"""The circuit: what opens it, how long it waits, who may probe, what closes it."""

from app.see2ai.circuit import BUSY_SECONDS, FIRST_PAUSE_SECONDS, PROBE_SECONDS, Circuit


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_closed_it_lets_everybody_through() -> None:
    circuit = Circuit(60)
    assert [circuit.pause_seconds() for _ in range(5)] == [0.0] * 5


def test_open_it_holds_everybody_off_then_lets_one_probe() -> None:
    clock = Clock()
    circuit = Circuit(60, clock)
    circuit.refused("HTTP 401")
    assert circuit.pause_seconds() > 0
    clock.now += FIRST_PAUSE_SECONDS
    assert circuit.pause_seconds() == 0.0
    assert circuit.pause_seconds() > 0, "a second probe in the same pause"


def test_each_refused_probe_doubles_the_pause_up_to_its_longest() -> None:
    clock = Clock()
    circuit = Circuit(60, clock)
    pauses = []
    for _ in range(8):
        circuit.refused("HTTP 402")
        wait = circuit._closed_at - clock.now
        pauses.append(wait)
        clock.now += wait
        assert circuit.pause_seconds() == 0.0
    assert pauses == [2, 4, 8, 16, 32, 60, 60, 60]


def test_refusals_that_were_under_way_when_it_opened_do_not_lengthen_it() -> None:
    clock = Clock()
    circuit = Circuit(60, clock)
    for _ in range(50):
        circuit.refused("HTTP 401")
    assert circuit._closed_at - clock.now == FIRST_PAUSE_SECONDS


def test_an_answer_closes_it() -> None:
    circuit = Circuit(60, Clock())
    circuit.refused("HTTP 401")
    circuit.answered()
    assert not circuit.is_open
    assert circuit.pause_seconds() == 0.0


def test_a_probe_that_heard_nothing_waits_the_same_again_and_a_lost_one_is_forgotten() -> None:
    clock = Clock()
    circuit = Circuit(60, clock)
    circuit.refused("HTTP 401")
    clock.now += FIRST_PAUSE_SECONDS
    assert circuit.pause_seconds() == 0.0
    circuit.unheard()
    assert circuit._closed_at - clock.now == FIRST_PAUSE_SECONDS
    clock.now += FIRST_PAUSE_SECONDS
    assert circuit.pause_seconds() == 0.0
    clock.now += PROBE_SECONDS
    assert circuit.pause_seconds() == 0.0


def test_a_429_keeps_all_polls_away_for_a_while_and_submits_not() -> None:
    clock = Clock()
    circuit = Circuit(60, clock)
    circuit.slow_polls(7)
    assert 7 <= circuit.poll_pause_seconds() <= 8
    assert circuit.pause_seconds() == 0.0
    clock.now += 7
    assert circuit.poll_pause_seconds() == 0.0
    circuit.slow_polls(None)
    assert circuit.poll_pause_seconds() >= BUSY_SECONDS
    circuit.slow_polls(9999)
    assert circuit.poll_pause_seconds() <= 61
