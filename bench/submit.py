"""Submits of one API process, of one hot user and of two API processes, each beside its limit in the same run.

    python -m bench.submit [--seconds 3] [--pairs 6] [--users 1000] [--connections 32]

The audit must find nothing afterwards: speed with wrong books is worth nothing.
"""

import argparse
import asyncio
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from statistics import median

import aiohttp

from app.accounts.credentials import sign_token
from app.accounts.users import create_user
from app.database import Database, open_database
from app.points import ledger
from app.settings import Settings
from bench.callers import BODY, SUBMIT, call, request
from bench.harness import Harness, core_seconds, open_harness
from bench.paired_runs import Slice, drive, in_turns, on_cpu_of, percentile, together
from bench.round_trips import count_commands
from bench.table import Row, audit, parser, row_of_rates, run_alone

POINTS = 10**9
UNLIMITED = {"SUBMIT_RATE_PER_MINUTE": str(10**8), "READ_RATE_PER_MINUTE": str(10**8), "MAX_TASKS_IN_FLIGHT": "1000000"}
HOT_CONNECTIONS = 64
COUNTED = 100
BARE = "the same transaction in a bare asyncmy loop"


async def rows(options: argparse.Namespace) -> list[Row]:
    return [*await one_process(options), await hot_user(options), await two_processes(options)]


async def one_process(options: argparse.Namespace) -> list[Row]:
    """The rate, and the CPU time, of one API process beside the bare loop."""
    async with open_users(2 * options.users) as (harness, settings):
        ours, bare = await against_bare_loop(harness, settings, options, options.users, options.connections)
        trips = await count_round_trips(harness, settings)
        books = await audit(harness)
    latencies = [latency for one in ours for latency in one.latencies]
    shown = ", ".join(f"p{share * 100:.0f} {percentile(latencies, share):.0f} ms" for share in (0.5, 0.95, 0.99))
    where = f"{options.connections} connections, {options.users:,} users"
    rate = row_of_rates(f"submit, {where}", BARE, ours, bare, at_least=0.7, audit=books)
    rate.notes += [f"latency {shown}", f"round trips a submit: {trips}"]
    cpu = Row("CPU of a submit", f"the client of {BARE}", "ms", *cpu_figures(ours, bare), at_most=1.8, audit=books)
    return [rate, cpu]


def cpu_figures(*kinds: list[Slice]) -> list[list[float]]:
    return [[1000 * one.cpu / one.done for one in slices] for slices in kinds]


async def hot_user(options: argparse.Namespace) -> Row:
    """All submits are of one user, so they want the same account row. The bare loop has one user, too."""
    async with open_users(2) as (harness, settings):
        ours, bare = await against_bare_loop(harness, settings, options, 1, HOT_CONNECTIONS)
        books = await audit(harness)
    name = f"submit of one user, {HOT_CONNECTIONS} connections"
    return row_of_rates(name, f"{BARE} on one account row", ours, bare, at_least=2.0, audit=books)


async def two_processes(options: argparse.Namespace) -> Row:
    """Each process has the same number of connections."""
    async with open_users(options.users) as (harness, settings), AsyncExitStack() as stack:
        works, requests = [], submits(settings, range(1, options.users + 1))
        for _ in range(2):
            pid, port = await stack.enter_async_context(harness.api())
            callers = await stack.enter_async_context(call(harness, port, options.connections, requests))
            works.append(on_cpu_of(callers, pid))
        busy: list[float] = []

        async def both(seconds: float) -> Slice:
            before, began = core_seconds(), time.perf_counter()
            done = await together(*works)(seconds)
            busy.append((core_seconds() - before) / (time.perf_counter() - began))
            return done

        two, one = await in_turns(options.pairs, options.seconds, both, works[0])
        books = await audit(harness)
    row = row_of_rates("submits of two API processes", "one API process", two, one, at_least=1.6, audit=books)
    row.notes.append(f"with two, {median(busy):.1f} of {os.cpu_count()} cores were busy")
    return row


async def against_bare_loop(
    harness: Harness, settings: Settings, options: argparse.Namespace, users: int, connections: int
) -> tuple[list[Slice], list[Slice]]:
    """Slices of one API process with users from 1 on, and of the bare loop with the users after them."""
    requests = submits(settings, range(1, users + 1))
    async with (
        harness.api() as (pid, port),
        call(harness, port, connections, requests) as callers,
        drive(harness, "bench.limits.submit", str(connections), str(users)) as loop,
    ):
        ours, bare = await in_turns(options.pairs, options.seconds, on_cpu_of(callers, pid), loop.run)
    return ours, bare


def submits(settings: Settings, users: Sequence[int]) -> list[str]:
    return [request("POST", SUBMIT, sign_token(settings, user_id), BODY) for user_id in users]


@asynccontextmanager
async def open_users(number: int) -> AsyncIterator[tuple[Harness, Settings]]:
    """A harness with users 1 to `number`, who have points that never expire."""
    async with open_harness(**UNLIMITED) as harness:
        settings = Settings(_env_file=None, database_url=harness.database_url)
        database, busy = open_database(settings), asyncio.Semaphore(16)
        try:
            await asyncio.gather(*(_make_user(database, busy, user_id) for user_id in range(1, number + 1)))
        finally:
            await database.close()
        yield harness, settings


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
            total, kinds = counted.per(COUNTED)
    return f"{total:.2f} ({kinds})"


async def _submit(caller: aiohttp.ClientSession, times: int) -> None:
    for _ in range(times):
        async with caller.post(SUBMIT, data=BODY) as answer:
            if answer.status != 200:
                raise SystemExit(f"the benchmark's submit failed: {await answer.text()}")


def arguments(made: argparse.ArgumentParser) -> None:
    made.add_argument("--users", type=int, default=1000)
    made.add_argument("--connections", type=int, default=32)


if __name__ == "__main__":
    _parser = parser(__doc__)
    arguments(_parser)
    run_alone(rows, _parser.parse_args())
