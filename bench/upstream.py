"""An upstream whose jobs run until they are ended. It is fast enough not to limit the measurement.

python -m bench.upstream PORT

GET /polls           the number of answered polls
GET /log             job and Unix time of each poll since the last /log
GET /end/<job>       ends a job: polls answer SUCCEEDED from now on
GET /picture.jpg     the result of every job
"""

import asyncio
import json
import sys
import time
from array import array
from functools import cache
from typing import Any

import uvloop

from app.sandbox.media.images import ImageSpec, draw_image

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
SUCCEEDED = {"status": "SUCCEEDED", "state": "succeeded", "progress": 100}
PICTURE_PATH = "/picture.jpg"
SIZE = (1024, 1024)


class Upstream(asyncio.Protocol):
    """One kept connection. A request is a head without a body."""

    origin = ""
    polls = 0
    ended: set[str] = set()  # noqa: RUF012 (the jobs of all connections)
    # Neither a list of texts nor an array makes the garbage collector work.
    polled_jobs: list[str] = []  # noqa: RUF012
    polled_at = array("d")

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while b"\r\n\r\n" in self._buffer:
            head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
            self._answer(head.split(b" ", 2)[1].decode())

    def _answer(self, path: str) -> None:
        kind = "application/json"
        if path == "/polls":
            body = json.dumps(Upstream.polls).encode()
        elif path == "/log":
            body = json.dumps(list(zip(Upstream.polled_jobs, Upstream.polled_at, strict=True))).encode()
            Upstream.polled_jobs, Upstream.polled_at = [], array("d")
        elif path.startswith("/end/"):
            Upstream.ended.add(path.removeprefix("/end/"))
            body = b"{}"
        elif path == PICTURE_PATH:
            kind, body = "image/jpeg", picture()
        else:
            body = self._poll(path.rpartition("/")[2])
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)

    def _poll(self, job: str) -> bytes:
        Upstream.polls += 1
        Upstream.polled_jobs.append(job)
        Upstream.polled_at.append(time.time())
        answer = ANSWER | {"task_id": job}
        if job in Upstream.ended:
            answer |= SUCCEEDED | {"result_urls": [Upstream.origin + PICTURE_PATH]}
        return json.dumps(answer).encode()


@cache
def picture() -> bytes:
    return draw_image(ImageSpec("a benchmark", "0" * 64, "bench", SIZE, "jpg"))


async def main(port: int) -> None:
    Upstream.origin = f"http://127.0.0.1:{port}"
    picture()
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
