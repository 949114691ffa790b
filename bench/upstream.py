"""An upstream that answers every poll with RUNNING. It is fast enough not to limit the measurement.

python -m bench.upstream PORT        GET /polls returns the number of answered polls
"""

import asyncio
import json
import sys
from typing import Any

import uvloop

ANSWER = {
    "input_tokens": 0,
    "output_tokens": 0,
    "total_tokens": 0,
    "model": "",
    "source": "see2ai",
    "cost_points": None,
    "result_urls": [],
    "task_id": "",
    "status": "RUNNING",
    "state": "running",
    "progress": 40,
}


class Upstream(asyncio.Protocol):
    """One kept connection. A request is a head without a body."""

    polls = 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while b"\r\n\r\n" in self._buffer:
            head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
            self._answer(head.split(b" ", 2)[1].decode())

    def _answer(self, path: str) -> None:
        if path == "/polls":
            body = json.dumps(Upstream.polls)
        else:
            Upstream.polls += 1
            body = json.dumps(ANSWER | {"task_id": path.rpartition("/")[2]})
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self._transport.write((head + body).encode())


async def main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
