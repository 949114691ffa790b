"""Redis is killed, frozen, full or flushed: submits answer at once, tasks end, and wakeups work again afterwards."""

import contextlib
import os
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import redis

from app.accounts.credentials import sign_token
from app.messaging.redis import queue_name
from app.settings import Settings
from tests.support.makers import TEXT_MODEL
from tests.support.ports import free_port
from tests.support.processes.books import environment
from tests.support.processes.process import Process, Processes
from tests.support.sandbox_server import Server
from tests.support.services import RealServices, own_database
from tests.support.waiting import wait_until

SUBMITS = 8
REFUSES = "warning: refuses writes"
MAX_SUBMIT_SECONDS = 3.0  # less than the timeout of any Redis client of ours


@dataclass
class Gateway:
    """An API and a worker with their own Redis, which may be disturbed."""

    processes: Processes
    redis_port: int
    origin: str
    queue: str
    headers: dict[str, str] = field(default_factory=dict)
    server: Process | None = None

    def start_redis(self) -> None:
        words = ("--port", str(self.redis_port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no")
        self.server = self.processes.start("redis-server", *words, name="redis").says("Ready to accept connections")

    def client(self) -> "redis.Redis":
        return redis.Redis(port=self.redis_port, socket_timeout=10)

    def submit(self) -> str:
        return self.timed_submit()[0]

    def timed_submit(self) -> tuple[str, float]:
        """The submit must be accepted. Returns its task and the seconds it took."""
        began = time.monotonic()
        body = {"modelName": TEXT_MODEL, "prompt": '狗 [[sandbox: {"take_seconds": 0.2}]]'}
        answer = self._send_request("POST", "/user/ai/tasks/submit", body)
        return str(answer["data"]["taskNo"]), time.monotonic() - began

    def status(self, task_no: str) -> str:
        return str(self._send_request("GET", f"/user/ai/tasks/{task_no}")["data"]["status"])

    def readiness(self) -> str:
        return str(self._send_request("GET", "/readyz")["data"]["redis"])

    def _send_request(self, method: str, path: str, json: Any = None) -> Any:
        answer = httpx.request(method, self.origin + path, json=json, headers=self.headers, timeout=60, trust_env=False)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def all_complete(self, numbers: list[str]) -> None:
        for number in numbers:
            wait_until(f"{number} ends", lambda number=number: self.status(number) in {"completed", "failed"})
            assert self.status(number) == "completed"

    def wakeup_is_received(self) -> bool:
        """Whether a submit sends a wakeup and the worker takes it off the queue at once."""
        client = self.client()
        with contextlib.suppress(redis.RedisError):
            client.config_resetstat()
            self.submit()
            end = time.monotonic() + 5
            while time.monotonic() < end:
                if "cmdstat_zadd" in client.info("commandstats") and client.zcard(self.queue) == 0:
                    return True
                time.sleep(0.05)
        return False


@pytest.fixture(scope="module")
def gateway(
    real_services: RealServices, sandbox_server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    if shutil.which("redis-server") is None and not os.environ.get("CI"):
        pytest.skip("redis-server is not on the PATH")
    redis_port, port = free_port(), free_port()
    with own_database() as url:
        env = environment(real_services, sandbox_server, url)
        env |= {"redis_url": f"redis://127.0.0.1:{redis_port}/0", "port": port, "submit_rate_per_minute": 3000}
        env |= {"lease_seconds": 10}
        with Processes(tmp_path_factory.mktemp("redis"), env) as processes:
            queue = queue_name(Settings(_env_file=None, **env))
            gateway = Gateway(processes, redis_port, f"http://127.0.0.1:{port}", queue)
            gateway.start_redis()
            worker, api = processes.gateway("worker"), processes.gateway("serve")
            user_id = _user(processes)
            gateway.headers = {"Authorization": f"Bearer {sign_token(Settings(_env_file=None, **env), user_id)}"}
            worker.says("worker_started")
            api.answers(f"{gateway.origin}/healthz")
            yield gateway
            assert [worker.code, api.code] == [None, None], "a process ended because of Redis"
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


@contextmanager
def full(gateway: Gateway) -> Iterator[None]:
    """Redis answers and refuses every write."""
    gateway.client().config_set("maxmemory", "1")
    try:
        with pytest.raises(redis.ResponseError):
            gateway.client().set("anything", "x")
        yield
    finally:
        gateway.client().config_set("maxmemory", "0")


@pytest.mark.parametrize("fault", [killed, frozen, full, flushed_again_and_again])
def test_without_redis_submits_answer_and_tasks_end(
    gateway: Gateway, fault: Callable[[Gateway], contextlib.AbstractContextManager[None]]
) -> None:
    wait_until("wakeups work", gateway.wakeup_is_received)
    running = [gateway.submit() for _ in range(3)]
    with fault(gateway):
        timed = [gateway.timed_submit() for _ in range(SUBMITS)]
        assert statistics.median(seconds for _, seconds in timed) < MAX_SUBMIT_SECONDS
        payload = {killed: "warning: unreachable", frozen: "warning: unreachable", full: REFUSES}.get(fault, "ok")
        wait_until(f"/readyz says {payload}", lambda: gateway.readiness() == payload)
        gateway.all_complete(running + [number for number, _ in timed])
    # ARQ retries after five seconds if Redis is silent, and after one second if it is dead.
    wait_until("wakeups work again", gateway.wakeup_is_received)
    wait_until("/readyz says ok", lambda: gateway.readiness() == "ok")
