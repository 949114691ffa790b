"""Redis is disposable: killed, frozen or flushed, submits answer at once, tasks end, and the bell is heard again."""

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import redis
from procs import Process, Processes, until
from sandbox_server import Server
from stage import environment, own_database

from app.accounts.credentials import sign_token
from app.queue import QUEUE
from app.settings import Settings
from tests.makers import TEXT_MODEL
from tests.services import MISSING, RealServices, free_port

SUBMITS = 8
LONGEST_SUBMIT_SECONDS = 1.0


@dataclass
class Gateway:
    """An API and a worker of their own, on a Redis of their own that may be struck."""

    processes: Processes
    redis_port: int
    origin: str
    headers: dict[str, str] = field(default_factory=dict)
    server: Process | None = None

    def start_redis(self) -> None:
        words = ("--port", str(self.redis_port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no")
        self.server = self.processes.start("redis-server", *words, name="redis").says("Ready to accept connections")

    def client(self) -> "redis.Redis":
        return redis.Redis(port=self.redis_port, socket_timeout=2)

    def submit(self) -> str:
        """Must be accepted in less than a second."""
        began = time.monotonic()
        body = {"modelName": TEXT_MODEL, "prompt": "狗 [[sandbox: take 0.2]]"}
        answer = self._ask("POST", "/user/ai/tasks/submit", body)
        assert time.monotonic() - began < LONGEST_SUBMIT_SECONDS
        return str(answer["data"]["taskNo"])

    def status(self, task_no: str) -> str:
        return str(self._ask("GET", f"/user/ai/tasks/{task_no}")["data"]["status"])

    def readiness(self) -> str:
        return str(self._ask("GET", "/readyz")["data"]["redis"])

    def _ask(self, method: str, path: str, json: Any = None) -> Any:
        answer = httpx.request(method, self.origin + path, json=json, headers=self.headers, timeout=10, trust_env=False)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def all_complete(self, numbers: list[str]) -> None:
        for number in numbers:
            until(f"{number} ends", lambda number=number: self.status(number) in {"completed", "failed"}, 25)
            assert self.status(number) == "completed"

    def bell_is_heard(self) -> bool:
        """Whether a submit rings, and the worker takes the ring off the queue at once."""
        client = self.client()
        with contextlib.suppress(redis.RedisError):
            client.config_resetstat()
            self.submit()
            time.sleep(0.4)
            return "cmdstat_zadd" in client.info("commandstats") and client.zcard(QUEUE) == 0
        return False


@pytest.fixture(scope="module")
def gateway(
    real_services: RealServices | None, sandbox_server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    if real_services is None:
        pytest.skip(MISSING)
    if shutil.which("redis-server") is None and not os.environ.get("CI"):
        pytest.skip("redis-server is not on the PATH")
    redis_port, port = free_port(), free_port()
    with own_database() as url:
        env = environment(real_services, sandbox_server, url)
        env |= {"redis_url": f"redis://127.0.0.1:{redis_port}/0", "port": port, "submit_rate_per_minute": 300}
        env |= {"lease_seconds": 10}
        with Processes(tmp_path_factory.mktemp("redis"), env) as processes:
            gateway = Gateway(processes, redis_port, f"http://127.0.0.1:{port}")
            gateway.start_redis()
            worker, api = processes.gateway("worker"), processes.gateway("serve")
            user_id = _user(processes)
            gateway.headers = {"Authorization": f"Bearer {sign_token(Settings(_env_file=None, **env), user_id)}"}
            worker.says("worker_started")
            api.answers(f"{gateway.origin}/healthz")
            yield gateway
            assert [worker.code, api.code] == [None, None], "Redis took a process down with it"
            assert "Traceback" not in api.log()
            assert [worker.terminate(), api.terminate()] == [0, 0]
            processes.command("audit")


def _user(processes: Processes) -> int:
    return int(processes.command("users", "create", "--points", "5000").split()[-1])


@contextmanager
def killed(gateway: Gateway) -> Iterator[None]:
    assert gateway.server is not None
    gateway.server.kill()
    try:
        yield
    finally:
        gateway.start_redis()  # empty


@contextmanager
def frozen(gateway: Gateway) -> Iterator[None]:
    assert gateway.server is not None
    gateway.server.freeze()
    try:
        yield
    finally:
        gateway.server.thaw()


@contextmanager
def flushed_again_and_again(gateway: Gateway) -> Iterator[None]:
    over = threading.Event()

    def flush() -> None:
        while not over.wait(0.05):
            gateway.client().flushall()

    thread = threading.Thread(target=flush)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("fault", [killed, frozen, flushed_again_and_again])
def test_without_redis_submits_answer_and_tasks_end(
    gateway: Gateway, fault: Callable[[Gateway], contextlib.AbstractContextManager[None]]
) -> None:
    until("the bell is heard", gateway.bell_is_heard, 10)
    running = [gateway.submit() for _ in range(3)]
    with fault(gateway):
        numbers = running + [gateway.submit() for _ in range(SUBMITS)]
        is_away = fault is not flushed_again_and_again
        assert gateway.readiness() == ("warning: unreachable" if is_away else "ok")
        gateway.all_complete(numbers)
    # ARQ gives a silent Redis five seconds before it tries again; a dead one, one.
    until("the bell is heard again", gateway.bell_is_heard, 12)
    assert gateway.readiness() == "ok"
