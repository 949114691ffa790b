"""The time from the end of a job at SEE2AI to the message on a WebSocket, beyond the wait for the next poll.

    python -m bench.poll_end [--jobs 100]

The jobs are old enough for the longest pause between polls. The row says when the next poll is due; then the job ends,
and the time counts from that poll's due time. So a late poll counts. The download counts, too: the picture comes from
this machine, and takes a few milliseconds.
"""

import argparse
import asyncio
import json
import time
from contextlib import AsyncExitStack

import aiohttp
from websockets.asyncio.client import ClientConnection

from app.accounts.credentials import sign_token
from app.engine.transitions import MAX_POLL_SECONDS
from app.settings import Settings
from bench.harness import gateway, open_harness
from bench.paired_runs import percentile
from bench.poll import seeded_tasks, upstream, wait_for_first_poll
from bench.push import PATIENCE, USER, distribution, opened
from bench.seed_tasks import SeededTasks
from bench.table import Row, audit, parser, run_alone
from tests.support.ports import free_port

PAUSE_SECONDS = 0.25  # between two ends
MARGIN_SECONDS = 0.05  # a job ends at least so long before its poll
MAX_MILLISECONDS = 100


async def rows(options: argparse.Namespace) -> list[Row]:
    port, number = free_port(), options.jobs
    origin = f"http://127.0.0.1:{port}"
    reach = {"SEE2AI_BASE_URL": origin, "SEE2AI_API_KEY": "sk-bench", "EGRESS_ALLOW": f"127.0.0.1:{port}"}
    async with open_harness(**reach) as harness, upstream(harness, port):
        settings = Settings(_env_file=None, database_url=harness.database_url)
        async with (
            seeded_tasks(settings, number) as seeded,
            aiohttp.ClientSession(origin) as jobs,
            harness.process(gateway(), "worker"),
            harness.api() as (_, api_port),
            AsyncExitStack() as stack,
        ):
            url = f"ws://127.0.0.1:{api_port}/user/ai/tasks/ws"
            stream = await opened(stack, url, sign_token(settings, USER))
            await seeded.spread_due(MAX_POLL_SECONDS)
            await wait_for_first_poll(jobs, 0)
            await asyncio.sleep(MAX_POLL_SECONDS)
            times = await measure(seeded, jobs, stream)
        books = await audit(harness)
    name, limit = "job's end to its WebSocket message, p50 beyond the wait for the poll", "the goal: 100 ms"
    row = Row(name, limit, "ms", [percentile(times, 0.5)], [MAX_MILLISECONDS], at_most=1, audit=books)
    row.notes += [f"{number} jobs, one every {PAUSE_SECONDS} s: {distribution([times])}, with the download"]
    return [row]


async def measure(seeded: SeededTasks, jobs: aiohttp.ClientSession, stream: ClientConnection) -> list[float]:
    """Milliseconds of each job from the due time of its last poll to the message."""
    sent = asyncio.create_task(completed(stream, len(seeded.ids)))
    due: dict[str, float] = {}
    for place, job in enumerate(seeded.ids, 1):
        due[f"BENCH-{place}"] = await end(seeded, jobs, job)
        await asyncio.sleep(PAUSE_SECONDS)
    came = await asyncio.wait_for(sent, PATIENCE)
    return [1000 * (came[task_no] - moment) for task_no, moment in due.items()]


async def end(seeded: SeededTasks, jobs: aiohttp.ClientSession, job: str) -> float:
    """Ends the job while it waits for its next poll. Returns when that poll is due."""
    while True:
        moment = (await seeded.due_times(job)).get(job, 0.0)
        if moment > time.time() + MARGIN_SECONDS:
            break
        await asyncio.sleep(MARGIN_SECONDS)
    async with jobs.get(f"/end/{job}"):
        pass
    if time.time() >= moment:
        raise SystemExit("the job ended after its poll was due: this machine is too busy for the measurement")
    return moment


async def completed(stream: ClientConnection, number: int) -> dict[str, float]:
    """When the message of each completed task came."""
    came: dict[str, float] = {}
    while len(came) < number:
        text = await stream.recv()
        now = time.time()
        message = json.loads(text)
        if message["type"] == "task" and message["data"]["status"] == "completed":
            came.setdefault(message["data"]["taskNo"], now)
        if message["type"] == "task" and message["data"]["status"] == "failed":
            raise SystemExit(f"a task failed: {message}")
    return came


def arguments(made: argparse.ArgumentParser) -> None:
    made.add_argument("--jobs", type=int, default=100, help="that end one after the other")


if __name__ == "__main__":
    _parser = parser(__doc__)
    arguments(_parser)
    run_alone(rows, _parser.parse_args())
