"""How background tasks run and end."""

import asyncio
from collections.abc import Coroutine
from typing import Any


async def cancel_and_wait(*tasks: "asyncio.Task[Any]") -> None:
    """Cancels the tasks, repeatedly, until they end: a library with its own timeout may swallow a cancellation."""
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=1)


async def run_until_first_ends(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Runs the coroutines until one of them ends, cancels the others, and raises the first error."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await cancel_and_wait(*tasks)
    for task in tasks:
        if not task.cancelled():
            task.result()
