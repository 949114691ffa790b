"""Slices of work: a child process reads from standard input how long to work, and answers with what it did.

Two children work in turns, slice by slice, so the load of a shared machine is the same for both. Their ratio is
reliable where their rates are not.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from statistics import median

import uvloop

from bench.harness import Harness

GRACE_SECONDS = 30


@dataclass
class Slice:
    """What was done in one slice. `cpu` is in seconds of the measured process, `latencies` are in milliseconds,
    `fault` is the first error."""

    done: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    latencies: list[float] = field(default_factory=list)
    fault: str = ""

    @property
    def rate(self) -> float:
        return self.done / self.seconds if self.seconds else 0.0


class Driver:
    """The parent's side of a child that works in slices."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self._child = child

    async def run(self, seconds: float) -> Slice:
        """Runs one slice. SystemExit if the work of the child failed."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(f"{seconds}\n".encode())
        line = await asyncio.wait_for(self._child.stdout.readline(), seconds + GRACE_SECONDS)
        if not line:
            raise SystemExit("a child process of the benchmark ended")
        done = Slice(**json.loads(line))
        if done.fault:
            raise SystemExit(f"the benchmark's work failed: {done.fault}")
        return done


@asynccontextmanager
async def drive(harness: Harness, module: str, *arguments: str) -> AsyncIterator[Driver]:
    """Starts `python -m module arguments` as a child that works in slices."""
    async with harness.process(sys.executable, "-m", module, *arguments) as child:
        yield Driver(child)


def obey(work: Callable[[float], Awaitable[Slice]]) -> None:
    """The child's side: works for each given time until standard input ends."""
    uvloop.run(_obey(work))


async def _obey(work: Callable[[float], Awaitable[Slice]]) -> None:
    while line := await asyncio.to_thread(sys.stdin.readline):
        before = time.process_time()
        done = await work(float(line))
        done.cpu = time.process_time() - before
        print(json.dumps(asdict(done)), flush=True)


def cpu_milliseconds(slices: list[Slice]) -> float:
    """CPU time of one piece of work. On a busy machine it varies less than a rate."""
    return 1000 * sum(one.cpu for one in slices) / sum(one.done for one in slices)


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0


def pairs(ours: list[Slice], bare: list[Slice]) -> str:
    """The rates of each pair, for the report."""
    return " ".join(f"{a.rate:.0f}/{b.rate:.0f}" for a, b in zip(ours, bare, strict=True))


def median_ratio(ours: list[Slice], bare: list[Slice]) -> float:
    """The median of gateway / bare over the pairs of slices."""
    return median(a.rate / b.rate for a, b in zip(ours, bare, strict=True))
