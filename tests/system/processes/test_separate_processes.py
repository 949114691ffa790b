"""The whole gateway: MariaDB or MySQL, Redis, S3, with separate processes for API, worker and upstream."""

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.settings import Settings
from app.storage import open_object_store
from tests.support.makers import TEXT_MODEL
from tests.support.ports import free_port
from tests.support.processes.books import JWT_SECRET
from tests.support.processes.process import Processes, script
from tests.support.services import RealServices, own_database
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[3]
TASKS = 16
pytestmark = pytest.mark.worlds("real")  # with --all also on MySQL 9.7


class Caller:
    """Uses the public API, in turns with each API process."""

    def __init__(self, origins: list[str], headers: dict[str, str]) -> None:
        self._clients = [httpx.Client(base_url=one, headers=headers, timeout=60, trust_env=False) for one in origins]
        self._turn = 0

    def _client(self) -> httpx.Client:
        self._turn += 1
        return self._clients[self._turn % len(self._clients)]

    def submit(self, prompt: str) -> str:
        body = {"modelName": TEXT_MODEL, "prompt": prompt}
        answer = self._client().post("/user/ai/tasks/submit", json=body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["data"]["taskNo"])

    def task(self, task_no: str) -> dict[str, Any]:
        answer = self._client().get(f"/user/ai/tasks/{task_no}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json()["data"])

    def ended(self, task_no: str) -> dict[str, Any]:
        wait_until(f"{task_no} ends", lambda: self.task(task_no)["status"] in {"completed", "failed"})
        return self.task(task_no)

    def balance(self) -> tuple[int, int]:
        data = self._client().get("/user/points/consumption/balance").json()["data"]
        return data["balance"], data["held"]


@pytest.fixture
def services(request: pytest.FixtureRequest, world_name: str) -> RealServices:
    found: RealServices = request.getfixturevalue(f"{world_name}_services")
    return found


def settings(services: RealServices, database_url: str, upstream_port: int) -> dict[str, Any]:
    return services.settings() | {
        "database_url": database_url,
        "see2ai_base_url": f"http://127.0.0.1:{upstream_port}",
        "see2ai_api_key": "sk-of-the-upstream",
        "egress_allow": f"127.0.0.1:{upstream_port}",
        "jwt_secret": JWT_SECRET,
        "submit_rate_per_minute": 1000,
    }


def test_two_apis_two_workers_and_an_upstream_share_the_work(
    services: RealServices, world_name: str, tmp_path: Path
) -> None:
    ports = [free_port() for _ in range(3)]
    origins = [f"http://127.0.0.1:{port}" for port in ports[:2]]
    with (
        own_database(world_name, empty=True) as url,
        Processes(tmp_path, settings(services, url, ports[2]), real_starts=True) as processes,
    ):
        upstream = processes.gateway("sandbox", "--port", str(ports[2]), "--api-key", "sk-of-the-upstream")
        processes.command("migrate")
        workers = [processes.gateway("worker") for _ in range(2)]
        apis = [processes.gateway("serve", port=port) for port in ports[:2]]
        user = json.loads(processes.command("users", "create", "--points", "1000", "--json"))["userId"]
        credentials = _credentials(processes, user)
        for process, port in zip([*apis, upstream], ports, strict=True):
            process.answers(f"http://127.0.0.1:{port}/")
        by_token = Caller(origins, {"Authorization": f"Bearer {credentials['token']}"})
        by_key = Caller(origins, {"X-API-Key": credentials["apiKey"]})
        assert by_token.balance() == by_key.balance() == (1500, 0)
        for worker in workers:
            worker.says("worker_started")
        for image in _work(by_token, by_key):
            assert _stored(services, image).startswith(b"\xff\xd8")
        assert min(worker.log().count('"see2ai_submit"') for worker in workers) > 0
        assert min(api.log().count('"task_submitted"') for api in apis) > 0
        for process in [*apis, *workers, upstream]:
            assert process.terminate() == 0, process.name
        assert json.loads(processes.command("audit", "--json")) == {"ok": True, "violations": []}


def _credentials(processes: Processes, user: int) -> dict[str, Any]:
    """A token, a key, and 500 points that are granted twice with one reference."""
    grant = ("points", "grant", str(user), "500", "--ref", "order-1", "--json")
    commands = [("users", "token", str(user), "--json"), ("keys", "create", str(user), "--json"), grant, grant]
    with ThreadPoolExecutor(2) as pool:
        answers = [json.loads(text) for text in pool.map(lambda words: processes.command(*words), commands)]
    assert sorted(answer["applied"] for answer in answers[2:]) == [False, True]
    assert [answer["balance"] for answer in answers[2:]] == [1500, 1500]
    return answers[0] | answers[1]


def _stored(services: RealServices, url: str) -> bytes:
    """The object in the bucket for a result's URL, read with the bucket's key: this S3 needs signatures."""
    base = f"{services.s3.endpoint}/{services.s3.bucket}/gateway/"
    assert url.startswith(base + "results/"), url

    async def read() -> bytes:
        found = await open_object_store(Settings(_env_file=None, **services.settings())).open(url.removeprefix(base))
        assert found is not None
        return b"".join([chunk async for chunk in found.content])

    return asyncio.run(read())


def _work(by_token: Caller, by_key: Caller) -> list[str]:
    """Sixteen tasks that complete and one that fails. Returns the pictures' URLs."""
    urls = []
    failing = by_key.submit('不要 [[sandbox: {"take_seconds": 0.3, "end": "failed", "text": "no"}]]')
    numbers = []
    for n in range(TASKS):
        numbers.append((by_token, by_key)[n % 2].submit(f'第{n}张 [[sandbox: {{"take_seconds": 0.3}}]]'))
        time.sleep(0.13)  # each with a wakeup; all at once, one worker might take them all
    for number in numbers:
        task = by_key.ended(number)
        assert (task["status"], task["progress"]) == ("completed", 100), task
        urls.append(task["resultUrl"])
    task = by_token.ended(failing)
    assert (task["status"], task["pointsRefunded"], task["resultUrl"]) == ("failed", 30, None)
    assert by_token.balance() == (1500 - 30 * TASKS, 0)
    return urls


def test_the_conventional_commands_work_too(services: RealServices, world_name: str, tmp_path: Path) -> None:
    """`alembic upgrade head`, `uvicorn app.main:create_app --factory`, `arq worker.main.WorkerSettings`."""
    port, upstream_port = free_port(), free_port()
    with (
        own_database(world_name, empty=True) as url,
        Processes(tmp_path, settings(services, url, upstream_port), real_starts=True) as processes,
    ):
        upstream = processes.gateway("sandbox", "--port", str(upstream_port), "--api-key", "sk-of-the-upstream")
        assert processes.start(script("alembic"), "upgrade", "head", cwd=ROOT).ends(120) == 0
        api = processes.start(script("uvicorn"), "app.main:create_app", "--factory", "--port", str(port))
        worker = processes.start(script("arq"), "worker.main.WorkerSettings")
        user = json.loads(processes.command("users", "create", "--points", "100", "--json"))["userId"]
        token = json.loads(processes.command("users", "token", str(user), "--json"))["token"]
        api.answers(f"http://127.0.0.1:{port}/healthz")
        upstream.answers(f"http://127.0.0.1:{upstream_port}/")
        caller = Caller([f"http://127.0.0.1:{port}"], {"Authorization": f"Bearer {token}"})
        good, bad = (
            caller.submit('好 [[sandbox: {"take_seconds": 0.3}]]'),
            caller.submit('坏 [[sandbox: {"take_seconds": 0.3, "end": "failed"}]]'),
        )
        assert caller.ended(good)["status"] == "completed"
        assert caller.ended(bad)["status"] == "failed"
        running = caller.submit('停 [[sandbox: {"take_seconds": 3}]]')
        wait_until("the job runs", lambda: caller.task(running)["status"] == "processing")
        worker.terminate()  # ARQ ends with its own exit code
        processes.worker()
        assert caller.ended(running)["status"] == "completed"
        assert caller.balance() == (40, 0)
