"""Ports of this machine for servers that tests start. Each xdist worker has its own range."""

import contextlib
import itertools
import random
import socket
import time

from tests.support.run import worker_number

FIRST, LAST = 20_000, 32_000
"""Below the ports that the kernel assigns by itself."""
RANGE = 1_000
_KEPT: list[socket.socket] = []
_offsets = itertools.count(random.SystemRandom().randrange(RANGE))


def free_port() -> int:
    """A port that stays free until it is used: each number is returned again only after all others."""
    begin = FIRST + worker_number() * RANGE % (LAST - FIRST)
    while True:
        port = begin + next(_offsets) % RANGE
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def dead_port() -> int:
    """A port where nothing listens until the end of the run, except a server of the test that knows the number.

    A port that was free only a short time ago may be in use again.
    """
    kept = socket.socket()
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # so that a server of the test can bind it, too
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
    """Waits until something listens there. TimeoutError if nothing does in time."""
    end = time.monotonic() + seconds
    while not is_listening(port):
        if time.monotonic() > end:
            raise TimeoutError(f"nothing listens on port {port} after {seconds} s")
        time.sleep(0.02)
