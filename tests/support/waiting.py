"""Waits for a condition, never for a fixed time."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

SECONDS = 60.0
"""The default timeout. A correct test never comes near it."""


async def until(what: str, poll: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """The first truthy result of `poll`, which may be async. AssertionError with `what` after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = poll()
        found = await found if asyncio.iscoroutine(found) else found
        if found:
            return found
        await asyncio.sleep(0.03)
    raise AssertionError(f"not within {seconds} s: {what}")


def wait_until(what: str, poll: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """The same without an event loop."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = poll()
        if found:
            return found
        time.sleep(0.03)
    raise AssertionError(f"not within {seconds} s: {what}")
