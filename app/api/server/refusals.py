"""What the server leaves behind when it ends a connection by itself: a log line, a count and an error response."""

import asyncio
import errno
import secrets
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import structlog
from starlette.requests import Request
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from app.api.errors import error_response
from app.errors import GatewayError
from app.telemetry import metrics

log = structlog.get_logger()

WINDOW_SECONDS = 10.0
MAX_LINES = 10  # of one reason in a window, so that nobody can flood the logs


class Reason(StrEnum):
    """Why the server ended a connection."""

    SILENT = "silent"
    """The client connected and sent no request in time."""

    HEAD_TOO_LARGE = "head_too_large"
    """The request line or the headers are too long, or too many."""

    HEAD_TOO_SLOW = "head_too_slow"
    """The request line and the headers did not arrive in time."""

    BODY_TOO_LARGE = "body_too_large"
    """The body, or what stands between its chunks, is larger than any request needs."""

    BODY_TOO_SLOW = "body_too_slow"
    """The body arrived too slowly, or for too long after its response."""

    MALFORMED = "malformed"
    """The bytes are not HTTP, not a WebSocket handshake, or not a WebSocket message."""

    TOO_MANY_PIPELINED = "too_many_pipelined"
    """The client sent many requests without waiting for the responses."""

    TOO_MANY_FRAMES = "too_many_frames"
    """The client sent WebSocket frames in a flood."""

    NOT_READ = "not_read"
    """The client read too slowly."""

    REPLACED = "replaced"
    """The process has no more files. The connection that waited longest for its client made room for a new one."""

    FULL = "full"
    """The process has no more files, and every connection is in use. The new one got 503."""


@dataclass(slots=True)
class _Window:
    """The lines of one reason since `began`, and how many were left out."""

    began: float
    lines: int = 0
    left_out: int = 0


_windows: dict[Reason, _Window] = {}


def record_refusal(reason: Reason, client: tuple[str, int] | None, request_id: str | None = None) -> None:
    """Counts the end of a connection and logs it, with at most MAX_LINES in WINDOW_SECONDS for each reason.

    `more` of a line is how many lines were left out before it.
    """
    metrics.CONNECTIONS_REFUSED.labels(reason).inc()
    now = time.monotonic()
    window = _windows.setdefault(reason, _Window(now))
    if now - window.began >= WINDOW_SECONDS:
        window.began, window.lines = now, 0
    if window.lines >= MAX_LINES:
        window.left_out += 1
        return
    window.lines += 1
    fields = {"request_id": request_id} if request_id else {}
    log.warning("connection_refused", reason=str(reason), client=client and client[0], more=window.left_out, **fields)
    window.left_out = 0


def on_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The event loop's handler of errors. asyncio calls it many times in a second where `accept` finds no free file."""
    error = context.get("exception")
    if isinstance(error, OSError) and error.errno in {errno.EMFILE, errno.ENFILE}:
        record_refusal(Reason.FULL, None)
    else:
        loop.default_exception_handler(context)


def refusal_bytes(error: GatewayError, request_id: str) -> bytes:
    """A whole HTTP response with the error in the envelope, for a connection that is closed after it."""
    response = error_response(Request({"type": "http", "request_id": request_id}), error)
    response.headers.update({"X-Request-Id": request_id, "X-Content-Type-Options": "nosniff", "Connection": "close"})
    lines = b"".join(b"%s: %s\r\n" % pair for pair in response.raw_headers)
    return STATUS_LINE[error.status] + lines + b"\r\n" + bytes(response.body)


def new_request_id() -> str:
    return secrets.token_hex(8)
