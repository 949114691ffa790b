"""The memory that one worker process needs with thousands of running tasks. Exit 1 if it is 300 MB or more.

    python -m bench.memory [--seconds 30] [--tasks 5000]

All tasks are due at the start, and SEE2AI always answers that they are running.
"""

import argparse
import asyncio

import aiohttp

from app.settings import Settings
from bench.harness import gateway, memory_kilobytes, open_harness
from bench.poll import polls, seeded_tasks, upstream, wait_for_first_poll
from bench.report import show
from tests.support.ports import free_port

MAX_MEGABYTES = 300


async def main() -> None:
    options = arguments()
    port = free_port()
    origin = f"http://127.0.0.1:{port}"
    async with open_harness(SEE2AI_BASE_URL=origin, SEE2AI_API_KEY="sk-bench") as harness, upstream(harness, port):
        settings = Settings(_env_file=None, database_url=harness.database_url)
        async with (
            seeded_tasks(settings, options.tasks) as seeded,
            aiohttp.ClientSession(origin) as counter,
            harness.process(gateway(), "worker") as worker,
        ):
            await seeded.make_due()
            await wait_for_first_poll(counter, 0)
            await asyncio.sleep(options.seconds)
            highest, poll_count, still_running = (
                memory_kilobytes(worker.pid, "VmHWM") / 1024,
                await polls(counter),
                await seeded.count_running(),
            )
        violations = await harness.violations()
    show(
        f"memory: one worker process, {options.tasks} running tasks for {options.seconds:.0f} s",
        {
            "highest resident": f"{highest:.0f} MB   (limit: {MAX_MEGABYTES})",
            "polls meanwhile": f"{poll_count}",
            "running at the end": f"{still_running}",
            "audit": "clean" if not violations else f"{len(violations)} violations: {violations[0]}",
        },
    )
    if violations or highest >= MAX_MEGABYTES or still_running != options.tasks:
        raise SystemExit(1)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--tasks", type=int, default=5000)
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main())
