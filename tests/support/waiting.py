"""Waits for a condition, never for a fixed time."""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

SECONDS = 60.0
"""The default timeout. A correct test never comes near it."""


def pauses() -> Iterator[float]:
    """Seconds between two looks, without end: short at first, then longer, so that long waits cost little."""
    seconds = 0.02
    while True:
        yield seconds
        seconds = min(seconds * 1.2, 0.2)


async def until(what: str, poll: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """The first truthy result of `poll`, which may be async. AssertionError with `what` after `seconds`."""
    end = time.monotonic() + seconds
    for pause in pauses():
        found = poll()
        found = await found if asyncio.iscoroutine(found) else found
        if found:
            return found
        if time.monotonic() > end:
            break
        await asyncio.sleep(pause)
    raise AssertionError(f"not within {seconds} s: {what}")


def wait_until(what: str, poll: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """The same without an event loop."""
    end = time.monotonic() + seconds
    for pause in pauses():
        found = poll()
        if found:
            return found
        if time.monotonic() > end:
            break
        time.sleep(pause)
    raise AssertionError(f"not within {seconds} s: {what}")
