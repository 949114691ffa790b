"""Real processes for tests: started with their own environment, watched through their logs, always ended."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import httpx

from tests.support.processes import forked
from tests.support.processes.forked import ForkedProcess
from tests.support.waiting import wait_until

START_SECONDS = 90.0  # two cores, and many interpreters that start at once
LINES_SHOWN = 60
INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "SSL_CERT_FILE")


def script(name: str) -> str:
    """A console script of this interpreter's environment, as an operator would start it."""
    return str(Path(sys.executable).with_name(name))


class Process:
    """One process and its log file."""

    def __init__(self, name: str, popen: "subprocess.Popen[bytes] | ForkedProcess", path: Path) -> None:
        self.name = name
        self._popen = popen
        self._path = path

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def code(self) -> int | None:
        """The exit code, negative for a signal. None while the process runs."""
        return self._popen.poll()

    def log(self) -> str:
        return self._path.read_text("utf-8", "replace")

    def says(self, text: str, seconds: float = START_SECONDS) -> Self:
        """Waits for a text in the log. Fails at once if the process ends without it."""
        wait_until(f"{self.name} says {text!r}", lambda: text in self.log() or self.code is not None, seconds)
        assert text in self.log(), f"{self.name} ended with {self.code} without saying {text!r}"
        return self

    def answers(self, url: str, seconds: float = START_SECONDS) -> Self:
        """Waits until `url` answers with any status."""
        wait_until(f"{self.name} answers at {url}", lambda: _answers(url) or self.code is not None, seconds)
        assert self.code is None, f"{self.name} ended with {self.code}"
        return self

    def send(self, number: signal.Signals) -> None:
        """Does nothing if it has ended. The exit code of a forked process arrives a moment after its end."""
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, then waits for the end."""
        self.send(signal.SIGKILL)
        self._popen.wait(60)

    def freeze(self) -> None:
        self.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self.send(signal.SIGCONT)

    def is_frozen(self) -> bool:
        """The state by the kernel."""
        stat = Path(f"/proc/{self.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "T"

    def ends(self, seconds: float = 60.0) -> int:
        """Waits until the process ends by itself. Returns the exit code."""
        return self._popen.wait(seconds)

    def terminate(self, seconds: float = 60.0) -> int:
        """SIGTERM, as every supervisor sends it. Returns the exit code."""
        self.send(signal.SIGTERM)
        return self._popen.wait(seconds)


class Processes:
    """`with Processes(directory, environment) as processes:` all its processes have ended after the block."""

    def __init__(self, directory: Path, environment: Mapping[str, Any], *, real_starts: bool = False) -> None:
        self.directory = directory
        self.real_starts = real_starts
        self.environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
        # Temporary files of a killed process are deleted with the test's own folder.
        self.environment |= {"PYTHONUNBUFFERED": "1", "LOG_FORMAT": "json", "TMPDIR": str(directory)}
        self.environment |= {name.upper(): str(value) for name, value in environment.items()}
        self.started: list[Process] = []
        directory.mkdir(parents=True, exist_ok=True)

    def start(self, *command: str, name: str = "", cwd: Path | None = None, **environment: Any) -> Process:
        """Starts a command in the temporary directory. Both its outputs go to one log file."""
        name = f"{len(self.started):02d}-{name or '-'.join([Path(command[0]).name, *command[1:2]]).replace('/', '_')}"
        path = self.directory / f"{name}.log"
        own = {key.upper(): str(value) for key, value in environment.items()}
        with path.open("wb") as log:
            popen = subprocess.Popen(
                command,
                cwd=cwd or self.directory,
                env=self.environment | own,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self._add(Process(name, popen, path))

    def _add(self, process: Process) -> Process:
        self.started.append(process)
        return process

    def gateway(self, *arguments: str, **environment: Any) -> Process:
        """Runs `gateway …` as a fork, or by its real console script with `real_starts`."""
        if self.real_starts:
            return self.start(script("gateway"), *arguments, name="gateway-" + arguments[0], **environment)
        return self.fork(forked.GATEWAY, *arguments, **environment)

    def fork(self, program: str, *arguments: str, **environment: Any) -> Process:
        """Forks a Python program, a file or `gateway`. Both its outputs go to one log file."""
        name = f"{len(self.started):02d}-{'-'.join([Path(program).stem, *arguments[:1]]).replace('/', '_')}"
        path = self.directory / f"{name}.log"
        path.touch()
        env = self.environment | {key.upper(): str(value) for key, value in environment.items()}
        child = forked.start(program, *arguments, cwd=self.directory, env=env, stdout=path, stderr=path)
        return self._add(Process(name, child, path))

    def worker(self, **environment: Any) -> Process:
        """A worker that has logged its start."""
        return self.gateway("worker", **environment).says("worker_started")

    def command(self, *arguments: str, **environment: Any) -> str:
        """Runs a `gateway` command to its end. Returns its standard output."""
        env = self.environment | {key.upper(): str(value) for key, value in environment.items()}
        with tempfile.TemporaryDirectory(dir=self.directory) as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            if self.real_starts:
                with out.open("wb") as stdout, err.open("wb") as stderr:
                    code = subprocess.run(
                        [script("gateway"), *arguments],
                        cwd=self.directory,
                        env=env,
                        stdout=stdout,
                        stderr=stderr,
                        timeout=120,
                        check=False,
                    ).returncode
            else:
                start = forked.start(forked.GATEWAY, *arguments, cwd=self.directory, env=env, stdout=out, stderr=err)
                code = start.wait(120)
            assert code == 0, f"gateway {' '.join(arguments)}: exit {code}\n{err.read_text('utf-8')}"
            return out.read_text("utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        for process in reversed(self.started):
            if process.code is None:
                # The whole session, because `gateway serve --workers 2` has children.
                for number in (signal.SIGCONT, signal.SIGKILL):
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, number)
                process.kill()
        print("\n".join(self._tails()))  # pytest shows it if a test has failed

    def _tails(self) -> list[str]:
        lines = []
        for process in self.started:
            tail = process.log().splitlines()[-LINES_SHOWN:]
            lines += [f"----- {process.name} (exit {process.code})", *[line[:600] for line in tail]]
        return lines


def _answers(url: str) -> bool:
    try:
        httpx.get(url, timeout=5, trust_env=False)
    except httpx.HTTPError:
        return False
    return True
