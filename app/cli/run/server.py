"""How the API listens: its socket and what uvicorn is told, alike for `serve` and `up`."""

import contextlib
import socket
from typing import Any

import uvicorn
from uvicorn.supervisors import Multiprocess

from app.api.push.websocket import MAX_MESSAGE_BYTES
from app.cli.output import fail

UNREAD_SECONDS = 60
BACKLOG = 2048
# Messages of callers are small and ours are soon out of date: nothing is gained by compressing them, at the price of a
# window of memory a connection.
OPTIONS: dict[str, Any] = {
    "access_log": False,
    "log_config": None,
    "server_header": False,
    "ws_ping_interval": 30.0,
    "ws_ping_timeout": 20.0,
    "ws_max_size": MAX_MESSAGE_BYTES,
    "ws_per_message_deflate": False,
}


def bind_socket(host: str, port: int, *, or_any: bool = False) -> socket.socket:
    """A bound socket, so that a taken port is said before anything else starts.

    Whoever takes nothing of what was sent to them for a minute is cut off by the kernel: uvicorn, told to close a
    connection, waits for ever for its last bytes to leave.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; connections inherit it
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_SECONDS * 1000)
    try:
        sock.bind((host, port))
    except OSError as error:
        if not or_any:
            fail(f"port {port} cannot be had ({error.strerror}): try PORT={port + 1}")
        sock.bind((host, 0))
    sock.listen(BACKLOG)
    return sock


def run_server(config: uvicorn.Config, sock: socket.socket) -> None:
    """As `uvicorn.run` does it, on a socket of ours."""
    with contextlib.suppress(KeyboardInterrupt):
        if config.workers > 1:
            Multiprocess(config, sockets=[sock]).run()
        else:
            uvicorn.Server(config).run(sockets=[sock])
