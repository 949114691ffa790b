"""The type by which a step commits an intent before a call that costs money."""

from collections.abc import Awaitable, Callable

from app.engine.transitions import Advance

CommitIntent = Callable[[Advance], Awaitable[None]]
"""Commits at once. It raises LostLease where another worker has the task by now."""
