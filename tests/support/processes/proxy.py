"""A TCP proxy before MySQL that simulates faults: it refuses, hangs, resets, cuts, and loses the answers of COMMITs."""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

COMMIT = b"\x03COMMIT"  # a MySQL query packet from its command byte on
CHUNK = 65_536


class Proxy:
    """Runs in a thread. `mode` applies to everything that follows, also on open connections.

    pass        forwards everything
    refuse      resets every connection and takes no new one
    blackhole   accepts everything, forwards nothing, closes nothing
    reset       accepts new connections and resets each at its first bytes
    cut         forwards a few bytes of each answer, then closes

    `lose` names texts of statements. The COMMIT after the next such statement is forwarded; when its answer arrives,
    the connection is closed. This happens once for each text, which then moves to `lost`.

    `forget` is for the connections that are open now, as a balancer forgets what was idle. New ones pass.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._mode = "pass"
        self._open: set[asyncio.StreamWriter] = set()
        self._forgotten: dict[asyncio.StreamWriter, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.lose: list[bytes] = []
        self.lost: list[bytes] = []
        self.port = 0

    @property
    def mode(self) -> str:
        return self._mode

    def set(self, mode: str) -> None:
        """Changes the mode, and ends the connections that would not notice it."""
        self._mode = mode
        if mode in {"refuse", "reset"}:
            self._loop.call_soon_threadsafe(self._reset_all)

    def forget(self, how: str) -> None:
        """From now on the open connections swallow what is sent ("blackhole"), or are reset at it ("reset")."""
        self._forgotten |= dict.fromkeys(self._open, how)

    def _reset_all(self) -> None:
        for writer in list(self._open):
            _reset(writer)

    async def _serve(self, is_ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        is_ready.set()
        await self._over.wait()
        server.close()
        self._reset_all()
        for task in self._tasks:
            task.cancel()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._mode == "refuse":
            _reset(writer)
            return
        there_reader, there = await asyncio.open_connection(*self._target)
        pair = {writer, there}
        self._open |= pair
        try:
            await asyncio.wait(
                [
                    self._start(self._send_request(reader, there, writer)),
                    self._start(self._answer(there_reader, writer)),
                ],
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            self._open -= pair
            for one in pair:
                one.close()

    def _start(self, work: "asyncio._CoroutineLike[None]") -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _send_request(
        self, reader: asyncio.StreamReader, there: asyncio.StreamWriter, here: asyncio.StreamWriter
    ) -> None:
        """From the gateway to the database."""
        doomed: list[bytes] = []
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                mode = self._forgotten.get(here, self._mode)
                if mode == "blackhole":
                    continue
                if mode == "reset":
                    _reset(here)
                    return
                doomed += [text for text in self.lose if text in data]
                self.lose = [text for text in self.lose if text not in doomed]
                if doomed and COMMIT in data.upper():
                    has_come = asyncio.Event()
                    setattr(here, "unanswered", has_come)  # noqa: B010
                    there.write(data)
                    await there.drain()
                    await has_come.wait()
                    self.lost += doomed
                    _reset(here)
                    return
                there.write(data)
                await there.drain()

    async def _answer(self, reader: asyncio.StreamReader, here: asyncio.StreamWriter) -> None:
        """From the database to the gateway."""
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                if unanswered := getattr(here, "unanswered", None):
                    unanswered.set()
                    continue
                if self._mode == "blackhole":
                    continue
                if self._mode == "cut":
                    here.write(data[:3])
                    await here.drain()
                    return
                here.write(data)
                await here.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Closes with RST instead of FIN."""
    with contextlib.suppress(OSError, AttributeError):
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


@contextmanager
def proxied(host: str, port: int, kind: type[Proxy] = Proxy) -> Iterator[Proxy]:
    """A running proxy before `host:port`."""
    proxy, is_ready = kind((host, port)), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(proxy._serve(is_ready)), daemon=True)
    thread.start()
    assert is_ready.wait(60)
    try:
        yield proxy
    finally:
        proxy._loop.call_soon_threadsafe(proxy._over.set)
        thread.join(5)
