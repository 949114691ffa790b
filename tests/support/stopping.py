"""Stops a migration after a number of its statements."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, event

_CHANGES = re.compile(r"\s*(CREATE|ALTER|DROP|INSERT|UPDATE|DELETE)\b", re.IGNORECASE)


class Stopped(BaseException):
    """Derives from BaseException, so no error handler catches it."""


@contextmanager
def count_changes(then: Callable[[int], None] = lambda _number: None) -> Iterator[list[str]]:
    """Yields the list of statements that change the database. Calls `then` with their number after each of them."""
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
    """Raises Stopped after this number of statements that change the database."""

    def stop(executed: int) -> None:
        if executed == number:
            raise Stopped

    with count_changes(stop):
        yield
