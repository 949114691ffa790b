"""Ports of this machine for servers that tests start. Each xdist worker has a range of its own."""

import contextlib
import itertools
import random
import socket
import time

from tests.support.run import worker_number

FIRST, LAST = 20_000, 32_000
"""Below those that the kernel deals out by itself."""
RANGE = 1_000
_KEPT: list[socket.socket] = []
_offsets = itertools.count(random.SystemRandom().randrange(RANGE))


def free_port() -> int:
    """A port that is still free when it is used: each number is given once in a while only."""
    begin = FIRST + worker_number() * RANGE % (LAST - FIRST)
    while True:
        port = begin + next(_offsets) % RANGE
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def dead_port() -> int:
    """A port where nobody listens, and nobody but a test that knows the number can begin to until the run is over.

    A port that was only free a while ago may be anybody's by the time it is used.
    """
    kept = socket.socket()
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # so that a server of the test's own may have it, too
    kept.bind(("127.0.0.1", 0))
    _KEPT.append(kept)
    return int(kept.getsockname()[1])


def is_listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def wait_for_port(port: int, seconds: float = 60.0) -> None:
    """Until somebody listens there; a TimeoutError where nobody does in time."""
    end = time.monotonic() + seconds
    while not is_listening(port):
        if time.monotonic() > end:
            raise TimeoutError(f"nothing listens on port {port} after {seconds} s")
        time.sleep(0.02)
