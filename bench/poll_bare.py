"""The baseline of a poll of SEE2AI: the same GETs in a bare aiohttp loop.

python -m bench.poll_bare ORIGIN TASKS CONCURRENCY < seconds
"""

import asyncio
import sys
import time
from itertools import cycle

import aiohttp

from app.upstreams.see2ai.actions import ACTIONS
from bench.paired_runs import Slice, obey

ACTION = "see2ai_image_generation_fast_v1"
HEADERS = {"Authorization": "Bearer sk-bench", "Accept": "application/json", "Accept-Encoding": "identity"}


async def poll_for(seconds: float, urls: "cycle[str]", concurrency: int) -> Slice:
    tally, began = Slice(), time.perf_counter()
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar(), headers=HEADERS
    ) as client:
        await asyncio.gather(*(_poll_until(began + seconds, client, urls, tally) for _ in range(concurrency)))
    tally.seconds = time.perf_counter() - began
    return tally


async def _poll_until(until: float, client: aiohttp.ClientSession, urls: "cycle[str]", tally: Slice) -> None:
    while time.perf_counter() < until:
        async with client.get(next(urls)) as response:
            body = await response.read()
        if response.status != 200:
            tally.fault = body[:500].decode(errors="replace")
            return
        tally.done += 1


def main() -> None:
    origin, tasks, concurrency = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    path = ACTIONS[ACTION].status_path
    urls = cycle([origin + path.format(task_id=f"bench-{place:08d}") for place in range(tasks)])
    obey(lambda seconds: poll_for(seconds, urls, concurrency))


if __name__ == "__main__":
    main()
