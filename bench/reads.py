"""GET task, GET balance and the first page of the list, each beside a bare FastAPI route with the same bytes.

    python -m bench.reads [--seconds 3] [--pairs 6] [--users 1000] [--connections 32]

Both get the same requests with a JWT of a user at random. The bare route does not read it.
"""

import argparse
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from app.accounts.credentials import sign_token
from app.database import open_database
from app.settings import Settings
from bench.callers import call, request
from bench.harness import Harness, wait_for_port
from bench.paired_runs import in_turns, on_cpu_of
from bench.seed_lists import write_tasks
from bench.submit import arguments, open_users
from bench.table import Row, audit, parser, row_of_rates, run_alone
from tests.support.ports import free_port

TASKS = 100  # of each user, so that a page is full and there are more
LIMIT = "a FastAPI route that answers the same bytes and does not read the JWT"
PATHS = {
    "GET task": ("/user/ai/tasks/BENCH-{task}", 0.5),
    "GET balance": ("/user/points/consumption/balance", 0.5),
    "list, first page of 10": ("/user/ai/tasks/list", 0.25),
}


async def rows(options: argparse.Namespace) -> list[Row]:
    measured = []
    async with open_users(options.users) as (harness, settings):
        database = open_database(settings)
        await write_tasks(database, f"1 + n % {options.users}", 0, TASKS * options.users)
        await database.close()
        async with harness.api() as (pid, port):
            for name, (path, goal) in PATHS.items():
                measured.append(await one_route(harness, settings, options, (pid, port), name, path, goal))
        books = await audit(harness)
    for row in measured:
        row.audit = books
    return measured


async def one_route(
    harness: Harness,
    settings: Settings,
    options: argparse.Namespace,
    api: tuple[int, int],
    name: str,
    path: str,
    goal: float,
) -> Row:
    """Slices of the gateway and of the bare route in turns."""
    pid, port = api
    requests = [
        request("GET", path.format(task=user_id - 1), sign_token(settings, user_id))
        for user_id in range(1, options.users + 1)
    ]
    answer = await fetch(f"http://127.0.0.1:{port}{path.format(task=0)}", sign_token(settings, 1))
    async with (
        bare_route(harness, path, answer) as (bare_pid, bare_port),
        call(harness, port, options.connections, requests) as ours,
        call(harness, bare_port, options.connections, requests) as bare,
    ):
        works = (on_cpu_of(ours, pid), on_cpu_of(bare, bare_pid))
        row = row_of_rates(name, LIMIT, *await in_turns(options.pairs, options.seconds, *works), at_least=goal)
    row.notes.append(
        f"{options.connections} connections, {options.users:,} users; a body of {len(answer.encode())} bytes"
    )
    return row


async def fetch(url: str, token: str) -> str:
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(headers=headers) as session, session.get(url) as response:
        body = await response.text()
        if response.status != 200:
            raise SystemExit(f"the benchmark's GET failed: {body}")
    return body


@asynccontextmanager
async def bare_route(harness: Harness, path: str, answer: str) -> AsyncIterator[tuple[int, int]]:
    """A process that answers `path`: (its process id, its port)."""
    port, file = free_port(), Path(harness.directory, "route.json")
    file.write_text(json.dumps({path: answer}))
    async with harness.process(sys.executable, "-m", "bench.limits.route", str(port), str(file)) as child:
        await wait_for_port(port)
        yield child.pid, port


if __name__ == "__main__":
    _parser = parser(__doc__)
    arguments(_parser)
    run_alone(rows, _parser.parse_args())
