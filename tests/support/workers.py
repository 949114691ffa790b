"""Workers in the event loop of a test."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.engine.runner import TaskRunner
from app.runtime import Runtime

IDLE_SECONDS = 0.05


@asynccontextmanager
async def stepping(runtime: Runtime, number: int = 1) -> AsyncIterator[list[TaskRunner]]:
    """That many workers without wakeups and with a short poll interval. A test may add work before they start."""
    runners = [TaskRunner(runtime, idle_seconds=IDLE_SECONDS) for _ in range(number)]
    running = [asyncio.create_task(runner.run()) for runner in runners]
    try:
        yield runners
    finally:
        for runner in runners:
            runner.stop()
        await asyncio.gather(*running)
