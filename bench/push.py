"""The time from the commit of a task's end to its message on a WebSocket, and that of a bare hop in the same run.

    python -m bench.push [--ends 200] [--pairs 6] [--streams 1]

This process ends the tasks with the worker's own code. The API is a separate process. The bare hop is a process that
forwards what Redis publishes to WebSockets and reads no database. Both are timed from and to this process.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from redis.asyncio import Redis
from websockets.asyncio.client import ClientConnection, connect

from app.accounts.credentials import sign_token
from app.engine.claim import TaskFilter, claim_due
from app.engine.finish import finish_task
from app.engine.state import ClaimedTask
from app.engine.transitions import Complete
from app.runtime import Runtime, open_runtime
from app.settings import Settings
from app.telemetry.logs import configure_logs
from bench.harness import Harness, open_harness, wait_for_port
from bench.limits.push import CHANNEL
from bench.paired_runs import percentile
from bench.seed_tasks import SeededTasks
from bench.table import Row, audit, parser, run_alone
from tests.support.ports import free_port

USER = 1  # the first user of an empty database
PAUSE_SECONDS = 0.01  # between two ends
PATIENCE = 30
LIMIT = "a process that forwards what Redis publishes to a WebSocket"
RESULT = {"key": "results/bench.jpg", "type": "image/jpeg", "width": 1024, "height": 1024, "bytes": 100_000}

Make = Callable[[], Awaitable[tuple[str, float]]]
"""Makes one message: its name on the wire, and the time when it was made."""


async def rows(options: argparse.Namespace) -> list[Row]:
    async with open_harness() as harness:
        reach = {"database_url": harness.database_url, "redis_url": harness.environment["REDIS_URL"]}
        settings = Settings(_env_file=None, log_level="WARNING", **reach)
        configure_logs(settings)
        seeded = SeededTasks(settings, (options.ends + 1) * options.pairs)
        await seeded.create()
        await seeded.make_due()
        async with open_runtime(settings) as runtime, harness.api() as (_, port), bare_hop(harness) as bare_port:
            ours, bare = await measure(runtime, port, bare_port, options)
        await seeded.close()
        books = await audit(harness)
    medians = [[percentile(one, 0.5) for one in slices] for slices in (ours, bare)]
    row = Row("end's commit to its WebSocket message, p50", LIMIT, "ms", *medians, at_most=3, audit=books)
    row.notes += [f"{len(ours) * options.ends} ends, {options.streams} stream(s): {distribution(ours)}"]
    row.notes += [f"the bare hop: {distribution(bare)}"]
    return [row]


@asynccontextmanager
async def bare_hop(harness: Harness) -> AsyncIterator[int]:
    port = free_port()
    async with harness.process(sys.executable, "-m", "bench.limits.push", str(port)):
        await wait_for_port(port)
        yield port


async def measure(
    runtime: Runtime, port: int, bare_port: int, options: argparse.Namespace
) -> tuple[list[list[float]], list[list[float]]]:
    """Milliseconds of each slice of the gateway and of the bare hop, which run in turns."""
    token = sign_token(runtime.settings, USER)
    claimed: list[ClaimedTask] = []

    async def end_a_task() -> tuple[str, float]:
        if not claimed:
            claimed.extend(await claim_due(runtime.database, TaskFilter(("poll",)), 100, 600))
        task = claimed.pop()
        assert await finish_task(runtime, task, Complete([RESULT]), [])
        committed = time.perf_counter()
        runtime.pubsub.publish(task.user_id, task.task_no)
        return task.task_no, committed

    redis: Redis = Redis.from_url(runtime.settings.redis_url)

    async def publish() -> tuple[str, float]:
        now = time.perf_counter()
        await redis.publish(CHANNEL, json.dumps({"type": "task", "data": {"taskNo": str(now), "status": "completed"}}))
        return str(now), now

    ours, bare = [], []
    async with AsyncExitStack() as stack:
        streams = [
            await opened(stack, f"ws://127.0.0.1:{port}/user/ai/tasks/ws", token) for _ in range(options.streams)
        ]
        hops = [await opened(stack, f"ws://127.0.0.1:{bare_port}") for _ in range(options.streams)]
        stack.push_async_callback(redis.aclose)
        for _ in range(options.pairs):
            ours.append(await one_slice(streams, end_a_task, options.ends))
            bare.append(await one_slice(hops, publish, options.ends))
    return ours, bare


async def opened(stack: AsyncExitStack, url: str, token: str = "") -> ClientConnection:
    socket = await stack.enter_async_context(connect(url, compression=None, proxy=None))
    if token:
        await socket.send(json.dumps({"type": "auth", "token": token}))
        await socket.recv()
    return socket


async def one_slice(streams: list[ClientConnection], make: Make, number: int) -> list[float]:
    made: dict[str, float] = {}
    received: list[tuple[str, float]] = []

    async def listen(stream: ClientConnection) -> None:
        left = number
        while left:
            text = await stream.recv()
            now = time.perf_counter()
            message = json.loads(text)
            if message["type"] == "task" and message["data"]["status"] == "completed":
                received.append((message["data"]["taskNo"], now))
                left -= 1

    listening = asyncio.gather(*(listen(stream) for stream in streams))
    for _ in range(number):
        name, at = await make()
        made[name] = at
        await asyncio.sleep(PAUSE_SECONDS)
    await asyncio.wait_for(listening, PATIENCE)
    return [(now - made[name]) * 1000 for name, now in received]


def distribution(slices: list[list[float]]) -> str:
    times = [time for one in slices for time in one]
    return ", ".join(f"p{share} {percentile(times, share / 100):.1f} ms" for share in (50, 95, 99))


def arguments(made: argparse.ArgumentParser) -> None:
    made.add_argument("--ends", type=int, default=200, help="of one slice")
    made.add_argument("--streams", type=int, default=1, help="of the one user whose tasks end")


if __name__ == "__main__":
    _parser = parser(__doc__)
    arguments(_parser)
    run_alone(rows, _parser.parse_args())
