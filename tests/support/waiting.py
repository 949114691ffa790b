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
    end, pause = time.monotonic() + seconds, pauses()
    while True:
        found = poll()
        found = await found if asyncio.iscoroutine(found) else found
        if found:
            return found
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        await asyncio.sleep(next(pause))


def wait_until(what: str, poll: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """The same without an event loop."""
    end, pause = time.monotonic() + seconds, pauses()
    while not (found := poll()):
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(next(pause))
    return found
