"""What wraps every request: its id and the headers of every answer, its body's limit, a net below all handlers.

Plain ASGI, because it is on the hot path.
"""

import re
import secrets
from collections.abc import Mapping
from typing import Any

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.errors import error_response, on_unhandled
from app.errors import PayloadTooLarge

_USABLE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestId:
    """`X-Request-Id` on every answer: the caller's own where it is usable, else a new one; also in every log line."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"}:
            await self.app(scope, receive, send)
            return
        request_id = _requested_id(scope["headers"]) or secrets.token_hex(8)
        scope["request_id"] = request_id
        added = [(b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff")]

        async def send_with_headers(message: Message) -> None:
            if message["type"] in {"http.response.start", "websocket.accept"}:
                message["headers"] = [*message.get("headers", ()), *added]
            await send(message)

        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        await self.app(scope, receive, send_with_headers)


class BodySizeLimit:
    """413 before a byte is parsed where `Content-Length` admits too much, else as soon as too much has come.

    `elsewhere`: paths with a limit and a text of their own. FastAPI's `max_body_size` answers in plain text, outside
    every middleware.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, elsewhere: Mapping[str, tuple[int, str]]) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.elsewhere = elsewhere

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        max_bytes, text = self.elsewhere.get(scope["path"], (self.max_bytes, None))
        if _content_length(scope["headers"]) > max_bytes:
            await error_response(Request(scope), PayloadTooLarge(text))(scope, receive, send)
            return
        come_bytes = 0

        async def receive_counted() -> Message:
            nonlocal come_bytes
            message = await receive()
            come_bytes += len(message.get("body", b""))
            if come_bytes > max_bytes:
                raise HTTPException(PayloadTooLarge.status)  # the only kind FastAPI lets through while it reads a body
            return message

        await self.app(scope, receive_counted, send)


class CatchAll:
    """What no handler foresaw becomes our 500 here, inside the other middlewares. Starlette's own net hangs outside
    of them: its answers have no request id, and no browser of another origin may read them.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = scope["type"] != "http"

        async def send_noted(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self.app(scope, receive, send_noted)
        except Exception as error:
            if has_begun:
                raise
            fallen = await on_unhandled(Request(scope), error)
            await fallen(scope, receive, send)


def _content_length(headers: Any) -> int:
    for name, value in headers:
        if name == b"content-length":
            return int(value[:19]) if value.isdigit() else 0
    return 0


def _requested_id(headers: Any) -> str | None:
    for name, value in headers:
        if name == b"x-request-id":
            text = str(value.decode("latin-1"))
            return text if _USABLE_ID.fullmatch(text) else None
    return None
