"""A Python program as a child of the run's fork server: like `subprocess.Popen`, but it starts in milliseconds."""

import contextlib
import json
import selectors
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.support.run import once_a_run, run_folder, start_guarded

GATEWAY = "gateway"
"""Names `app.cli.main`, the only program that is not a file."""
START_SECONDS = 60.0


class ForkedProcess:
    """The methods of `subprocess.Popen` that tests use."""

    def __init__(self, connection: socket.socket) -> None:
        self._lines = connection.makefile("r")
        self._connection = connection
        self.pid = int(self._lines.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, negative for a signal. subprocess.TimeoutExpired after `seconds`."""
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._connection, selectors.EVENT_READ)
                if not selector.select(timeout):
                    raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            self.returncode = int(self._lines.readline())
            self._connection.close()
        return self.returncode


def start(
    program: str,
    *arguments: str,
    cwd: Path,
    env: dict[str, str],
    stdout: Path,
    stderr: Path,
) -> ForkedProcess:
    """`program` is GATEWAY or the path of a Python script."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(once_a_run("fork-server", _start_server))
    request = {"program": program, "arguments": arguments, "cwd": str(cwd), "env": env}
    connection.sendall(json.dumps(request | {"stdout": str(stdout), "stderr": str(stderr)}).encode() + b"\n")
    return ForkedProcess(connection)


def _start_server() -> str:
    """The path of its socket, once it accepts requests."""
    path, log = run_folder() / "fork-server.sock", run_folder() / "fork-server.log"
    process = start_guarded(sys.executable, "-u", str(Path(__file__).with_name("fork_server.py")), str(path), log=log)
    end = time.monotonic() + START_SECONDS
    while not path.exists():
        if process.poll() is not None or time.monotonic() > end:
            raise AssertionError(f"the fork server did not start: {log.read_text('utf-8', 'replace')}")
        time.sleep(0.02)
    return str(path)
