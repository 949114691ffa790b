"""API processes and workers under a supervisor. It restarts each at once, and records each unexpected end."""

import contextlib
import signal
import subprocess
import threading
import time
from collections import Counter

from tests.support.processes.process import Process, Processes

POLL_SECONDS = 0.05
TIMEOUT_SECONDS = 90.0  # after SIGTERM, as docs/operations.md asks of a supervisor of a worker


class Quiet(Processes):
    """A storm starts hundreds of processes. Their logs stay in the folder and are not shown."""

    def _tails(self) -> list[str]:
        return []


class Post:
    """A process and its successors, which replace each other."""

    def __init__(self, processes: Processes, name: str, port: int = 0) -> None:
        self.name = name
        self.port = port
        self.unexpected: list[str] = []
        self.starts = 0
        self._processes = processes
        self._expected: set[int] = set()  # pids of processes that got a signal to end
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
        """Starts the process again if it has ended."""
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
        """SIGTERM, then SIGKILL after a timeout. A new worker starts at once, as in a rolling update."""
        with self._lock:
            self._report_to_end()
            if not self.port:
                self.process = self._start()

    def _report_to_end(self) -> None:
        """SIGTERM, but only once for each process."""
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
        elif process.code not in {0, -signal.SIGKILL} and not self._was_loading(process):
            self.unexpected.append(f"{process.name} ended with {process.code} after SIGTERM")
        return False

    @staticmethod
    def _was_loading(process: Process) -> bool:
        """SIGTERM came while Python was still loading, before the first line of the log."""
        return process.code == -signal.SIGTERM and not process.log()

    def terminate_for_good(self) -> None:
        with self._lock:
            self._report_to_end()

    def wait_for_leaving(self) -> None:
        """Waits until all processes that got SIGTERM have ended."""
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
    """`with Fleet(processes, ports, workers)`: all its processes are restarted until the block ends."""

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
        """Stops restarts and ends all processes with SIGTERM. `unexpected` lists those that did not end well."""
        self._over.set()
        self._thread.join()
        for post in self.posts:
            post.terminate_for_good()
        for post in self.posts:
            post.wait_for_leaving()

    def __exit__(self, *_: object) -> None:
        self._over.set()
