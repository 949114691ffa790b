"""The cost of a start, in CPU time of child processes. Wall time would depend on other work of the machine.

Each cost is compared with a baseline on the same machine at the same time. The best of several runs counts on both
sides, because other work can only make a run slower.
"""

import itertools
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.cli.commands import app
from tests.support.ports import dead_port, free_port
from tests.support.processes.process import START_SECONDS, Processes, script
from tests.support.waiting import wait_until
from tests.support.worlds import World

MAX_ROUNDS = 8
GATEWAY = script("gateway")
LIBRARIES = "import sqlalchemy.ext.asyncio, asyncmy, pydantic_settings"
DO_NOTHING = """
import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Does nothing.")


def add(app, name):
    @app.command(name)
    def nothing():
        "Does nothing at all."


for name in {commands!r}:
    add(app, name)
for name, commands in {groups!r}.items():
    group = typer.Typer(no_args_is_help=True, help="Does nothing.")
    for command in commands:
        add(group, command)
    app.add_typer(group, name=name)
app()
"""
LOADED = """
import atexit, sys

atexit.register(lambda: print("LOADED", *sorted(sys.modules)))
sys.argv = ["gateway", "worker"]
from app.cli import main

main()
"""

pytestmark = pytest.mark.worlds("embedded")
Measure = Callable[[], float]


class Children:
    """Runs commands in one directory, with the settings of one world."""

    def __init__(self, directory: Path, world: World) -> None:
        self.directory = directory
        without = {"PYTHONDONTWRITEBYTECODE", "PYTHONPROFILEIMPORTTIME"}
        self._environment = {name: value for name, value in os.environ.items() if name not in without}
        self._environment |= {name.upper(): str(value) for name, value in world.settings.items()}
        self.run(GATEWAY, "users", "create")

    def run(self, *command: str) -> float:
        """Runs to its end with exit code 0. Returns the CPU seconds."""
        child = self._start(command)
        assert child.stderr is not None
        with child.stderr:
            said = child.stderr.read()
        seconds = _cpu_seconds(child)
        assert child.returncode == 0, said.decode()
        return seconds

    def python(self, code: str) -> float:
        return self.run(sys.executable, "-c", code)

    def serve(self) -> float:
        """Runs the API until it answers /healthz. Then it is killed, so that its stop costs nothing."""
        port = free_port()
        url = f"http://127.0.0.1:{port}/healthz"
        child = self._start((GATEWAY, "serve"), port=port)
        assert child.stderr is not None
        try:
            wait_until("the API answers", lambda: _is_ok(url) or _has_ended(child), START_SECONDS)
        finally:
            os.kill(child.pid, signal.SIGKILL)
            seconds = _cpu_seconds(child)
            with child.stderr:
                said = child.stderr.read()
        assert child.returncode == -signal.SIGKILL, said.decode()
        return seconds

    def _start(self, command: tuple[str, ...], **environment: Any) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            command,
            cwd=self.directory,
            env=self._environment | {name.upper(): str(value) for name, value in environment.items()},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )


@pytest.fixture
def children(world: World, tmp_path: Path) -> Children:
    return Children(tmp_path, world)


def _cpu_seconds(child: "subprocess.Popen[bytes]") -> float:
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return used.ru_utime + used.ru_stime


def _has_ended(child: "subprocess.Popen[bytes]") -> bool:
    """Leaves the process unreaped, because `wait4` returns its CPU time."""
    return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _is_ok(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def require(times: float, baseline: Measure, ours: dict[str, Measure]) -> None:
    """Each start costs at most `times` the baseline. They run in turns, and those that are too slow run again."""
    least, best = math.inf, dict.fromkeys(ours, math.inf)
    dear = list(ours)
    for _ in range(MAX_ROUNDS):
        least = min(least, baseline())
        best |= {name: min(best[name], ours[name]()) for name in dear}
        least = min(least, baseline())  # before and after ours, so that a disturbed baseline excuses nothing
        dear = [name for name in dear if best[name] > times * least]
        if not dear:
            return
    payload = ", ".join(f"{name} {best[name] / least:.2f}" for name in dear)
    pytest.fail(f"at most {times} times the {least:.3f} s of the baseline are allowed: {payload}")


def test_help_and_version_cost_little_more_than_typer_itself(children: Children) -> None:
    groups = {
        group.name: [one.name for one in group.typer_instance.registered_commands] for group in app.registered_groups
    }
    commands = [one.callback.__name__ for one in app.registered_commands if one.callback]
    nothing = DO_NOTHING.format(commands=commands, groups=groups)
    assert "see2ai" in groups
    assert "serve" in commands
    baseline = children.directory / "nothing.py"
    baseline.write_text(nothing)
    require(
        2.0,
        lambda: children.run(sys.executable, str(baseline), "--help"),
        {name: partial(children.run, GATEWAY, name) for name in ("--help", "--version")},
    )


def test_small_commands_load_the_database_and_little_else(children: Children) -> None:
    refs = map(str, itertools.count())
    ours: dict[str, Measure] = {
        words: partial(children.run, GATEWAY, *words.split())
        for words in (
            "audit",
            "users ban 1",
            "keys create 1",
            "models list --json",
        )
    }
    ours["points grant"] = lambda: children.run(GATEWAY, "points", "grant", "1", "5", "--ref", next(refs))
    require(1.5, lambda: children.python(LIBRARIES), ours)


def test_the_api_is_soon_ready(children: Children) -> None:
    require(3.0, lambda: children.python("import fastapi, sqlalchemy"), {"serve": children.serve})


def test_a_worker_loads_neither_the_api_nor_the_sandbox_nor_ffmpeg(world: World, tmp_path: Path) -> None:
    port = dead_port()
    away = {"redis_url": f"redis://127.0.0.1:{port}", "see2ai_base_url": f"http://127.0.0.1:{port}"}
    with Processes(tmp_path, world.settings | away) as processes:
        worker = processes.start(sys.executable, "-c", LOADED, name="worker").says("worker_started")
        assert worker.terminate() == 0
        loaded = next(line for line in worker.log().splitlines() if line.startswith("LOADED ")).split()
    assert {"worker.main", "app.runtime", "app.files.media.audio_video"} <= set(loaded)
    unwanted = {"app.sandbox", "app.api", "app.main", "av", "fastapi", "starlette", "uvicorn", "alembic", "fakeredis"}
    assert not unwanted & set(loaded)
