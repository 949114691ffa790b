"""`gateway …` on a node whose DNS server never answers for some names, as after a firewall dropped its packets."""

import socket
import time
from typing import Any

from app.cli import main

HANGING = "hang.example"
"""Names under it are not answered."""
SECONDS = 30.0  # as long as a resolver tries several servers
_getaddrinfo = socket.getaddrinfo


def _hang(host: Any, *args: Any, **kwargs: Any) -> Any:
    if str(host).endswith(HANGING):
        time.sleep(SECONDS)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    return _getaddrinfo(host, *args, **kwargs)


if __name__ == "__main__":
    socket.getaddrinfo = _hang
    main()
