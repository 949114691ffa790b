"""What one request and one poll cost when there are more users, more history, more tasks in flight or longer files.

    python -m bench.slopes [--seconds 3] [--only users,history,tasks,files] [--scale 1]

Each line is one size. Compare the lines of one table: they were measured one after the other on the same machine.
docs/scaling.md quotes the figures. `--scale 0.01` makes every size smaller.
"""

import argparse
import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from statistics import median

import aiohttp

from app.accounts.credentials import sign_token
from app.database import Database, open_database
from app.settings import Settings
from bench import file_sizes
from bench.callers import BODY, SUBMIT, call, request
from bench.harness import Harness, core_seconds, gateway, memory_kilobytes, open_harness
from bench.paired_runs import Slice, Work, on_cpu_of, percentile
from bench.poll import seeded_tasks, upstream, worker_slice
from bench.report import show
from bench.seed_lists import write_tasks
from bench.seed_users import write_users
from bench.submit import UNLIMITED
from tests.support.ports import free_port

USERS = (1_000, 10_000, 100_000)
HISTORY = (10_000, 200_000, 2_000_000)
RUNNING = (1_000, 5_000, 20_000)
MIN_RUNNING = 1_000  # fewer are all polled before a slice ends
MEGABYTES = (1, 10, 100)
CALLERS = 1_000
CONNECTIONS = 32
TURNS = 3
READS = {
    "GET task": "/user/ai/tasks/BENCH-{task}",
    "GET balance": "/user/points/consumption/balance",
    "list, page 1": "/user/ai/tasks/list",
}


@dataclass(frozen=True)
class Cost:
    """The medians of some slices. `cpu` is of the measured process, `all_cpu` of the machine with load and database."""

    rate: float
    p50: float
    cpu: float
    all_cpu: float

    def __str__(self) -> str:
        return f"{self.cpu:6.3f} ms CPU   {self.all_cpu:6.3f} ms CPU with database and load   p50 {self.p50:5.1f} ms"


async def users(options: argparse.Namespace) -> None:
    """The cost of a submit and of a balance, with more and more users who have points."""
    lines, written = {}, 0
    async with _database(UNLIMITED) as (harness, settings, database):
        for number in _sizes(USERS, options.scale):
            await write_users(database, written + 1, number - written)
            written = number
            some = random.Random(number).sample(range(1, number + 1), min(CALLERS, number))
            async with _api(harness) as measure:
                for name, requests in {
                    "submit": _submits(settings, some),
                    "GET balance": _reads(settings, some),
                }.items():
                    lines[f"{name}, {number:,} users"] = str(await measure(requests, options.seconds))
        books = await harness.violations()
    show("cost of a request against the number of users", lines | _books(books))


async def history(options: argparse.Namespace) -> None:
    """The cost of requests of 1,000 users, with more and more ended tasks in the table."""
    lines, written, sizes = {}, 0, _sizes(HISTORY, options.scale)
    callers = min(CALLERS, sizes[0])  # so that each has a task
    everybody = range(1, callers + 1)
    async with _database(UNLIMITED) as (harness, settings, database):
        await write_users(database, 1, callers)
        for number in sizes:
            await write_tasks(database, f"1 + n % {callers}", written, number - written)
            written = number
            kinds = {"submit": _submits(settings, everybody)}
            kinds |= {name: _reads(settings, everybody, path) for name, path in READS.items()}
            async with _api(harness) as measure:
                for name, requests in kinds.items():
                    lines[f"{name}, {number:,} tasks"] = str(await measure(requests, options.seconds))
        books = await harness.violations()
    show("cost of a request against the history", lines | _books(books))


async def running_tasks(options: argparse.Namespace) -> None:
    """The cost of a poll, and the memory of the worker, with more and more tasks in flight that are all due."""
    lines = {}
    for number in sorted({max(MIN_RUNNING, size) for size in _sizes(RUNNING, options.scale)}):
        port = free_port()
        origin = f"http://127.0.0.1:{port}"
        async with (
            _database({"SEE2AI_BASE_URL": origin, "SEE2AI_API_KEY": "sk-bench"}) as (harness, settings, _),
            upstream(harness, port),
            seeded_tasks(settings, number) as seeded,
            aiohttp.ClientSession(origin) as counter,
            harness.process(gateway(), "worker") as worker,
        ):
            seconds = min(options.seconds, number / 4000)  # not every task may be polled within a slice
            slices = [await worker_slice(seeded, counter, seconds, worker.pid) for _ in range(1 + TURNS)][1:]
            rate, cpu = median(one.rate for one in slices), median(1000 * one.cpu / one.done for one in slices)
            memory = memory_kilobytes(worker.pid, "VmHWM") / 1024
        lines[f"{number:,} tasks in flight"] = f"{rate:6.0f} polls/s   {cpu:.3f} ms CPU a poll   {memory:.0f} MB"
    show("cost of a poll against the tasks in flight", lines)


async def files(options: argparse.Namespace) -> None:
    """The cost of re-hosting one result."""
    sizes = [max(1, round(size * min(options.scale, 1))) for size in MEGABYTES]
    show("cost of storing one result against its size", await file_sizes.measure(sorted(set(sizes))))


def _sizes(sizes: Sequence[int], scale: float) -> list[int]:
    return [max(10, round(size * scale)) for size in sizes]


def _submits(settings: Settings, user_ids: Sequence[int]) -> list[str]:
    return [request("POST", SUBMIT, sign_token(settings, user_id), BODY) for user_id in user_ids]


def _reads(settings: Settings, user_ids: Sequence[int], path: str = READS["GET balance"]) -> list[str]:
    return [request("GET", path.format(task=user_id - 1), sign_token(settings, user_id)) for user_id in user_ids]


def _books(violations: list[object]) -> dict[str, str]:
    return {"audit": "clean" if not violations else f"{len(violations)} violations: {violations[0]}"}


@asynccontextmanager
async def _database(environment: dict[str, str]) -> AsyncIterator[tuple[Harness, Settings, Database]]:
    async with open_harness(**environment) as harness:
        settings = Settings(_env_file=None, database_url=harness.database_url)
        database = open_database(settings)
        try:
            yield harness, settings, database
        finally:
            await database.close()


@asynccontextmanager
async def _api(harness: Harness) -> AsyncIterator[Callable[[list[str], float], Awaitable[Cost]]]:
    """A new API process, and what measures requests on it."""
    async with harness.api() as (pid, port):

        async def measure(requests: list[str], seconds: float) -> Cost:
            async with call(harness, port, CONNECTIONS, requests) as callers:
                return await _cost(on_cpu_of(callers, pid), seconds)

        yield measure


async def _cost(work: Work, seconds: float) -> Cost:
    await work(seconds / 2)
    slices: list[Slice] = []
    all_cpu = []
    for _ in range(TURNS):
        before = core_seconds()
        slices.append(done := await work(seconds))
        all_cpu.append(1000 * (core_seconds() - before) / done.done)
    return Cost(
        rate=median(one.rate for one in slices),
        p50=median(percentile(one.latencies, 0.5) for one in slices),
        cpu=median(1000 * one.cpu / one.done for one in slices),
        all_cpu=median(all_cpu),
    )


PARTS = {"users": users, "history": history, "tasks": running_tasks, "files": files}


async def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--seconds", type=float, default=3, help="of one slice")
    made.add_argument("--only", default=",".join(PARTS), help="some of users, history, tasks, files")
    made.add_argument("--scale", type=float, default=1, help="multiplies every size")
    options = made.parse_args()
    for name in options.only.split(","):
        await PARTS[name](options)


if __name__ == "__main__":
    asyncio.run(main())
