"""Attacks on the connections of a real process, which sees them without a proxy in front."""

import contextlib
import json
import re
import shlex
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.ports import free_port
from tests.support.processes.process import Process, Processes, script
from tests.support.raw_connections import HANDSHAKE
from tests.support.responses import BALANCE
from tests.support.worlds import World

FILES = 300
CONNECTIONS = 320
MEGABYTE = 1_000_000
GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /user/ai/tasks/quote HTTP/1.1\r\nHost: x\r\n"
OFTEN = b"".join(b"X-%d: " % number + b"a" * 1000 + b"\r\n" for number in range(1000))
EMPTY = b"\x80\0\0\0\0"  # the rest of a WebSocket frame without a payload
COMMANDS = {
    "serve": ("gateway", "serve"),
    "up": ("gateway", "up"),
    "uvicorn": ("uvicorn", "app.main:create_app", "--factory"),
}

pytestmark = pytest.mark.worlds("embedded")


class Attacked:
    """An API with a limit of open files that it cannot raise, and a caller of it."""

    def __init__(self, process: Process, port: int, api_key: str) -> None:
        self.process, self.port, self.api_key = process, port, api_key
        self.caller = {"X-API-Key": api_key}

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def connect_often(self, first: bytes) -> list[socket.socket]:
        """Many connections that send this. The kernel delays by a second what exceeds the queue of the listener."""
        opened = []
        for number in range(CONNECTIONS):
            opened.append(self.connect())
            with contextlib.suppress(OSError):
                opened[-1].sendall(first)
            if number % 16 == 15:
                time.sleep(0.01)
        return opened

    def send(self, *parts: bytes) -> tuple[int, bytes]:
        """How many bytes it took before it closed the connection, and what it answered."""
        sent, answer = 0, b""
        with self.connect() as connection:
            with contextlib.suppress(OSError):
                for part in parts:
                    connection.sendall(part)
                    sent += len(part)
            with contextlib.suppress(OSError):
                while piece := connection.recv(65_536):
                    answer += piece
        return sent, answer

    def serves(self) -> None:
        """Somebody with a credential is answered at once, several times."""
        for _ in range(3):
            answer = httpx.get(
                f"http://127.0.0.1:{self.port}{BALANCE}", headers=self.caller, timeout=20, trust_env=False
            )
            assert answer.status_code == 200, answer.text

    def peak_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found
        return int(found[1]) * 1024

    def open_files(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def events(self) -> list[dict[str, Any]]:
        lines = [line for line in self.process.log().splitlines() if line.startswith("{")]
        return [json.loads(line) for line in lines]

    def reasons(self) -> set[str]:
        return {event["reason"] for event in self.events() if event["event"] == "connection_refused"}


@contextlib.contextmanager
def attacked(world: World, tmp_path: Path, command: str) -> Iterator[Attacked]:
    port = free_port()
    with Processes(tmp_path / "processes", world.settings | {"port": port}) as processes:
        user_id = json.loads(processes.command("users", "create", "--json"))["userId"]
        api_key = json.loads(processes.command("keys", "create", str(user_id), "--json"))["apiKey"]
        name, *arguments = COMMANDS[command]
        own = ["--port", str(port)] if name == "uvicorn" else []
        start = shlex.join([str(script(name)), *arguments, *own])
        process = processes.start("bash", "-c", f"ulimit -n {FILES}; exec {start}")
        process.answers(f"http://127.0.0.1:{port}/healthz")
        yield Attacked(process, port, api_key)
        assert "Traceback" not in process.log()


@pytest.mark.smoke
def test_headers_without_an_end_cost_nothing(world: World, tmp_path: Path) -> None:
    with attacked(world, tmp_path, "serve") as api:
        api.serves()
        before = api.peak_bytes()
        for parts in ([GET, *[OFTEN] * 40], [GET + b"X: ", *[b"a" * MEGABYTE] * 60]):
            began = time.monotonic()
            sent, answer = api.send(*parts)
            assert sent < 30 * MEGABYTE, "the kernel's buffers take some of it, no more"
            assert answer.startswith(b"HTTP/1.1 431 ")
            assert time.monotonic() - began < 10
        assert api.peak_bytes() - before < 5 * MEGABYTE
        assert api.reasons() == {"head_too_large"}
        silent = api.connect_often(b"")
        api.serves()
        assert api.open_files() < FILES * 7 // 8
        assert "replaced" in api.reasons()
        for connection in silent:
            connection.close()


ATTACKS = {
    "silent": b"",
    "half a head": GET,
    "half a body": POST + b"Content-Length: 1000\r\n\r\n{",
    "half an answer": POST + b"Content-Length: 1000000\r\n\r\n",
    "a WebSocket without a credential": HANDSHAKE + b"\r\n",
    "idle": GET + b"\r\n",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_many_connections_leave_others_served(world: World, tmp_path: Path, command: str) -> None:
    with attacked(world, tmp_path, command) as api:
        for name, begin in ATTACKS.items():
            opened = api.connect_often(begin)
            api.serves()
            assert api.open_files() < FILES * 7 // 8, name
            for connection in opened:
                connection.close()
        assert "replaced" in api.reasons()


@pytest.mark.parametrize("command", COMMANDS)
def test_no_phase_grows_the_process(world: World, tmp_path: Path, command: str) -> None:
    chunked = POST + b"Transfer-Encoding: chunked\r\n\r\n"
    much = [b"a" * MEGABYTE] * 60
    with attacked(world, tmp_path, command) as api:
        api.serves()
        before = api.peak_bytes()
        for parts in (
            [GET, *[OFTEN] * 40],
            [GET + b"X: ", *much],
            [b"GET /", *much],
            [b"\r\n" * MEGABYTE] * 60,
            [chunked + b"1;a=", *much],
            [chunked + b"1\r\n{\r\n0\r\nX: ", *much],
            [chunked + b"1\r\n{\r\n0\r\n", *[OFTEN] * 60],
            [POST + b"Content-Length: 200000000\r\n\r\n", *much, *much],
            [POST.replace(b"quote", b"nothing") + b"Content-Length: 200000000\r\n\r\n", *much, *much],
            [(GET + b"\r\n") * 30_000] * 60,
        ):
            api.send(*parts)
            api.serves()
        for first, others in ((b"\x89", b"\x89"), (b"\x8a", b"\x8a"), (b"\x01", b"\x00")):
            with api.connect() as connection, contextlib.suppress(OSError):
                connection.sendall(HANDSHAKE + b"\r\n")
                assert connection.recv(4096).startswith(b"HTTP/1.1 101 ")
                connection.sendall(first + EMPTY)
                for _ in range(100):
                    connection.sendall((others + EMPTY) * 100_000)
            api.serves()
        assert api.peak_bytes() - before < 15 * MEGABYTE
        assert {"head_too_large", "body_too_large", "too_many_pipelined", "too_many_frames"} <= api.reasons()


def test_every_wait_ends_by_the_clock(world: World, tmp_path: Path) -> None:
    """At the real bounds: 10 s for a head and a handshake, 30 s for a body."""
    with attacked(world, tmp_path, "serve") as api:
        opened = {name: api.connect() for name in ATTACKS}
        key = b"\r\nX-API-Key: %s\r\n" % api.api_key.encode()  # the API reads the body of a known caller only
        for name, connection in opened.items():
            connection.sendall(ATTACKS[name].replace(b"\r\n", key, 1) if "body" in name else ATTACKS[name])
        began, ended = time.monotonic(), {}
        for name, connection in opened.items():
            connection.settimeout(60)
            with contextlib.suppress(ConnectionError):
                while connection.recv(65_536):
                    pass
            ended[name] = time.monotonic() - began
            connection.close()
        assert max(ended.values()) < 45, ended
        assert {"silent", "head_too_slow", "body_too_slow"} <= api.reasons()


def test_the_soft_limit_of_files_is_raised_and_shown(world: World, tmp_path: Path) -> None:
    port = free_port()
    with Processes(tmp_path / "processes", world.settings | {"port": port}) as processes:
        for command in ("serve", "up"):
            start = f"ulimit -Sn 200; exec {script('gateway')} {command}"
            process = processes.start("bash", "-c", start, log_format="json").says("file_limit")
            line = next(json.loads(line) for line in process.log().splitlines() if "file_limit" in line)
            assert line["files"] > 200
            assert line["connections"] == line["files"] * 3 // 4
            assert process.answers(f"http://127.0.0.1:{port}/healthz").terminate() == 0
