"""What surrounds every request: its id, its path, the bounds of what it sends and of what is sent, unexpected errors.

It is one class of plain ASGI, because each layer costs further calls for each message of each request.
"""

import re
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import structlog
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.aio import counted
from app.api.access.callers import first_headers, user_of
from app.api.errors import error_response, on_error
from app.errors import PayloadTooLarge, RateLimited, UnsupportedMedia

PIECE_BYTES = 65_536
"""A shorter answer is sent at once: the buffer of its connection holds it."""
MAX_UNREAD_BYTES = 32_000_000
"""Of one user in one process: two of the longest pages of tasks, or hundreds of usual ones."""
UNREAD = "未读取的响应过多，请读取后再试"
BodyLimit = tuple[int, str | None]
"""The most bytes of a body, and the message for a caller who sends more; None for the usual text."""
_VALID_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestMiddleware:
    """Sets `X-Request-Id` on every answer and log line, bounds the body, and answers every error.

    The id is the caller's own where it is valid, else a new one. Repeated slashes of a path are read as one, because
    many callers join a base address and a path with two. `body_limits` gives some paths their own limit, `cors` the
    options of Starlette's CORSMiddleware. That stands inside, so that its answers have an id, and around the errors,
    so that pages of other origins may read them.
    """

    def __init__(
        self, app: ASGIApp, body_limit: int, body_limits: Mapping[str, BodyLimit], cors: Mapping[str, Any] | None = None
    ) -> None:
        self._app = app
        self._handle: ASGIApp = self._answer if cors is None else CORSMiddleware(self._answer, **cors)
        self._body_limit: BodyLimit = (body_limit, None)
        self._body_limits = body_limits
        self._unread: Counter[int] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        request_id = _requested_id(first_headers(scope)) or secrets.token_hex(8)
        scope["request_id"] = request_id
        if b"//" in scope.get("raw_path", b""):  # an escaped slash (%2F) is part of a name
            scope["path"] = re.sub("/{2,}", "/", scope["path"])
        added = ((b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff"))

        async def send_with_headers(message: Message) -> None:
            if message["type"] in {"http.response.start", "websocket.accept"}:
                message["headers"] = [*message.get("headers", ()), *added]
            await send(message)

        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        await self._handle(scope, receive, send_with_headers)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._body_limits.get(scope["path"], self._body_limit)
        exchange = _Exchange(scope, receive, send, limit, self._unread)
        try:
            _refuse_unread(first_headers(scope), *limit)
            await self._app(scope, exchange.receive, exchange.send)
        except Exception as error:
            if exchange.is_started:
                raise
            response = await on_error(Request(scope), error)
            await response(scope, receive, send)


class _Exchange:
    """One request and its answer, with a bound on the bytes of both.

    A body is counted as it is read, because `Content-Length` may be missing or wrong. FastAPI's `max_body_size` cannot
    do this: it answers in plain text.

    A long answer is sent in pieces. The server takes a piece only when the caller has read most of the pieces before.
    So an answer is held as long as it is not read. One that would exceed the user's bound is replaced by a 429.
    """

    __slots__ = ("_is_refused", "_limit", "_receive", "_received", "_scope", "_send", "_start", "_unread", "is_started")

    def __init__(self, scope: Scope, receive: Receive, send: Send, limit: BodyLimit, unread: Counter[int]) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._limit, self._received = limit, 0
        self._unread = unread  # bytes that are held, of each user
        self._start: Message | None = None  # waits for the first bytes, which decide whether it is sent
        self._is_refused = False
        self.is_started = False

    async def receive(self) -> Message:
        message = await self._receive()
        self._received += len(message.get("body", b""))
        max_bytes, text = self._limit
        if self._received > max_bytes:
            raise PayloadTooLarge(text)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        size = len(message.get("body", b""))
        user_id = user_of(self._scope) if size > PIECE_BYTES else None
        if user_id is not None and not self._is_refused:
            held = self._unread.get(user_id, 0)
            self._is_refused = held > 0 and held + size > MAX_UNREAD_BYTES
        if self._is_refused:
            await self._refuse()
            return
        if self._start is not None:
            start, self._start, self.is_started = self._start, None, True
            await self._send(start)
        if user_id is None:
            await self._send(message)
            return
        with counted(self._unread, user_id, size):
            for piece in _pieces(message):
                await self._send(piece)

    async def _refuse(self) -> None:
        """Answers 429 once, unless an answer has begun. The refused answer's other messages are dropped."""
        if self._start is not None:
            self._start, self.is_started = None, True
            response = error_response(Request(self._scope), RateLimited(UNREAD, retry_after_seconds=2))
            await response(self._scope, self._receive, self._send)


def _refuse_unread(headers: Mapping[str, str], max_bytes: int, text: str | None) -> None:
    """Raises the error that the headers of a request already show. A compressed body has an unknown size."""
    encoding = headers.get("content-encoding", "").strip()
    if encoding.lower() not in {"", "identity"}:
        raise UnsupportedMedia(f"不支持 Content-Encoding: {encoding[:40]}，请发送未压缩的请求体")
    length = headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length[:19]) > max_bytes:
        raise PayloadTooLarge(text)


def _pieces(message: Message) -> Iterator[Message]:
    body, is_more = message["body"], message.get("more_body", False)
    for start in range(0, len(body), PIECE_BYTES):
        end = start + PIECE_BYTES
        yield {"type": message["type"], "body": body[start:end], "more_body": is_more or end < len(body)}


def _requested_id(headers: Mapping[str, str]) -> str | None:
    text = headers.get("x-request-id", "")
    return text if _VALID_ID.fullmatch(text) else None
