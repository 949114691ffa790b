"""The API's socket, the same for `serve` and `up`."""

import contextlib
import socket

import uvicorn
from uvicorn.supervisors import Multiprocess

from app.cli.output import fail
from app.runtime import max_backlog

UNREAD_SECONDS = 60


def bind_socket(host: str, port: int, *, or_any_port: bool = False) -> socket.socket:
    """A listening socket. It is bound first, so that a taken port fails before anything else starts.

    The kernel drops a client that acknowledges no data for a minute. Uvicorn would wait for ever for the last bytes
    to leave when it closes such a connection.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; connections inherit it
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_SECONDS * 1000)
    try:
        sock.bind((host, port))
    except OSError as error:
        if not or_any_port:
            fail(f"port {port} is not available ({error.strerror}): try PORT={port + 1}")
        sock.bind((host, 0))
    sock.listen(max_backlog())
    return sock


def run_server(config: uvicorn.Config, sock: socket.socket) -> None:
    """Does what `uvicorn.run` does, on an open socket."""
    with contextlib.suppress(KeyboardInterrupt):
        if config.workers > 1:
            Multiprocess(config, sockets=[sock]).run()
        else:
            uvicorn.Server(config).run(sockets=[sock])
