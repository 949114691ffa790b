"""Stops a migration after a number of its statements, as the end of its process does."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, event

_CHANGES = re.compile(r"\s*(CREATE|ALTER|DROP|INSERT|UPDATE|DELETE)\b", re.IGNORECASE)


class Stopped(BaseException):
    """Passes by everything that handles errors."""


@contextmanager
def count_changes(then: Callable[[int], None] = lambda _number: None) -> Iterator[list[str]]:
    """The statements that have changed something. `then` is called after each of them with their number."""
    changes: list[str] = []

    def count(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if _CHANGES.match(statement):
            changes.append(statement)
            then(len(changes))

    event.listen(Engine, "after_cursor_execute", count)
    try:
        yield changes
    finally:
        event.remove(Engine, "after_cursor_execute", count)


@contextmanager
def stop_after(number: int) -> Iterator[None]:
    """Raises Stopped when this number of statements have changed something."""

    def stop(executed: int) -> None:
        if executed == number:
            raise Stopped

    with count_changes(stop):
        yield
