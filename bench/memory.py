"""How much memory one worker process needs with thousands of running tasks. Exit 1 where it is 300 MB or more.

    python -m bench.memory [--seconds 30] [--tasks 5000]

All tasks are due at the start and keep running: SEE2AI goes on answering that they run.
"""

import argparse
import asyncio
from pathlib import Path

import aiohttp

from app.settings import Settings
from bench.harness import gateway, open_harness
from bench.poll import first_look, polls, seeded_tasks, upstream
from bench.report import show
from tests.support.ports import free_port

MOST_MEGABYTES = 300


async def main() -> None:
    asked = arguments()
    port = free_port()
    origin = f"http://127.0.0.1:{port}"
    async with open_harness(SEE2AI_BASE_URL=origin, SEE2AI_API_KEY="sk-bench") as harness, upstream(harness, port):
        settings = Settings(_env_file=None, database_url=harness.database_url)
        async with (
            seeded_tasks(settings, asked.tasks) as seeded,
            aiohttp.ClientSession(origin) as counter,
            harness.process(gateway(), "worker") as worker,
        ):
            await seeded.make_due()
            await first_look(counter, 0)
            await asyncio.sleep(asked.seconds)
            highest, looks, still_running = megabytes(worker.pid), await polls(counter), await seeded.count_running()
        violations = await harness.violations()
    show(
        f"memory: one worker process, {asked.tasks} running tasks for {asked.seconds:.0f} s",
        {
            "highest resident": f"{highest:.0f} MB   (limit: {MOST_MEGABYTES})",
            "looks meanwhile": f"{looks}",
            "running at the end": f"{still_running}",
            "audit": "clean" if not violations else f"{len(violations)} violations: {violations[0]}",
        },
    )
    if violations or highest >= MOST_MEGABYTES or still_running != asked.tasks:
        raise SystemExit(1)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--tasks", type=int, default=5000)
    return parser.parse_args()


def megabytes(pid: int) -> float:
    """The high-water mark of a process's resident memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("the worker has ended")


if __name__ == "__main__":
    asyncio.run(main())
