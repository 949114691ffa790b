"""Between a client and the gateway: a proxy that loses answers and sockets, and a gateway with scripted answers."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.processes.proxy import CHUNK, Proxy, _reset
from tests.support.raw_connections import GONE

SOCKET = b"GET /user/ai/tasks/ws"  # not the ticket, which is a POST


class Between(Proxy):
    """Forwards everything except what is set here. `lose` in the base class names SQL; here it names texts of requests.

    lose     the next request with each of these texts reaches the gateway, and its answer is lost
    sockets  pass, refuse (reset at once), break (reset shortly after opening), or hold (until it is `pass`)
    """

    def __init__(self, target: tuple[str, int]) -> None:
        super().__init__(target)
        self.sockets = "pass"
        self.seen: list[str] = []
        self._deaf: dict[asyncio.StreamWriter, list[bytes]] = {}

    async def _send_request(
        self, reader: asyncio.StreamReader, there: asyncio.StreamWriter, here: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError, *GONE):
            while data := await reader.read(CHUNK):
                if SOCKET in data:
                    self.seen.append(self.sockets)
                    while self.sockets == "hold":
                        await asyncio.sleep(0.05)
                    if self.sockets == "refuse":
                        _reset(here)
                        return
                doomed = [text for text in self.lose if text in data]
                self.lose = [text for text in self.lose if text not in doomed]
                if doomed:
                    self._deaf[here] = doomed
                there.write(data)
                await there.drain()
                if self.sockets == "break" and SOCKET in data:
                    await asyncio.sleep(0.3)
                    _reset(here)
                    return

    async def _answer(self, reader: asyncio.StreamReader, here: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, *GONE):
            while data := await reader.read(CHUNK):
                if doomed := self._deaf.pop(here, None):
                    self.lost += doomed
                    _reset(here)
                    return
                here.write(data)
                await here.drain()


class Scripted(ThreadingHTTPServer):
    """Answers with each (status, headers, body) in order, and repeats the last. None resets the connection."""

    daemon_threads = True

    def __init__(self, port: int, answers: list[tuple[int, dict[str, str], bytes] | None]) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.answers = answers
        self.requests: list[dict[str, str]] = []  # the headers of each request
        self.bodies: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Scripted

    def do_POST(self) -> None:
        self.server.bodies.append(self.rfile.read(int(self.headers["content-length"] or 0)).decode())
        self.server.requests.append({name.lower(): value for name, value in self.headers.items()})
        place = min(len(self.server.requests), len(self.server.answers)) - 1
        answer = self.server.answers[place]
        if answer is None:
            self.close_connection = True
            return
        status, headers, body = answer
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.do_POST()

    def log_message(self, *_: Any) -> None: ...


@contextmanager
def scripted(*answers: tuple[int, dict[str, str], bytes] | None, port: int = 0) -> Iterator[Scripted]:
    server = Scripted(port, list(answers))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
