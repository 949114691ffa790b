"""Faults at the ASGI level: responses that never come, break off, are too slow or too large. No SEE2AI in here.

Each is a Starlette response. ASGI has no way to reset a connection or to send a wrong length. These faults use the
connection's own transport, which `app.py` finds under uvicorn. Without one (in-process clients) a connection error
is raised.
"""

import asyncio
import socket
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import cast

import anyio
import anyio.lowlevel
from starlette.responses import RedirectResponse, Response
from starlette.types import Receive, Scope, Send

from app.sandbox.rules.rule import FaultRule

TRANSPORT = "sandbox.transport"
HUGE_BYTES = 1 << 30
CHUNK_BYTES = 1 << 16
PAUSE_SECONDS = 0.001
DEFAULT_CLAIMED_BYTES = 100
HTML_PAGE = b"<!doctype html><html><body><h1>502 Bad Gateway</h1></body></html>"


def misbehave(rule: FaultRule, response: Response) -> Response:
    """The response with the rule's fault; the response itself where the fault is not one of the transport's."""
    body, media_type = bytes(response.body), response.headers.get("content-type", "application/octet-stream")
    match rule.fault:
        case "hang":
            return DelayedResponse(rule.seconds, response)
        case "reset":
            return ConnectionReset()
        case "html":
            return Response(HTML_PAGE, media_type="text/html")
        case "redirect":
            return RedirectResponse(rule.url, status_code=302)
        case "malformed":
            return Response(body[: len(body) * 2 // 3], media_type=media_type)
        case "gzip-bomb":
            return StreamedResponse(_gzip_bomb, {"content-type": media_type, "content-encoding": "gzip"})
        case "huge":
            return StreamedResponse(lambda: _huge_body(body), {"content-type": media_type})
        case "drip":
            headers = {"content-type": media_type, "content-length": str(len(body))}
            return StreamedResponse(lambda: _drip(body), headers)
        case "truncated":
            return WrongLengthResponse(body[: len(body) // 2], media_type, len(body))
        case "lies-about-length":
            claimed = DEFAULT_CLAIMED_BYTES if rule.claimed_bytes is None else rule.claimed_bytes
            return WrongLengthResponse(body, media_type, claimed)
    return response


class DelayedResponse(Response):
    """Responds after so many seconds, or never where that is None; ends when the client disconnects."""

    def __init__(self, seconds: float | None, response: Response | Callable[[], Response]) -> None:
        super().__init__()
        self._seconds = seconds
        self._response = response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def wait_and_respond() -> None:
            await (anyio.sleep_forever() if self._seconds is None else anyio.sleep(self._seconds))
            response = self._response if isinstance(self._response, Response) else self._response()
            await response(scope, receive, send)

        await _run_until_disconnect(receive, wait_and_respond)


class ConnectionReset(Response):
    """Drops the connection without a byte of response: the client sees a TCP reset."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del send  # nothing is sent
        transport = _get_transport(scope)
        connection = transport.get_extra_info("socket")
        # A duplicate, because uvloop's own socket object does not take options.
        with socket.fromfd(connection.fileno(), connection.family, connection.type) as same:
            same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
        await _wait_for_disconnect(receive)


class WrongLengthResponse(Response):
    """Claims one length, sends another, and closes. It bypasses the server, which would refuse a wrong length."""

    def __init__(self, body: bytes, media_type: str, claimed_bytes: int) -> None:
        super().__init__()
        header = f"HTTP/1.1 200 OK\r\ncontent-type: {media_type}\r\ncontent-length: {claimed_bytes}\r\n"
        self._bytes = header.encode() + b"x-content-type-options: nosniff\r\nconnection: close\r\n\r\n" + body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del send  # it would refuse a wrong length
        transport = _get_transport(scope)
        if not transport.is_closing():  # the client may have disconnected meanwhile
            transport.write(self._bytes)
            transport.close()
        await _wait_for_disconnect(receive)


class StreamedResponse(Response):
    """Chunks from a generator, taken only as fast as the client reads, until it disconnects."""

    def __init__(self, chunks: Callable[[], AsyncIterator[bytes]], headers: dict[str, str]) -> None:
        super().__init__()
        self._chunks = chunks
        self.raw_headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def stream() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            if scope["method"] != "HEAD":
                async for chunk in self._chunks():
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        await _run_until_disconnect(receive, stream)


async def _run_until_disconnect(receive: Receive, respond: Callable[[], Awaitable[None]]) -> None:
    async with anyio.create_task_group() as group:

        async def watch() -> None:
            await _wait_for_disconnect(receive)
            group.cancel_scope.cancel()

        group.start_soon(watch)
        await respond()
        group.cancel_scope.cancel()


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _get_transport(scope: Scope) -> asyncio.Transport:
    transport = scope.get(TRANSPORT)
    if transport is None:
        raise ConnectionResetError("connection dropped by the sandbox")
    return cast(asyncio.Transport, transport)


async def _huge_body(body: bytes) -> AsyncIterator[bytes]:
    """A body that begins like the real one, breaks off before its last byte and goes on for a gigabyte."""
    yield body[:-1]
    filler, sent_bytes = b"0123456789abcdef" * (CHUNK_BYTES // 16), 0
    while sent_bytes < HUGE_BYTES:
        yield filler
        sent_bytes += CHUNK_BYTES
        await anyio.sleep(PAUSE_SECONDS)


async def _drip(body: bytes) -> AsyncIterator[bytes]:
    for index in range(len(body)):
        yield body[index : index + 1]
        await anyio.sleep(1)


async def _gzip_bomb() -> AsyncIterator[bytes]:
    """A valid gzip of one gigabyte of zeros in about a megabyte: one flushed block, repeated."""
    mebibyte = bytes(1 << 20)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packer.compress(mebibyte)
    packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(mebibyte) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = 0
    yield b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
    for _ in range(HUGE_BYTES >> 20):
        checksum = zlib.crc32(mebibyte, checksum)
        yield block
        await anyio.lowlevel.checkpoint()
    yield b"\x03\x00" + struct.pack("<II", checksum, HUGE_BYTES & 0xFFFFFFFF)
