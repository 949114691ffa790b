"""Bounds how many long reports of admins run at once in this process, so that they leave connections to callers."""

from collections.abc import Iterator
from contextlib import contextmanager

from app.errors import RateLimited

MAX_AT_ONCE = 2


class ReportPlaces:
    """The places of reports that may read for a minute."""

    def __init__(self) -> None:
        self._taken = 0

    @contextmanager
    def take(self) -> Iterator[None]:
        """Takes one place while the block runs. Raises RateLimited."""
        if self._taken >= MAX_AT_ONCE:
            raise RateLimited("正在生成其他报表，请稍后再试", retry_after_seconds=5)
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1


PLACES = ReportPlaces()
