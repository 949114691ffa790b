"""Middleware for every request: its id, its path, the limits of what it sends and of what is sent, unexpected errors.

The classes are plain ASGI because they run on every request.
"""

import re
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import structlog
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.aio import counted
from app.api.access import user_of
from app.api.errors import error_response, on_unhandled
from app.errors import GatewayError, PayloadTooLarge, RateLimited, UnsupportedMedia

PIECE_BYTES = 65_536
"""A shorter answer is sent at once: the buffer of its connection holds it."""
MAX_UNREAD_BYTES = 32_000_000
"""Of one user in one process: two of the longest pages of tasks, or hundreds of usual ones."""
UNREAD = "未读取的响应过多，请读取后再试"
_VALID_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestId:
    """Sets `X-Request-Id` on every response and log line: the caller's own id where it is valid, else a new one."""

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


class MergedSlashes:
    """Reads repeated slashes of a path as one, because many callers join a base address and a path with two."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if b"//" in scope.get("raw_path", b""):  # an escaped slash (%2F) is part of a name
            scope["path"] = re.sub("/{2,}", "/", scope["path"])
        await self.app(scope, receive, send)


class BodySizeLimit:
    """Answers 413 when `Content-Length` is too large, or as soon as the received body is.

    `overrides` gives some paths their own limit and message. A compressed body is answered with 415, because its size
    is unknown. FastAPI's `max_body_size` cannot replace this class: it answers in plain text, outside all middleware.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, overrides: Mapping[str, tuple[int, str | None]]) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.overrides = overrides

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        max_bytes, message_text = self.overrides.get(scope["path"], (self.max_bytes, None))
        refusal = _refuse_unread(Headers(scope=scope), max_bytes, message_text)
        if refusal is not None:
            await error_response(Request(scope), refusal)(scope, receive, send)
            return
        received_bytes = 0

        async def receive_counted() -> Message:
            nonlocal received_bytes
            message = await receive()
            received_bytes += len(message.get("body", b""))
            if received_bytes > max_bytes:
                raise PayloadTooLarge(message_text)
            return message

        await self.app(scope, receive_counted, send)


class UnreadAnswers:
    """Bounds what this process holds of answers that one user has requested and has not read yet.

    A long answer is sent in pieces. The server takes a piece only when the caller has read most of the pieces before.
    So an answer is held here as long as it is not read. One that would exceed the bound is replaced by a 429.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._held: Counter[int] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start: Message | None = None
        is_refused = False

        async def send_in_pieces(message: Message) -> None:
            nonlocal start, is_refused
            if message["type"] == "http.response.start":
                start = message
                return
            user_id, size = user_of(scope), len(message.get("body", b""))
            if user_id is not None and size > PIECE_BYTES and not is_refused:
                held = self._held.get(user_id, 0)
                is_refused = held > 0 and held + size > MAX_UNREAD_BYTES
            if is_refused and start is not None:
                start = None
                await error_response(Request(scope), RateLimited(UNREAD, retry_after_seconds=2))(scope, receive, send)
            if is_refused:
                return
            if start is not None:
                begin, start = start, None
                await send(begin)
            if user_id is None or size <= PIECE_BYTES:
                await send(message)
                return
            with counted(self._held, user_id, size):
                for piece in _pieces(message):
                    await send(piece)

        await self.app(scope, receive, send_in_pieces)


class CatchAll:
    """Answers 500 for an unexpected error, inside the other middleware.

    Starlette's own handler runs outside them. Its response would lack the request id and the CORS headers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_started = scope["type"] != "http"

        async def send_recorded(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self.app(scope, receive, send_recorded)
        except Exception as error:
            if has_started:
                raise
            response = await on_unhandled(Request(scope), error)
            await response(scope, receive, send)


def _refuse_unread(headers: Headers, max_bytes: int, message_text: str | None) -> GatewayError | None:
    """The error that the headers of a request already show; None where its body may be read."""
    encoding = headers.get("content-encoding", "").strip()
    if encoding.lower() not in {"", "identity"}:
        return UnsupportedMedia(f"不支持 Content-Encoding: {encoding[:40]}，请发送未压缩的请求体")
    length = headers.get("content-length", "")
    is_too_long = length.isascii() and length.isdigit() and int(length[:19]) > max_bytes
    return PayloadTooLarge(message_text) if is_too_long else None


def _pieces(message: Message) -> Iterator[Message]:
    body, is_more = message["body"], message.get("more_body", False)
    for start in range(0, len(body), PIECE_BYTES):
        end = start + PIECE_BYTES
        yield {"type": message["type"], "body": body[start:end], "more_body": is_more or end < len(body)}


def _requested_id(headers: Any) -> str | None:
    for name, value in headers:
        if name == b"x-request-id":
            text = str(value.decode("latin-1"))
            return text if _VALID_ID.fullmatch(text) else None
    return None
