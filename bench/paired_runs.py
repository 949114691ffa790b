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

from bench.harness import Harness, cpu_seconds

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


Work = Callable[[float], Awaitable[Slice]]
"""Works for so many seconds."""


def on_cpu_of(work: Work, *pids: int) -> Work:
    """The same work; its slices have the CPU time of these processes."""

    async def measured(seconds: float) -> Slice:
        before = [cpu_seconds(pid) for pid in pids]
        done = await work(seconds)
        done.cpu = sum(cpu_seconds(pid) - earlier for pid, earlier in zip(pids, before, strict=True))
        return done

    return measured


def together(*works: Work) -> Work:
    """Several works at the same time, as one."""

    async def measured(seconds: float) -> Slice:
        slices = await asyncio.gather(*(work(seconds) for work in works))
        done, cpu = sum(one.done for one in slices), sum(one.cpu for one in slices)
        latencies = [latency for one in slices for latency in one.latencies]
        return Slice(done, sum(one.seconds for one in slices) / len(slices), cpu, latencies)

    return measured


async def in_turns(number: int, seconds: float, *works: Work) -> list[list[Slice]]:
    """`number` slices of each work, one work after the other. A half slice of each comes first: it fills pools."""
    for work in works:
        await work(seconds / 2)
    slices: list[list[Slice]] = [[] for _ in works]
    for _ in range(number):
        for work, done in zip(works, slices, strict=True):
            done.append(await work(seconds))
    return slices


def obey(work: Work) -> None:
    """The child's side: works for each given time until standard input ends."""
    uvloop.run(_obey(work))


async def _obey(work: Work) -> None:
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
