"""Runs many seeds in parallel on all processors, and adds up their counts."""

import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

from tests.simulator.world import Outcome, simulate

MAX_PROCESSES = 4
AT_A_TIME = 10


@contextmanager
def workers() -> Iterator[Callable[..., Iterable[Any]]]:
    """A `map` over new processes, which have loaded nothing of pytest or of a test."""
    own = multiprocessing.get_context("spawn")
    count = min(os.cpu_count() or 1, MAX_PROCESSES)
    with ProcessPoolExecutor(count, mp_context=own) as pool:
        yield pool.map


def run_seeds(seeds: Iterable[int]) -> Iterator[Outcome]:
    """The outcomes, in the order of the seeds."""
    batches = [list(seeds)[start : start + AT_A_TIME] for start in range(0, len(list(seeds)), AT_A_TIME)]
    with workers() as spread:
        for outcomes in spread(_run, batches):
            yield from outcomes


def _run(seeds: list[int]) -> list[Outcome]:
    return [simulate(seed) for seed in seeds]


def together(outcomes: Iterable[Outcome]) -> Counter[str]:
    """How often each event happened."""
    hits: Counter[str] = Counter()
    for outcome in outcomes:
        hits.update(outcome.hits)
    return hits
