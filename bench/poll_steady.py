"""How late one worker polls 10,000 running tasks at 5 s, and the memory that a task takes in it.

    python -m bench.poll_steady [--steady-tasks 10000] [--steady-seconds 40]

All tasks are old enough for the longest pause between polls, which is 5 s. The database says when a row is due, and
the upstream says when the poll came. A process beside them compares the two; the worker is asked nothing.
"""

import argparse
import asyncio
import time
from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass, field

import aiohttp

from app.engine.transitions import MAX_POLL_SECONDS
from app.settings import Settings
from bench.harness import cpu_seconds, gateway, memory_kilobytes, open_harness
from bench.paired_runs import percentile
from bench.poll import seeded_tasks, upstream, wait_for_first_poll
from bench.seed_tasks import SeededTasks
from bench.table import Row, audit, parser, run_alone
from tests.support.ports import free_port

FEW_TASKS = 100  # for the memory of a worker that has worked, but has few tasks
WARM_UP_SECONDS = 2 * MAX_POLL_SECONDS
SAMPLE_SECONDS = 1.5  # shorter than the shortest pause between polls, so no due time is missed
MAX_LATE_MILLISECONDS = 1000
MAX_KILOBYTES = 20


@dataclass
class Steady:
    """What was seen in the measured time. `late` is in milliseconds, one for each poll that was due."""

    late: list[float] = field(default_factory=list)
    never: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    few_kilobytes: int = 0
    kilobytes: int = 0


async def rows(options: argparse.Namespace) -> list[Row]:
    port, number = free_port(), options.steady_tasks
    origin = f"http://127.0.0.1:{port}"
    async with open_harness(SEE2AI_BASE_URL=origin, SEE2AI_API_KEY="sk-bench") as harness, upstream(harness, port):
        settings = Settings(_env_file=None, database_url=harness.database_url)
        async with (
            seeded_tasks(settings, number) as seeded,
            aiohttp.ClientSession(origin) as log,
            harness.process(gateway(), "worker") as worker,
        ):
            steady = await measure(seeded, log, worker.pid, options.steady_seconds)
        books = await audit(harness)
    shares = ", ".join(f"p{share} {percentile(steady.late, share / 100):.0f} ms" for share in (50, 95, 99))
    notes = [
        f"{shares}, max {max(steady.late):.0f} ms, of {len(steady.late):,} polls in {steady.seconds:.0f} s",
        f"the worker used {steady.cpu / steady.seconds:.2f} of a core",
        *([f"{steady.never} of them never came"] if steady.never else []),
    ]
    p99 = percentile(steady.late, 0.99)
    late = Row(f"polls of {number:,} tasks at 5 s, p99 late", "the goal: 1 s", "ms", [p99], [MAX_LATE_MILLISECONDS])
    late.at_most, late.audit, late.notes = 1, books, notes
    each = max(steady.kilobytes - steady.few_kilobytes, 1) / number
    memory = Row("memory of a task in the worker", "the goal: 20 kB", "kB", [each], [MAX_KILOBYTES])
    memory.at_most, memory.audit = 1, books
    memory.notes = [f"{steady.few_kilobytes / 1000:.0f} MB with few tasks, at most {steady.kilobytes / 1000:.0f} MB"]
    return [late, memory]


async def measure(seeded: SeededTasks, log: aiohttp.ClientSession, pid: int, seconds: float) -> Steady:
    """Few tasks first, then all of them: a warm-up, and the measured time."""
    steady = Steady()
    await seeded.spread_due(MAX_POLL_SECONDS, FEW_TASKS)
    await wait_for_first_poll(log, 0)
    await asyncio.sleep(MAX_POLL_SECONDS)
    steady.few_kilobytes = memory_kilobytes(pid)
    await seeded.spread_due(MAX_POLL_SECONDS)
    await asyncio.sleep(WARM_UP_SECONDS)

    await _polls(log)
    due: set[tuple[str, float]] = set()
    began, cpu = time.time(), cpu_seconds(pid)
    while time.time() < began + seconds:
        due.update((await seeded.due_times()).items())
        steady.kilobytes = max(steady.kilobytes, memory_kilobytes(pid))
        await asyncio.sleep(SAMPLE_SECONDS)
    steady.seconds, steady.cpu = time.time() - began, cpu_seconds(pid) - cpu
    await asyncio.sleep(MAX_LATE_MILLISECONDS / 1000)
    compare(steady, {one for one in due if began <= one[1] < began + steady.seconds}, await _polls(log))
    return steady


def compare(steady: Steady, due: set[tuple[str, float]], polls: list[tuple[str, float]]) -> None:
    """Each due time has its poll: the first one of the job from then on. One that never came is late until now."""
    polled = defaultdict[str, list[float]](list)
    for job, at in polls:
        polled[job].append(at)
    for job, moment in due:
        place = bisect_left(polled[job], moment)
        is_there = place < len(polled[job])
        steady.never += not is_there
        steady.late.append(1000 * ((polled[job][place] if is_there else time.time()) - moment))


async def _polls(log: aiohttp.ClientSession) -> list[tuple[str, float]]:
    """Job and time of each poll since the last call, the oldest first."""
    async with log.get("/log") as answer:
        return [(job, at) for job, at in await answer.json()]


def arguments(made: argparse.ArgumentParser) -> None:
    made.add_argument("--steady-tasks", type=int, default=10_000, help="of the worker that polls each task every 5 s")
    made.add_argument("--steady-seconds", type=float, default=40.0, help="the measured time, after a warm-up")


if __name__ == "__main__":
    _parser = parser(__doc__)
    arguments(_parser)
    run_alone(rows, _parser.parse_args())
