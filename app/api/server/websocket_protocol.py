"""WebSockets with bounds for what uvicorn does not bound: the handshake's time, and frames in a flood."""

import asyncio
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from app.api.server.open_connections import CONNECTIONS
from app.api.server.refusals import Reason, record_refusal

HANDSHAKE_SECONDS = 10.0
PIECE_BYTES = 4096  # parsed at once; a frame may have six bytes and takes 10 µs
MAX_FRAMES = 200  # in a second; a client needs one or two
MAX_UNREAD_BYTES = 1_000_000  # pongs that the client does not read pile up


class BoundedWebSocketProtocol(WebSocketsSansIOProtocol):
    """One WebSocket. Messages have the limit `ws_max_size`, and the application reads one at a time.

    Until the application has sent its first message, which answers the credential, the connection may be replaced.
    """

    _second = 0
    _frames = 0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        CONNECTIONS.add(self, 0)  # the connection itself is not new
        CONNECTIONS.begin_wait(self)
        self._timer = self.loop.call_later(HANDSHAKE_SECONDS, self._check_handshake)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        CONNECTIONS.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    def replace(self) -> None:
        self._end(Reason.REPLACED)

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), PIECE_BYTES):
            super().data_received(data[start : start + PIECE_BYTES])
            if self.transport.is_closing():
                return
        if self.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            self._end(Reason.NOT_READ)

    def handle_events(self) -> None:
        second = int(self.loop.time())
        if second != self._second:
            self._second, self._frames = second, 0
        self._frames += len(self.conn.events)
        if self._frames > MAX_FRAMES:
            self._end(Reason.TOO_MANY_FRAMES)
        else:
            super().handle_events()

    def handle_parser_exception(self) -> None:
        record_refusal(Reason.MALFORMED, self.client)
        super().handle_parser_exception()

    async def send(self, message: Any) -> None:
        if message["type"] == "websocket.send":
            CONNECTIONS.end_wait(self)
        await super().send(message)

    def _check_handshake(self) -> None:
        if not self.handshake_complete:
            self._end(Reason.MALFORMED)

    def _end(self, reason: Reason) -> None:
        record_refusal(reason, self.client)
        self.transport.abort()
