"""The sandbox's clock: monotonic inside, so that a test which moves the wall clock moves nothing here."""

import time

_UNIX_AT_ZERO_SECONDS = time.time() - time.monotonic()


def now() -> float:
    """Seconds on the monotonic clock; every time kept in the sandbox is one of these."""
    return time.monotonic()


def to_unix(monotonic_seconds: float) -> float:
    """The same time as Unix seconds, as URLs and the request log show it."""
    return _UNIX_AT_ZERO_SECONDS + monotonic_seconds
