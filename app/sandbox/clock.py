"""The sandbox's clock: monotonic inside, so that a test which moves the wall clock moves nothing here."""

import time

_WALL_AT_ZERO_SECONDS = time.time() - time.monotonic()


def now() -> float:
    """Seconds on the monotonic clock; every time kept in the sandbox is one of these."""
    return time.monotonic()


def as_wall(moment: float) -> float:
    """The same moment as Unix seconds: the face shown in URLs and in the journal."""
    return _WALL_AT_ZERO_SECONDS + moment
