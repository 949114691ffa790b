"""Bad manners at the ASGI level: answers that never come, break off, lie, drip or swell. No SEE2AI in here.

Each is a Starlette response. What ASGI cannot say (a reset, a wrong length) is done on the connection's own
transport, which `app.py` finds under uvicorn; without one (in-process clients) a connection error is raised.
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

from app.sandbox.plan import Trouble

TRANSPORT = "sandbox.transport"
HUGE_BYTES = 1 << 30
CHUNK_BYTES = 1 << 16
PAUSE_SECONDS = 0.001
DEFAULT_LIE_BYTES = 100
HTML = b"<!doctype html><html><body><h1>502 Bad Gateway</h1></body></html>"


def misbehave(trouble: Trouble, answer: Response) -> Response:
    """The ill-mannered twin of a good answer; the answer itself where the kind is none of the transport's."""
    body, media_type = bytes(answer.body), answer.headers.get("content-type", "application/octet-stream")
    match trouble.kind:
        case "hang":
            return Late(trouble.seconds, answer)
        case "reset":
            return Reset()
        case "html":
            return Response(HTML, media_type="text/html")
        case "redirect":
            return RedirectResponse(trouble.text, status_code=302)
        case "malformed":
            return Response(body[: len(body) * 2 // 3], media_type=media_type)
        case "gzip-bomb":
            headers = {"content-type": media_type, "content-encoding": "gzip"}
            return Stream(_gzip_bomb, headers)
        case "huge":
            return Stream(lambda: _swell(body), {"content-type": media_type})
        case "drip":
            return Stream(lambda: _drip(body), {"content-type": media_type, "content-length": str(len(body))})
        case "truncated":
            return Miscounted(body[: len(body) // 2], media_type, len(body))
        case "lies-about-length":
            return Miscounted(body, media_type, trouble.claimed_bytes or DEFAULT_LIE_BYTES)
    return answer


class Late(Response):
    """Answers after so many seconds; None: never, and lets go when the client does."""

    def __init__(self, seconds: float | None, answer: Response | Callable[[], Response]) -> None:
        super().__init__()
        self._seconds = seconds
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def wait_and_answer() -> None:
            await (anyio.sleep_forever() if self._seconds is None else anyio.sleep(self._seconds))
            answer = self._answer if isinstance(self._answer, Response) else self._answer()
            await answer(scope, receive, send)

        await _until_gone(receive, wait_and_answer)


class Reset(Response):
    """Drops the connection without a byte of answer: the client sees a TCP reset."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del send  # nothing is sent
        transport = _transport(scope)
        connection = transport.get_extra_info("socket")
        # A duplicate, because uvloop's own socket object does not take options.
        with socket.fromfd(connection.fileno(), connection.family, connection.type) as same:
            same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
        await _gone(receive)


class Miscounted(Response):
    """Claims one length, sends another, and closes: the bytes go past the server, which would forbid it."""

    def __init__(self, body: bytes, media_type: str, claimed_bytes: int) -> None:
        super().__init__()
        head = f"HTTP/1.1 200 OK\r\ncontent-type: {media_type}\r\ncontent-length: {claimed_bytes}\r\n"
        self._wire = head.encode() + b"x-content-type-options: nosniff\r\nconnection: close\r\n\r\n" + body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del send  # it would refuse a wrong length
        transport = _transport(scope)
        if not transport.is_closing():  # who asked may have left meanwhile
            transport.write(self._wire)
            transport.close()
        await _gone(receive)


class Stream(Response):
    """Chunks from a generator, taken only as fast as the client reads, and no longer than it listens."""

    def __init__(self, chunks: Callable[[], AsyncIterator[bytes]], headers: dict[str, str]) -> None:
        super().__init__()
        self._chunks = chunks
        self.raw_headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def pour() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            if scope["method"] != "HEAD":
                async for chunk in self._chunks():
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        await _until_gone(receive, pour)


async def _until_gone(receive: Receive, work: Callable[[], Awaitable[None]]) -> None:
    async with anyio.create_task_group() as group:

        async def watch() -> None:
            await _gone(receive)
            group.cancel_scope.cancel()

        group.start_soon(watch)
        await work()
        group.cancel_scope.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _transport(scope: Scope) -> asyncio.Transport:
    transport = scope.get(TRANSPORT)
    if transport is None:
        raise ConnectionResetError("connection dropped by the sandbox")
    return cast(asyncio.Transport, transport)


async def _swell(body: bytes) -> AsyncIterator[bytes]:
    """A body that begins like the answer, breaks off before its last byte and goes on for a gigabyte."""
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
