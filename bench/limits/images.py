"""An upstream for an image relay: it answers every request at once with one link, as OpenAI's image route does.

python -m bench.limits.images PORT
"""

import asyncio
import json
import sys
from typing import Any

import uvloop

BODY = json.dumps({"created": 1767225600, "data": [{"url": "https://img.example/results/bench.png"}]})
ANSWER = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n{BODY}".encode()


class Images(asyncio.Protocol):
    """One kept connection, and one request at a time."""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        _, has_length, length = head.lower().partition(b"content-length:")
        expected = int(length.split(b"\r\n", 1)[0]) if has_length else 0
        if found and len(body) >= expected:
            self._buffer = b""
            self._transport.write(ANSWER)


async def main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Images, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
