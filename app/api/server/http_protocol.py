"""HTTP/1.1 with a bound in bytes and in time for every phase of a connection.

Uvicorn's protocol alone bounds nothing that a client sends: it keeps headers of any size and number, waits for ever for
the rest of a request, reads a body for ever after its response, and queues any number of pipelined requests.
"""

import asyncio
import math
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from app.api.server.open_connections import CONNECTIONS
from app.api.server.refusals import Reason, new_request_id, record_refusal, refusal_bytes
from app.errors import GatewayError, HeadersTooLarge, InvalidParameter, PayloadTooLarge, RequestTimeout, Unavailable
from app.files.uploads import MAX_UPLOAD_BYTES

MAX_LINE_BYTES = 8_000  # the request line or one header; the WebSocket library takes 8,192
MAX_HEADERS = 100
MAX_HEAD_BYTES = 32_768  # the request line and all headers
MAX_BODY_BYTES = MAX_UPLOAD_BYTES + 10_000_000  # what a route accepts is less; the rest is read and dropped
MAX_PIPELINED = 16

HEAD_SECONDS = 10.0  # from the connection to the first byte, and from there to the end of the head
BODY_SECONDS = 30.0  # for a body, and one second more for each MIN_RATE of its bytes
UNREAD_SECONDS = 30.0  # the same for a client that reads
LATE_BODY_SECONDS = 30.0  # for the rest of a body whose response is complete, so that its sender gets to read that
MIN_RATE = 8_000  # bytes in a second
CHECK_SECONDS = 1.0

NOT_HTTP = InvalidParameter("请求", "不是有效的 HTTP 请求")


class _OutOfBoundsError(Exception):
    """Raised in a callback of the parser, which stops then."""

    def __init__(self, reason: Reason, error: GatewayError) -> None:
        self.reason, self.error = reason, error
        super().__init__(reason)


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection. A request that breaks a bound gets 400, 408, 413 or 431 in the envelope, then it is closed.

    The connection is closed without a response where another response is on its way.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._is_first = True  # no request has begun on this connection
        self._in_head = False
        self._in_body = False
        self._head_bytes = 0
        self._body_bytes = 0
        self._idle_bytes = 0  # since the last byte of a body or the end of a head
        self._has_advanced = False
        self._deadline = math.inf  # of what the client owes now
        self._read_deadline = math.inf  # of what the client has to read
        self._timer: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------------ the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._timer = self.loop.call_later(CHECK_SECONDS, self._check)
        if CONNECTIONS.add(self, transport.get_extra_info("socket").fileno()):
            self._await(HEAD_SECONDS)
        else:
            self._refuse(Reason.FULL, Unavailable())

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._read_deadline = self._time_to_read()
        CONNECTIONS.begin_wait(self)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._read_deadline = math.inf
        if self._is_answering and not self._in_body:
            CONNECTIONS.end_wait(self)

    def replace(self) -> None:
        record_refusal(Reason.REPLACED, self.client)
        self.transport.abort()

    # ------------------------------------------------------------------ bytes

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        for start in range(0, len(data), MAX_HEAD_BYTES):
            self._feed(data[start : start + MAX_HEAD_BYTES])
            if self.transport.is_closing() or self.transport.get_protocol() is not self:
                return

    def _feed(self, piece: bytes) -> None:
        self._has_advanced = False
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
            return  # any other upgrade is ignored, as RFC 9110 allows
        except httptools.HttpParserError as error:
            cause = error.__context__
            if isinstance(cause, _OutOfBoundsError):
                self._refuse(cause.reason, cause.error)
            else:
                self._refuse(Reason.MALFORMED, NOT_HTTP)
            return
        self._idle_bytes = 0 if self._has_advanced else self._idle_bytes + len(piece)
        if self._idle_bytes > MAX_HEAD_BYTES:
            if self._in_body:  # chunk extensions or trailers
                self._refuse(Reason.BODY_TOO_LARGE, PayloadTooLarge())
            else:
                self._refuse(Reason.HEAD_TOO_LARGE, HeadersTooLarge())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_first, self._in_head, self._head_bytes = False, True, 0
        self._await(HEAD_SECONDS)

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count_head(len(url), line_bytes=len(self.url))

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:
            return  # a trailer: nobody reads it
        line_bytes = len(name) + len(value)
        self._count_head(line_bytes, line_bytes=line_bytes)
        if len(self.headers) >= MAX_HEADERS:
            raise _OutOfBoundsError(Reason.HEAD_TOO_LARGE, HeadersTooLarge())
        super().on_header(name, value)

    def _count_head(self, size: int, *, line_bytes: int) -> None:
        self._head_bytes += size
        if line_bytes > MAX_LINE_BYTES or self._head_bytes > MAX_HEAD_BYTES:
            raise _OutOfBoundsError(Reason.HEAD_TOO_LARGE, HeadersTooLarge())

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._has_advanced = True
        self._in_head, self._in_body, self._body_bytes = False, True, 0
        self._await(BODY_SECONDS)
        if len(self.pipeline) > MAX_PIPELINED:
            raise _OutOfBoundsError(Reason.TOO_MANY_PIPELINED, NOT_HTTP)

    def on_body(self, body: bytes) -> None:
        self._has_advanced = True
        self._body_bytes += len(body)
        if self._body_bytes > MAX_BODY_BYTES:
            raise _OutOfBoundsError(Reason.BODY_TOO_LARGE, PayloadTooLarge())
        if not self.cycle.response_complete:
            self._await(self._deadline - self.loop.time() + len(body) / MIN_RATE)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._has_advanced = True
        self._in_body = False
        super().on_message_complete()
        if self._is_answering:
            self._await(math.inf)
        else:
            self._await(self.timeout_keep_alive)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self._in_body:
            self._await(min(self._deadline - self.loop.time(), LATE_BODY_SECONDS))
        elif not self._is_answering:
            self._await(HEAD_SECONDS if self._in_head else self.timeout_keep_alive)

    # ------------------------------------------------------------------ time

    @property
    def _is_answering(self) -> bool:
        """Whether the application works on the newest request."""
        return self.cycle is not None and not self.cycle.response_complete

    def _await(self, seconds: float) -> None:
        """The client owes something within `seconds`; nothing where that is infinite."""
        self._deadline = self.loop.time() + seconds
        if seconds == math.inf:
            CONNECTIONS.end_wait(self)
        else:
            CONNECTIONS.begin_wait(self)

    def _time_to_read(self) -> float:
        return self.loop.time() + UNREAD_SECONDS + self.transport.get_write_buffer_size() / MIN_RATE

    def _check(self) -> None:
        """Runs every second. One timer for each connection costs less than one for each phase of each request."""
        self._timer = self.loop.call_later(CHECK_SECONDS, self._check)
        now = self.loop.time()
        if self.transport.is_closing() and self._read_deadline == math.inf:
            self._read_deadline = self._time_to_read()
        if now >= self._read_deadline:
            record_refusal(Reason.NOT_READ, self.client)
            self.transport.abort()
        elif self._in_body and self._is_answering and (self.flow.read_paused or self.cycle.waiting_for_100_continue):
            self._deadline = max(self._deadline, now + BODY_SECONDS)  # the application does not read yet
        elif now >= self._deadline and not self.transport.is_closing():
            self._end_late_request()

    def _end_late_request(self) -> None:
        if self._in_body:
            self._refuse(Reason.BODY_TOO_SLOW, RequestTimeout())
        elif self._is_answering:
            return  # the next request waits for the response to this one
        elif self._in_head:
            self._refuse(Reason.HEAD_TOO_SLOW, RequestTimeout())
        elif self._is_first:
            self._refuse(Reason.SILENT, None)
        else:
            self.transport.close()  # an idle connection

    # ------------------------------------------------------------------ the end

    def _refuse(self, reason: Reason, error: GatewayError | None) -> None:
        """Ends the connection, with a response where that cannot be taken for the response to another request."""
        request_id = new_request_id()
        record_refusal(reason, self.client, request_id)
        is_next = not self.pipeline and not self.cycle.response_started if self._in_body else not self._is_answering
        if error is not None and is_next:
            self.transport.write(refusal_bytes(error, request_id))
        CONNECTIONS.discard(self)
        if self.cycle is not None:
            self.cycle.disconnected = True  # what the application sends from now on is dropped
            self.cycle.message_event.set()
        self.transport.close()

    def _stop(self) -> None:
        CONNECTIONS.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    def _unsupported_upgrade_warning(self) -> None: ...

    def handle_websocket_upgrade(self) -> None:
        """Hands over a head that the WebSocket library accepts. On any other it raises, or waits without an end."""
        names = {name for name, _ in self.headers}
        if self.scope["method"] != "GET" or not self.url.isascii() or names & {b"content-length", b"transfer-encoding"}:
            self._refuse(Reason.MALFORMED, NOT_HTTP)
            return
        self._stop()
        super().handle_websocket_upgrade()
