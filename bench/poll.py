"""How many polls a second one worker process makes, and a bare aiohttp loop with the same GETs in the same run.

    python -m bench.poll [--seconds 3] [--pairs 4] [--tasks 20000]

All tasks are made due at once and later deferred. There are more of them than the worker can poll in a slice.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import median

import aiohttp

from app.engine.pools import FAST_CONCURRENCY
from app.settings import Settings
from bench.harness import Harness, cpu_seconds, gateway, open_harness, wait_for_port
from bench.paired_runs import Slice, cpu_milliseconds, drive, median_ratio, pairs
from bench.report import show
from bench.round_trips import count_commands
from bench.seed_tasks import SeededTasks
from tests.support.ports import free_port

CONCURRENCY = FAST_CONCURRENCY  # of the worker
START_SECONDS = 60
SETTLE_SECONDS = 0.5


async def main() -> None:
    options = arguments()
    port = free_port()
    origin = f"http://127.0.0.1:{port}"
    async with open_harness(SEE2AI_BASE_URL=origin, SEE2AI_API_KEY="sk-bench") as harness, upstream(harness, port):
        settings = Settings(_env_file=None, database_url=harness.database_url)
        async with seeded_tasks(settings, options.tasks) as seeded, aiohttp.ClientSession(origin) as counter:
            ours, bare = await measure(harness, seeded, counter, options)
            trips = await count_round_trips(harness, seeded, counter, options.seconds)
        violations = await harness.violations()
    show(
        f"polls of SEE2AI: one worker process, {options.tasks} running tasks",
        {
            "gateway / bare": f"{median_ratio(ours, bare):.2f}   (pairs: {pairs(ours, bare)})",
            "gateway": f"{median(one.rate for one in ours):.0f} /s",
            "bare aiohttp loop": f"{median(one.rate for one in bare):.0f} /s",
            "CPU a poll": f"{cpu_milliseconds(ours):.2f} ms worker, {cpu_milliseconds(bare):.2f} ms bare loop",
            "round trips a poll": trips,
            "audit": "clean" if not violations else f"{len(violations)} violations: {violations[0]}",
        },
    )
    if violations:
        raise SystemExit(1)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3, help="of one slice")
    parser.add_argument("--pairs", type=int, default=4, help="slices of each kind")
    parser.add_argument("--tasks", type=int, default=20_000)
    return parser.parse_args()


@asynccontextmanager
async def upstream(harness: Harness, port: int) -> AsyncIterator[None]:
    async with harness.process(sys.executable, "-m", "bench.upstream", str(port)):
        await wait_for_port(port)
        yield


@asynccontextmanager
async def seeded_tasks(settings: Settings, number: int) -> AsyncIterator[SeededTasks]:
    seeded = SeededTasks(settings, number)
    try:
        await seeded.create()
        yield seeded
    finally:
        await seeded.close()


async def measure(
    harness: Harness, seeded: SeededTasks, counter: aiohttp.ClientSession, options: argparse.Namespace
) -> tuple[list[Slice], list[Slice]]:
    """Slices of the worker and of the bare loop in turns. The first slice of each is a warm-up."""
    ours, bare = [], []
    origin, tasks = harness.environment["SEE2AI_BASE_URL"], str(len(seeded.ids))
    async with (
        harness.process(gateway(), "worker") as worker,
        drive(harness, "bench.poll_bare", origin, tasks, str(CONCURRENCY)) as loop,
    ):
        for _ in range(1 + options.pairs):
            ours.append(await worker_slice(seeded, counter, options.seconds, worker.pid))
            bare.append(await loop.run(options.seconds))
    return ours[1:], bare[1:]


async def worker_slice(seeded: SeededTasks, counter: aiohttp.ClientSession, seconds: float, pid: int) -> Slice:
    """Counts the worker's polls at the upstream for `seconds`, from its first poll on."""
    idle = await polls(counter)
    await seeded.make_due()
    await wait_for_first_poll(counter, idle)
    before, cpu, began = await polls(counter), cpu_seconds(pid), time.perf_counter()
    await asyncio.sleep(seconds)
    done, spent = await polls(counter) - before, time.perf_counter() - began
    cpu = cpu_seconds(pid) - cpu
    await seeded.defer()
    await asyncio.sleep(SETTLE_SECONDS)
    if done >= len(seeded.ids):
        raise SystemExit("every task was polled within a slice: give more --tasks or fewer --seconds")
    return Slice(done=done, seconds=spent, cpu=cpu)


async def wait_for_first_poll(counter: aiohttp.ClientSession, idle: int) -> None:
    until = time.perf_counter() + START_SECONDS
    while await polls(counter) == idle:
        if time.perf_counter() > until:
            raise SystemExit("the worker polled nothing")
        await asyncio.sleep(0.02)


async def polls(counter: aiohttp.ClientSession) -> int:
    async with counter.get("/polls") as answer:
        return int(await answer.text())


async def count_round_trips(
    harness: Harness, seeded: SeededTasks, counter: aiohttp.ClientSession, seconds: float
) -> str:
    """MySQL commands for each poll, counted on the wire while the worker is busy."""
    async with (
        count_commands(harness.database_url) as counted,
        harness.process(gateway(), "worker", DATABASE_URL=counted.url) as worker,
    ):
        await worker_slice(seeded, counter, 1.0, worker.pid)
        counted.counts.clear()
        poll_count = await worker_slice(seeded, counter, seconds, worker.pid)
        total, kinds = counted.per(poll_count.done)
    return f"{total:.2f}   ({kinds})"


if __name__ == "__main__":
    asyncio.run(main())
