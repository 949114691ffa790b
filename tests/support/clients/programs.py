"""Runs the clients as programs. Each call is a process in its own language, so both clients have the same tests."""

import functools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
SOURCES = HERE.parents[2] / "clients"
TIMEOUT_SECONDS = 120
NODE_FLAGS = ([], ["--experimental-websocket"])


@functools.cache
def node_command(*, websocket: bool) -> list[str] | None:
    """The command of Node, with the flag for WebSocket where it is needed; None if there is no such Node."""
    if shutil.which("node") is None:
        return None
    if not websocket:
        return ["node"]
    for flags in NODE_FLAGS:
        command = ["node", *flags]
        requested = subprocess.run([*command, "-p", "typeof WebSocket"], capture_output=True, text=True, check=False)
        if requested.stdout.strip() == "function":
            return command
    return None


@dataclass(frozen=True)
class Client:
    """A language, and how it waits: websocket, ticket (a WebSocket opened like in a browser), or polling."""

    language: str
    by: str

    def __str__(self) -> str:
        return f"{self.language}-{self.by}"

    def command(self) -> list[str]:
        """Skips the test if this machine cannot run the client."""
        if self.language == "python":
            return [sys.executable, str(HERE / "call.py")]
        command = node_command(websocket=self.by != "polling")
        if command is None:
            if os.environ.get("CI") and shutil.which("node") is None:
                pytest.fail("CI needs node: one of the two clients is JavaScript")
            pytest.skip("no node, or one without a WebSocket")
        return [*command, str(HERE / "call.mjs")]


CLIENTS = [Client("python", by) for by in ("websocket", "polling")]
CLIENTS += [Client("js", by) for by in ("websocket", "ticket", "polling")]
LANGUAGES = [Client("python", "polling"), Client("js", "polling")]


class Call:
    """A running call: its output so far, and its result."""

    def __init__(self, client: Client, url: str, credentials: list[str], call: str, *args: Any, **options: Any) -> None:
        order = {"url": url, "credentials": credentials, "by": client.by, "call": call, "args": args}
        order |= {"login": options.pop("login", None)}
        order |= {"abortAfter": options.pop("abort_after", None), "options": options}
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        self.progress: list[dict[str, Any]] = []
        self._popen = subprocess.Popen(
            [*client.command(), json.dumps(order)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=kept | {"PYTHONPATH": str(SOURCES / "python"), "PYTHONIOENCODING": "utf-8"},
        )

    def next_progress(self) -> dict[str, Any]:
        assert self._popen.stdout is not None
        line = json.loads(self._popen.stdout.readline())
        self.progress.append(line["progress"])
        return dict(line["progress"])

    def end(self) -> dict[str, Any]:
        """`{"result"}` or `{"error"}`. Fails if the program does not end by itself with exit code 0."""
        try:
            output, complaints = self._popen.communicate(timeout=TIMEOUT_SECONDS)
        finally:
            self._popen.kill()
        assert self._popen.returncode == 0, complaints
        lines = [json.loads(line) for line in output.splitlines()]
        self.progress += [line["progress"] for line in lines[:-1]]
        return dict(lines[-1])

    def result(self) -> Any:
        ended = self.end()
        assert "result" in ended, ended
        return ended["result"]

    def error(self) -> dict[str, Any]:
        ended = self.end()
        assert "error" in ended, ended
        return dict(ended["error"])
