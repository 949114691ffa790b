"""How many submits a second one API process takes, and a bare loop of the same transaction in the same run.

    python -m bench.submit [--seconds 3] [--pairs 6] [--users 1000] [--connections 32]

The audit must find nothing afterwards: speed with wrong books is worth nothing.
"""

import argparse
import asyncio
from statistics import median

import aiohttp

from app.accounts.credentials import sign_token
from app.accounts.users import create_user
from app.database import Database, open_database
from app.points import ledger
from app.settings import Settings
from bench.harness import Harness, cpu_seconds, open_harness
from bench.paired_runs import Driver, Slice, cpu_milliseconds, drive, median_ratio, pairs, percentile
from bench.report import show
from bench.round_trips import CountedConnection, count_commands
from bench.submit_callers import BODY

TARGET = 0.2
POINTS = 10**9
LIMITED_TO = 120_000  # submits a minute of all users together: the default limit times a thousand users
COUNTED = 100


async def main() -> None:
    options = arguments()
    limit = str(max(LIMITED_TO // options.users, 1))
    async with open_harness(SUBMIT_RATE_PER_MINUTE=limit, MAX_TASKS_IN_FLIGHT=str(10**6)) as harness:
        settings = Settings(_env_file=None, database_url=harness.database_url)
        await make_users(settings, 2 * options.users)
        ours, bare = await measure(harness, options)
        trips = await count_round_trips(harness, settings)
        violations = await harness.violations()
    latencies = [latency for one in ours for latency in one.latencies]
    ratio = median_ratio(ours, bare)
    show(
        f"submits: one API process, {options.connections} connections, {options.users} users",
        {
            "gateway / bare": f"{ratio:.2f}   (mark: {TARGET}; pairs: {pairs(ours, bare)})",
            "gateway": f"{median(one.rate for one in ours):.0f} /s",
            "bare asyncmy loop": f"{median(one.rate for one in bare):.0f} /s",
            "latency p50 p95 p99": " ".join(f"{percentile(latencies, p):.0f}" for p in (0.5, 0.95, 0.99)) + " ms",
            "CPU a submit": f"{cpu_milliseconds(ours):.2f} ms API, {cpu_milliseconds(bare):.2f} ms bare loop",
            "round trips a submit": trips,
            "audit": "clean" if not violations else f"{len(violations)} violations: {violations[0]}",
        },
    )
    if violations:
        raise SystemExit(1)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3, help="of one slice")
    parser.add_argument("--pairs", type=int, default=6, help="slices of each kind")
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--connections", type=int, default=32)
    return parser.parse_args()


async def measure(harness: Harness, options: argparse.Namespace) -> tuple[list[Slice], list[Slice]]:
    """Slices of the gateway and of the bare loop in turns."""
    connections, users = str(options.connections), str(options.users)
    ours, bare = [], []
    async with (
        harness.api() as (pid, port),
        drive(harness, "bench.submit_callers", str(port), connections, users) as callers,
        drive(harness, "bench.submit_bare", connections, users) as loop,
    ):
        await warm_up(callers, loop, options.seconds / 2)
        for _ in range(options.pairs):
            before = cpu_seconds(pid)
            ours.append(await callers.run(options.seconds))
            ours[-1].cpu = cpu_seconds(pid) - before
            bare.append(await loop.run(options.seconds))
    return ours, bare


async def warm_up(callers: Driver, loop: Driver, seconds: float) -> None:
    """Fills pools, caches and buffers."""
    await callers.run(seconds)
    await loop.run(seconds)


async def make_users(settings: Settings, number: int) -> None:
    """Users 1 to `number`, with points that never expire."""
    database, busy = open_database(settings), asyncio.Semaphore(16)
    try:
        await asyncio.gather(*(_make_user(database, busy, user_id) for user_id in range(1, number + 1)))
    finally:
        await database.close()


async def _make_user(database: Database, busy: asyncio.Semaphore, user_id: int) -> None:
    async with busy:
        await create_user(database, user_id=user_id)
        await ledger.grant(database, user_id=user_id, points=POINTS, ref=f"bench:{user_id}")


async def count_round_trips(harness: Harness, settings: Settings) -> str:
    """MySQL commands of a submit, counted on the wire during sequential submits."""
    async with count_commands(harness.database_url) as counted, harness.api(DATABASE_URL=counted.url) as (_, port):
        headers = {"Authorization": f"Bearer {sign_token(settings, 1)}", "Content-Type": "application/json"}
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers=headers) as caller:
            await _submit(caller, 5)
            counted.counts.clear()
            await _submit(caller, COUNTED)
            return output(counted, COUNTED)


async def _submit(caller: aiohttp.ClientSession, times: int) -> None:
    for _ in range(times):
        async with caller.post("/user/ai/tasks/submit", data=BODY) as answer:
            if answer.status != 200:
                raise SystemExit(f"the benchmark's submit failed: {await answer.text()}")


def output(counted: CountedConnection, number: int) -> str:
    total, kinds = counted.per(number)
    return f"{total:.2f}   ({kinds})"


if __name__ == "__main__":
    asyncio.run(main())
