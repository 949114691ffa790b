"""How many looks a second one worker process makes, beside a bare aiohttp loop of the same GETs in the same run.

    python -m bench.poll [--seconds 3] [--pairs 4] [--tasks 20000]

All tasks are made due at once and parked again: there are more of them than the worker can look after in a slice.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import median

import aiohttp

from app.settings import Settings
from bench.flight import Flight
from bench.ground import Ground, cpu_seconds, gateway, lay_ground, wait_for_port
from bench.slices import Slice, cpu_milliseconds, drive, median_ratio, pairs
from bench.table import show
from bench.wiretap import tap
from tests.support.ports import free_port

CONCURRENCY = 128  # the stepper's own
START_SECONDS = 60
SETTLE_SECONDS = 0.5


async def main() -> None:
    asked = arguments()
    port = free_port()
    origin = f"http://127.0.0.1:{port}"
    async with lay_ground(SEE2AI_BASE_URL=origin, SEE2AI_API_KEY="sk-bench") as ground, upstream(ground, port):
        settings = Settings(_env_file=None, database_url=ground.database_url)
        async with flying(settings, asked.tasks) as flight, aiohttp.ClientSession(origin) as counter:
            ours, bare = await measure(ground, flight, counter, asked)
            trips = await count_round_trips(ground, flight, counter, asked.seconds)
        violations = await ground.violations()
    show(
        f"looks at SEE2AI: one worker process, {asked.tasks} tasks in flight",
        {
            "gateway / bare": f"{median_ratio(ours, bare):.2f}   (pairs: {pairs(ours, bare)})",
            "gateway": f"{median(one.rate for one in ours):.0f} /s",
            "bare aiohttp loop": f"{median(one.rate for one in bare):.0f} /s",
            "CPU a look": f"{cpu_milliseconds(ours):.2f} ms worker, {cpu_milliseconds(bare):.2f} ms bare loop",
            "round trips a look": trips,
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
async def upstream(ground: Ground, port: int) -> AsyncIterator[None]:
    async with ground.process(sys.executable, "-m", "bench.upstream", str(port)):
        await wait_for_port(port)
        yield


@asynccontextmanager
async def flying(settings: Settings, number: int) -> AsyncIterator[Flight]:
    flight = Flight(settings, number)
    try:
        await flight.take_off()
        yield flight
    finally:
        await flight.land()


async def measure(
    ground: Ground, flight: Flight, counter: aiohttp.ClientSession, asked: argparse.Namespace
) -> tuple[list[Slice], list[Slice]]:
    """Slices of the worker and of the bare loop, by turns, after one of each to warm up."""
    ours, bare = [], []
    origin, tasks = ground.environment["SEE2AI_BASE_URL"], str(len(flight.ids))
    async with (
        ground.process(gateway(), "worker") as worker,
        drive(ground, "bench.poll_bare", origin, tasks, str(CONCURRENCY)) as loop,
    ):
        for _ in range(1 + asked.pairs):
            ours.append(await worker_slice(flight, counter, asked.seconds, worker.pid))
            bare.append(await loop.run(asked.seconds))
    return ours[1:], bare[1:]


async def worker_slice(flight: Flight, counter: aiohttp.ClientSession, seconds: float, pid: int) -> Slice:
    """Counts at the upstream how often the worker looks in `seconds`, from its first look on."""
    idle = await polls(counter)
    await flight.call()
    await first_look(counter, idle)
    before, cpu, began = await polls(counter), cpu_seconds(pid), time.perf_counter()
    await asyncio.sleep(seconds)
    done, spent = await polls(counter) - before, time.perf_counter() - began
    cpu = cpu_seconds(pid) - cpu
    await flight.park()
    await asyncio.sleep(SETTLE_SECONDS)
    if done >= len(flight.ids):
        raise SystemExit("every task was looked at within a slice: ask for more --tasks or fewer --seconds")
    return Slice(done=done, seconds=spent, cpu=cpu)


async def first_look(counter: aiohttp.ClientSession, idle: int) -> None:
    until = time.perf_counter() + START_SECONDS
    while await polls(counter) == idle:
        if time.perf_counter() > until:
            raise SystemExit("the worker looked at nothing")
        await asyncio.sleep(0.02)


async def polls(counter: aiohttp.ClientSession) -> int:
    async with counter.get("/polls") as answer:
        return int(await answer.text())


async def count_round_trips(ground: Ground, flight: Flight, counter: aiohttp.ClientSession, seconds: float) -> str:
    """MySQL commands a look, counted on the wire while the worker is busy."""
    async with (
        tap(ground.database_url) as tapped,
        ground.process(gateway(), "worker", DATABASE_URL=tapped.url) as worker,
    ):
        await worker_slice(flight, counter, 1.0, worker.pid)
        tapped.counts.clear()
        looks = await worker_slice(flight, counter, seconds, worker.pid)
        total, kinds = tapped.per(looks.done)
    return f"{total:.2f}   ({kinds})"


if __name__ == "__main__":
    asyncio.run(main())
