"""Connections without an HTTP client: what is sent byte by byte, and what comes back."""

import asyncio
import contextlib
import json
from dataclasses import dataclass
from typing import Any

SECONDS = 30.0
GONE = (ConnectionError, asyncio.IncompleteReadError, RuntimeError)
"""What a server of a test meets when its client has left. uvloop raises RuntimeError for a write."""
HANDSHAKE = (
    b"GET /user/ai/tasks/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)
"""A good one, but for the blank line at its end."""


@dataclass(frozen=True)
class Answer:
    """What came before the connection was closed."""

    raw: bytes

    @property
    def statuses(self) -> list[int]:
        """Of all responses in it."""
        return [int(part[:3]) for part in self.raw.split(b"HTTP/1.1 ")[1:]]

    @property
    def headers(self) -> dict[str, str]:
        lines = self.raw.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
        return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}

    @property
    def body(self) -> dict[str, Any]:
        return dict(json.loads(self.raw.partition(b"\r\n\r\n")[2]))


async def talk(port: int, *parts: bytes, pause: float = 0.0) -> Answer:
    """Sends the parts while the connection takes them, and reads until it is closed; AssertionError if it is not."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = bytearray()

    async def read() -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(65_536):
                received.extend(piece)

    reading = asyncio.create_task(read())
    try:
        with contextlib.suppress(OSError):
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(pause)
                if reading.done():
                    break
        done, _ = await asyncio.wait([reading], timeout=SECONDS)
        assert done, f"still open, after {bytes(received[:200])!r}"
    finally:
        reading.cancel()
        writer.transport.abort()
    return Answer(bytes(received))
