"""Database, Redis, API and workers are killed at once and started again. Then all tasks end well.

The database and Redis belong to this test only, because they are killed.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.accounts.credentials import sign_token
from app.cli.migrate import migrate
from tests.chaos import servers
from tests.support.database_servers import Missing
from tests.support.makers import TEXT_MODEL
from tests.support.ports import free_port
from tests.support.processes.books import Books, accepted, environment, open_books
from tests.support.processes.process import Process, Processes
from tests.support.sandbox_server import Server
from tests.support.services import RealServices
from tests.support.sql import run_sql
from tests.support.waiting import wait_until

TASKS = 24
DATABASE = "gateway_test_killed"


@dataclass
class Gateway:
    """Two workers and an API on a database and a Redis that may be killed."""

    processes: Processes
    database: servers.Server
    redis: servers.Server
    env: dict[str, Any]
    ours: list[Process]

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.env['port']}"

    def start_ours(self) -> None:
        self.ours = [self.processes.gateway("worker") for _ in range(2)] + [self.processes.gateway("serve")]

    async def submit(self, books: Books, word: str, seconds: float = 1.0) -> httpx.Response:
        headers = {"Authorization": f"Bearer {sign_token(books.runtime.settings, books.user_id)}"}
        headers["Idempotency-Key"] = word
        body = {"modelName": TEXT_MODEL, "prompt": f'{word} [[sandbox: {{"take_seconds": {seconds}}}]]'}
        async with httpx.AsyncClient(base_url=self.origin, headers=headers, timeout=60, trust_env=False) as client:
            return await client.post("/user/ai/tasks/submit", json=body)

    async def submit_at_last(self, books: Books, word: str) -> str:
        """Like a caller with a key: repeats the submit until it has an answer."""
        end = time.monotonic() + 120
        while time.monotonic() < end:
            try:
                answer = await self.submit(books, word)
            except httpx.TransportError:
                await asyncio.sleep(0.2)
                continue
            if answer.status_code == 200:
                return str(answer.json()["data"]["taskNo"])
            assert answer.status_code == 503, answer.text
            await asyncio.sleep(0.2)
        raise AssertionError(f"{word} was never accepted")


@pytest.fixture
def gateway(real_services: RealServices, sandbox_server: Server, tmp_path: Path) -> Iterator[Gateway]:
    with Processes(tmp_path, {}) as processes:
        try:
            database, redis = servers.open_database_server(processes, tmp_path), servers.open_redis_server(processes)
        except Missing as error:
            pytest.skip(str(error))
        database.start()
        redis.start()
        root = f"mysql+asyncmy://root:@127.0.0.1:{database.port}/"
        asyncio.run(run_sql(root, f"CREATE DATABASE {DATABASE}"))
        migrate(root + DATABASE)
        env = environment(real_services, sandbox_server, root + DATABASE)
        env |= {"redis_url": f"redis://127.0.0.1:{redis.port}/0", "port": free_port()}
        env |= {"lease_seconds": 20}  # a restarted database is back before a lease ends
        processes.environment |= {name.upper(): str(value) for name, value in env.items()}
        gateway = Gateway(processes, database, redis, env, [])
        gateway.start_ours()
        yield gateway


def kill_everything(gateway: Gateway) -> None:
    for one in (gateway.database, gateway.redis, *gateway.ours):
        one.kill()
    # The gateway starts first. Its processes must wait for the database and must not end.
    gateway.start_ours()
    time.sleep(1.5)
    gateway.redis.start()
    gateway.database.start()


def restart_database(gateway: Gateway) -> None:
    gateway.database.stop()
    gateway.database.start()


@pytest.mark.parametrize("fault", [kill_everything, restart_database])
def test_it_resumes(gateway: Gateway, sandbox_server: Server, fault: Callable[[Gateway], None]) -> None:
    asyncio.run(_strike(gateway, sandbox_server, fault))


async def _strike(gateway: Gateway, sandbox: Server, fault: Callable[[Gateway], None]) -> None:
    words = [f"{fault.__name__}-{number:02d}-" for number in range(TASKS)]
    gateway.ours[-1].answers(f"{gateway.origin}/healthz")
    async with open_books(gateway.env) as books:
        payload = dict(zip(words[:12], [await gateway.submit_at_last(books, word) for word in words[:12]], strict=True))
        await asyncio.sleep(1.0)
        striking = asyncio.create_task(asyncio.to_thread(fault, gateway))
        late = await asyncio.gather(*[gateway.submit_at_last(books, word) for word in words[12:]])
        await striking
        payload |= dict(zip(words[12:], late, strict=True))
        rows = await books.all_ended()
        assert {word: row["task_no"] for word in words for row in rows if word in row["prompt"]} == payload
        assert len(rows) == TASKS, "a repeat became a task of its own"
        failed = {row["error_code"] for row in rows if row["status"] == "failed"}
        assert failed <= ({"UPSTREAM_UNCERTAIN"} if fault is kill_everything else set())
        assert max(len(accepted(sandbox, word)) for word in words) == 1
        await books.prove()
    for process in gateway.ours:
        wait_until(f"{process.name} lives", lambda process=process: process.code is None, 1)
        assert process.terminate() == 0
