"""Uvicorn's options for the API. `gateway serve` and `gateway up` pass them; plain `uvicorn` gets them at the start."""

from typing import Any

import structlog
from starlette.types import Receive

from app.api.push.websocket import MAX_MESSAGE_BYTES
from app.api.server.http_protocol import BoundedHttpProtocol
from app.api.server.websocket_protocol import BoundedWebSocketProtocol
from app.runtime import max_backlog

log = structlog.get_logger()

LIMITS: dict[str, Any] = {
    "ws_ping_interval": 30.0,
    "ws_ping_timeout": 20.0,
    "ws_max_size": MAX_MESSAGE_BYTES,
    "ws_per_message_deflate": False,  # compression needs memory for each connection, and messages are small
}
OPTIONS: dict[str, Any] = LIMITS | {
    "http": BoundedHttpProtocol,
    "ws": BoundedWebSocketProtocol,
    "access_log": False,
    "log_config": None,
    "server_header": False,
    "proxy_headers": False,  # TRUSTED_PROXIES says whose X-Forwarded-For counts
}
ATTRIBUTES = LIMITS | {"http_protocol_class": BoundedHttpProtocol, "ws_protocol_class": BoundedWebSocketProtocol}
"""What uvicorn's Config makes of the options that bound connections. It reads them again for each connection."""


def limit_server(receive: Receive) -> None:
    """Gives a server that was started without them the options that bound connections, before it listens.

    `uvicorn app.main:create_app` has read its options when it imports the application. `receive` is that of the
    lifespan: a method of uvicorn's LifespanOn, which holds the server's Config.
    """
    config = getattr(getattr(receive, "__self__", None), "config", None)
    if hasattr(config, "http_protocol_class"):
        vars(config).update(ATTRIBUTES, backlog=max_backlog())
    else:
        log.warning("server_without_limits")
