"""The hostile user of a storm: attacks in every other period, so that one run shows what the others notice of it."""

import asyncio
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.callers import Timing
from tests.support.processes.process import Process, Processes

ROOT = Path(__file__).parents[2]
ATTACKS = ("churn", "long_words", "head_flood", "bombs", "moves")
PERIOD_SECONDS = 15.0
MIN_PERIODS = 8  # of each kind; fewer say nothing amid all the other faults
MIN_TIMINGS = 10  # in a period
MAX_RATIO, SLACK_SECONDS = 1.5, 0.1


@dataclass(frozen=True)
class Period:
    """From when to when, and whether the hostile user attacked."""

    began: float
    ended: float
    is_hostile: bool


@dataclass(frozen=True)
class Notice:
    """What the others noticed in the periods of one kind: medians over the periods."""

    periods: int
    requests: int
    success: float
    p95_seconds: float


class HostileUser:
    """`run` until it is cancelled; calm and hostile periods take turns."""

    def __init__(self, processes: Processes, origins: list[str], token: str, receiver_port: int) -> None:
        self.periods: list[Period] = []
        self.answers: Counter[str] = Counter()
        self._processes = processes
        self._origins = origins
        self._options = ["--token", token, "--receiver-port", str(receiver_port)]

    async def run(self) -> None:
        process: Process | None = None
        try:
            while True:
                for is_hostile in (False, True):
                    began = time.monotonic()
                    process = self._start() if is_hostile else None
                    await asyncio.sleep(PERIOD_SECONDS)
                    if process is not None:
                        await asyncio.to_thread(process.kill)
                        self._count_answers(process)
                    self.periods.append(Period(began, time.monotonic(), is_hostile))
        finally:
            if process is not None:
                process.kill()

    def _start(self) -> Process:
        """Another attack first and another API process in each period, so that each has its turn in a short storm."""
        turn = len(self.periods) // 2
        attacks = [ATTACKS[(turn + n) % len(ATTACKS)] for n in range(len(ATTACKS))]
        options = ["--origin", self._origins[turn % len(self._origins)], *self._options]
        options += ["--seconds", str(PERIOD_SECONDS / len(ATTACKS)), *attacks]
        return self._processes.start(sys.executable, "-m", "tests.support.hostile", *options, cwd=ROOT, name="hostile")

    def _count_answers(self, process: Process) -> None:
        for line in process.log().splitlines():
            if line.startswith("{"):
                attack = json.loads(line)
                for answer, number in attack["answers"].items():
                    self.answers[f"{attack['attack']}: {answer}"] += number


def notice(timings: list[Timing], periods: list[Period], *, is_hostile: bool) -> Notice:
    """Medians over periods: an outage that struck in one of them does not decide."""
    found = [list(_timings_in(timings, one)) for one in periods if one.is_hostile is is_hostile]
    found = [those for those in found if len(those) >= MIN_TIMINGS]
    if not found:
        return Notice(0, 0, 0.0, 0.0)
    return Notice(
        periods=len(found),
        requests=sum(len(those) for those in found),
        success=statistics.median(sum(one.is_answered for one in those) / len(those) for those in found),
        p95_seconds=statistics.median(statistics.quantiles([o.seconds for o in those], n=20)[-1] for those in found),
    )


def _timings_in(timings: list[Timing], period: Period) -> Iterator[Timing]:
    return (one for one in timings if period.began <= one.began < period.ended)


def complaints(without: Notice, with_: Notice) -> list[str]:
    """What the others noticed and should not have. A short storm has too few periods to say."""
    if min(without.periods, with_.periods) < MIN_PERIODS:
        return []
    found = []
    if with_.p95_seconds > MAX_RATIO * without.p95_seconds + SLACK_SECONDS:
        found.append(f"p95 of others: {without.p95_seconds:.2f} s, with the hostile user {with_.p95_seconds:.2f} s")
    if with_.success < without.success - 0.02:
        found.append(f"answered to others: {without.success:.1%}, with the hostile user {with_.success:.1%}")
    return found
