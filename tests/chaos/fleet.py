"""API processes and workers under a supervisor that starts each again the moment it ends, and knows why it ended."""

import contextlib
import signal
import subprocess
import threading
import time
from collections import Counter

from tests.support.processes.process import Process, Processes

POLL_SECONDS = 0.05
TIMEOUT_SECONDS = 90.0  # after SIGTERM, as operations ask a supervisor to have with a worker


class Quiet(Processes):
    """Hundreds of processes live and die in a storm: their logs stay in the folder and are not shown."""

    def _tails(self) -> list[str]:
        return []


class Post:
    """One place in the fleet: the process that holds it now. `strikes` are ends that we caused."""

    def __init__(self, processes: Processes, name: str, port: int = 0) -> None:
        self.name = name
        self.port = port
        self.unexpected: list[str] = []
        self.starts = 0
        self._processes = processes
        self._expected: set[int] = set()  # pids that were told to end
        self._disconnected: list[tuple[Process, float]] = []  # after SIGTERM, and until when they may take
        self._lock = threading.Lock()
        self.process = self._start()

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _start(self) -> Process:
        self.starts += 1
        if self.port:
            return self._processes.gateway("serve", port=self.port)
        return self._processes.gateway("worker")

    def poll(self) -> None:
        """Starts the process again where it has ended."""
        with self._lock:
            self._disconnected = [one for one in self._disconnected if self._is_still_leaving(*one)]
            code = self.process.code
            if code is None:
                return
            if self.process.pid not in self._expected:
                self.unexpected.append(f"{self.process.name} ended with {code} by itself")
            self.process = self._start()

    def kill(self) -> None:
        with self._lock:
            self._expected.add(self.process.pid)
            self.process.send(signal.SIGCONT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.kill()

    def terminate(self) -> None:
        """SIGTERM, and after a supervisor's patience SIGKILL. A worker's place is taken at once, as in a rollout."""
        with self._lock:
            self._report_to_end()
            if not self.port:
                self.process = self._start()

    def _report_to_end(self) -> None:
        """Once: who is winding down is not told again."""
        if any(process is self.process for process, _ in self._disconnected):
            return
        self._expected.add(self.process.pid)
        self.process.send(signal.SIGTERM)
        self._disconnected.append((self.process, time.monotonic() + TIMEOUT_SECONDS))

    def _is_still_leaving(self, process: Process, until: float) -> bool:
        if process.code is None and time.monotonic() < until:
            return True
        if process.code is None:
            self.unexpected.append(f"{process.name} did not end {TIMEOUT_SECONDS:.0f} s after SIGTERM")
            process.kill()
        elif process.code not in {0, -signal.SIGKILL} and not self._had_not_begun(process):
            self.unexpected.append(f"{process.name} ended with {process.code} after SIGTERM")
        return False

    @staticmethod
    def _had_not_begun(process: Process) -> bool:
        """SIGTERM met it while it was still being loaded, before it had a word to say about it."""
        return process.code == -signal.SIGTERM and not process.log()

    def terminate_for_good(self) -> None:
        with self._lock:
            self._report_to_end()

    def wait_for_leaving(self) -> None:
        """Until all that were told to end have done so."""
        while self._disconnected:
            time.sleep(POLL_SECONDS)
            with self._lock:
                self._disconnected = [one for one in self._disconnected if self._is_still_leaving(*one)]

    def freeze(self, seconds: float) -> None:
        process = self.process
        process.freeze()
        time.sleep(seconds)
        process.thaw()


class Fleet:
    """`with Fleet(processes, ports, workers)`: everything in it is kept alive until the end."""

    def __init__(self, processes: Processes, api_ports: list[int], workers: int) -> None:
        self.apis = [Post(processes, f"api {number}", port) for number, port in enumerate(api_ports, 1)]
        self.workers = [Post(processes, f"worker {number}") for number in range(1, workers + 1)]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def posts(self) -> list[Post]:
        return [*self.apis, *self.workers]

    def unexpected(self) -> list[str]:
        return [line for post in self.posts for line in post.unexpected]

    def starts(self) -> Counter[str]:
        return Counter({post.name: post.starts for post in self.posts})

    def _watch(self) -> None:
        while not self._over.wait(POLL_SECONDS):
            for post in self.posts:
                post.poll()

    def __enter__(self) -> "Fleet":
        for post in self.apis:
            post.process.answers(f"{post.origin}/healthz")
        for post in self.workers:
            post.process.says("worker_started")
        self._thread.start()
        return self

    def settle(self) -> None:
        """No more restarts; everybody ends as after SIGTERM. What did not end well is told by `unexpected`."""
        self._over.set()
        self._thread.join()
        for post in self.posts:
            post.terminate_for_good()
        for post in self.posts:
            post.wait_for_leaving()

    def __exit__(self, *_: object) -> None:
        self._over.set()
