"""What wraps every request: its id, and headers that hold on every answer. Plain ASGI: it is on the hot path."""

import re
import secrets
from typing import Any

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_USABLE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestId:
    """`X-Request-Id` on every answer: the caller's own where it is usable, else a new one; also in every log line."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _asked_id(scope["headers"]) or secrets.token_hex(8)
        scope["request_id"] = request_id
        added = [(b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff")]

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *added]
            await send(message)

        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        await self.app(scope, receive, send_with_headers)


def _asked_id(headers: Any) -> str | None:
    for name, value in headers:
        if name == b"x-request-id":
            text = str(value.decode("latin-1"))
            return text if _USABLE_ID.fullmatch(text) else None
    return None
