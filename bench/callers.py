"""Callers that send the next request as soon as they have an answer. Raw HTTP on kept connections needs little CPU.

    python -m bench.callers PORT CONNECTIONS FILE < seconds

FILE holds whole requests as a JSON list of texts; each caller takes one at random. The answers must be 200.
"""

import asyncio
import json
import random
import secrets
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bench.harness import Harness
from bench.paired_runs import Slice, Work, drive, obey

PROMPT = "一个可爱的橘猫在窗台上晒太阳,温馨的室内场景,柔和的光线"
BODY = json.dumps({"modelName": "sc_soraimg_text_1x1", "prompt": PROMPT})
SUBMIT = "/user/ai/tasks/submit"


class Caller(asyncio.Protocol):
    """One connection. It sends the next request when the last answer is complete."""

    def __init__(self, requests: list[bytes], until: float, tally: Slice) -> None:
        self._requests = requests
        self._until = until
        self._tally = tally
        self._buffer = b""
        self._sent_at = 0.0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._sent_at = time.perf_counter()
        self._transport.write(random.choice(self._requests))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found or len(body) < _content_length(head):
            return
        now = time.perf_counter()
        if not head.startswith(b"HTTP/1.1 200"):
            self._tally.fault = self._tally.fault or body[:500].decode(errors="replace")
            self._until = 0.0
        self._tally.done += 1
        self._tally.latencies.append(round((now - self._sent_at) * 1000, 2))
        self._buffer = b""
        if now < self._until:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None or self._buffer:
            self._tally.fault = self._tally.fault or f"connection lost: {error!r}"
        if not self.ended.done():
            self.ended.set_result(None)


def _content_length(head: bytes) -> int:
    start = head.lower().index(b"content-length:") + 15
    return int(head[start : start + 12].split(b"\r\n", 1)[0])


def request(method: str, path: str, credential: str, body: str = "") -> str:
    """A whole request. Its body is JSON in ASCII."""
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {credential}\r\n"
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}\r\n{body}"


async def call_for(seconds: float, port: int, connections: int, requests: list[bytes]) -> Slice:
    """Opens new connections for each slice, because the server closes idle ones between slices."""
    loop, tally, began = asyncio.get_running_loop(), Slice(), time.perf_counter()
    callers = [
        (await loop.create_connection(lambda: Caller(requests, began + seconds, tally), "127.0.0.1", port))[1]
        for _ in range(connections)
    ]
    await asyncio.wait([caller.ended for caller in callers])
    tally.seconds = time.perf_counter() - began
    return tally


@asynccontextmanager
async def call(harness: Harness, port: int, connections: int, requests: list[str]) -> AsyncIterator[Work]:
    """A process of callers that send these requests."""
    file = Path(harness.directory, f"requests-{secrets.token_hex(4)}.json")
    file.write_text(json.dumps(requests))
    async with drive(harness, "bench.callers", str(port), str(connections), str(file)) as callers:
        yield callers.run


def main() -> None:
    port, connections = map(int, sys.argv[1:3])
    requests = [one.encode() for one in json.loads(Path(sys.argv[3]).read_text())]
    obey(lambda seconds: call_for(seconds, port, connections, requests))


if __name__ == "__main__":
    main()
