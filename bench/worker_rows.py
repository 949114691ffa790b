"""The rows of the worker: its polls beside a bare aiohttp loop."""

import argparse

import aiohttp

from app.settings import Settings
from bench import poll
from bench.harness import open_harness
from bench.table import Row, audit, row_of_rates
from tests.support.ports import free_port

LIMIT = "the same GETs in a bare aiohttp loop, without a database"


async def rows(options: argparse.Namespace) -> list[Row]:
    port = free_port()
    origin = f"http://127.0.0.1:{port}"
    async with open_harness(SEE2AI_BASE_URL=origin, SEE2AI_API_KEY="sk-bench") as harness, poll.upstream(harness, port):
        settings = Settings(_env_file=None, database_url=harness.database_url)
        async with poll.seeded_tasks(settings, options.tasks) as seeded, aiohttp.ClientSession(origin) as counter:
            ours, bare = await poll.measure(harness, seeded, counter, options)
            trips = await poll.count_round_trips(harness, seeded, counter, options.seconds)
        books = await audit(harness)
    row = row_of_rates("polls of one worker", LIMIT, ours, bare, at_least=0.3, audit=books)
    row.notes += [f"{options.tasks:,} running tasks", f"round trips a poll: {trips}"]
    return [row]


def arguments(made: argparse.ArgumentParser) -> None:
    made.add_argument("--tasks", type=int, default=20_000, help="of the worker")
