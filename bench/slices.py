"""Work in slices: a child process told on standard input for how many seconds to work answers with what it did.

Two children that take turns slice by slice see the same weather on a shared machine, so their ratio can be believed
where their rates cannot.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from statistics import median

import uvloop

from bench.ground import Ground


@dataclass
class Slice:
    """What was done in one slice. Latencies are milliseconds; `fault` is the first thing that went wrong."""

    done: int = 0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    fault: str = ""

    @property
    def rate(self) -> float:
        return self.done / self.seconds if self.seconds else 0.0


class Driver:
    """The parent's end of a child that works in slices."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self._child = child

    async def run(self, seconds: float) -> Slice:
        """One slice; SystemExit where the child failed, because a benchmark of failures says nothing."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(f"{seconds}\n".encode())
        line = await self._child.stdout.readline()
        if not line:
            raise SystemExit("a child process of the benchmark ended")
        done = Slice(**json.loads(line))
        if done.fault:
            raise SystemExit(f"the benchmark's work failed: {done.fault}")
        return done


@asynccontextmanager
async def drive(ground: Ground, module: str, *arguments: str) -> AsyncIterator[Driver]:
    """Starts `python -m module arguments` as a child that works in slices."""
    async with ground.process(sys.executable, "-m", module, *arguments) as child:
        yield Driver(child)


def obey(work: Callable[[float], Awaitable[Slice]]) -> None:
    """The child's end: works as told until standard input ends."""
    uvloop.run(_obey(work))


async def _obey(work: Callable[[float], Awaitable[Slice]]) -> None:
    while line := await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(asdict(await work(float(line)))), flush=True)


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0


def median_ratio(ours: list[Slice], bare: list[Slice]) -> float:
    """Of neighbouring slices, ours to bare."""
    return median(a.rate / b.rate for a, b in zip(ours, bare, strict=True))
