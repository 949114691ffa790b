"""Waits for what a test judges, never for a time."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

SECONDS = 60.0
"""A wait is given up then; a test that is right never comes near it."""


async def until(what: str, poll: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """The first truthy answer of `poll`, which may be a coroutine function; AssertionError with `what` in vain."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = poll()
        found = await found if asyncio.iscoroutine(found) else found
        if found:
            return found
        await asyncio.sleep(0.03)
    raise AssertionError(f"not within {seconds} s: {what}")


def wait_until(what: str, poll: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """The same where no event loop runs."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = poll()
        if found:
            return found
        time.sleep(0.03)
    raise AssertionError(f"not within {seconds} s: {what}")
