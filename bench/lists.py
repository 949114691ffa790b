"""Page 1 and page 1,000 of the list of a user with 100,000 tasks, beside page 1 of a user with 100.

    python -m bench.lists [--seconds 3] [--pairs 6] [--rows 2000000] [--seed-seconds 120]

One caller sends one request after the other. A figure is the median of its times. All tasks are in one table; its
writing stops after `--seed-seconds`, and the row says how many there were.
"""

import argparse
from contextlib import AsyncExitStack

from app.accounts.credentials import sign_token
from app.database import open_database
from bench.callers import call, request
from bench.paired_runs import Slice, cpu_milliseconds, in_turns, on_cpu_of, percentile
from bench.seed_lists import write_history
from bench.submit import open_users
from bench.table import Row, parser, run_alone

MANY, FEW = 100_000, 100
SIZE, DEEP = 10, 1000
LIMIT = f"page 1 of a user with {FEW} tasks"


async def rows(options: argparse.Namespace) -> list[Row]:
    async with open_users(2) as (harness, settings):
        database = open_database(settings)
        seeded = await write_history(database, options.rows, MANY, FEW, options.seed_seconds)
        await database.close()
        deep = min(DEEP, seeded.many // SIZE)
        pages = [(2, 1), (1, 1), (1, deep)]
        async with harness.api() as (pid, port), AsyncExitStack() as stack:
            works = []
            for user_id, page in pages:
                path = f"/user/ai/tasks/list?size={SIZE}&page={page}"
                requests = [request("GET", path, sign_token(settings, user_id))]
                works.append(on_cpu_of(await stack.enter_async_context(call(harness, port, 1, requests)), pid))
            few, first, last = await in_turns(options.pairs, options.seconds, *works)
    note = f"one caller; user with {seeded.many:,} tasks among {seeded.rows:,}"
    return [
        Row(
            f"list, page {page:,} of a user with {seeded.many:,} tasks",
            LIMIT,
            "ms",
            medians(slices),
            medians(few),
            at_most=3,
            cpu=(cpu_milliseconds(slices), cpu_milliseconds(few)),
            notes=[note],
        )
        for page, slices in ((1, first), (deep, last))
    ]


def medians(slices: list[Slice]) -> list[float]:
    return [percentile(one.latencies, 0.5) for one in slices]


def arguments(made: argparse.ArgumentParser) -> None:
    made.add_argument("--rows", type=int, default=2_000_000, help="of the table of tasks")
    made.add_argument("--seed-seconds", type=float, default=120, help="after this no more rows are written")


if __name__ == "__main__":
    _parser = parser(__doc__)
    arguments(_parser)
    run_alone(rows, _parser.parse_args())
