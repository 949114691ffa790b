"""Nodes whose clocks are ten minutes off: only the database's clock decides what is due, leased, expired or overdue."""

import asyncio
import sys
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from app.accounts.api_keys import create_key
from app.accounts.users import create_user
from app.points import ledger
from tests.support.makers import TEXT_MODEL
from tests.support.ports import free_port
from tests.support.processes import skewed_node
from tests.support.processes.books import Books, accepted, environment, open_books
from tests.support.processes.process import Process, Processes
from tests.support.sandbox_server import Server, directive
from tests.support.services import RealServices, own_database

SKEW_SECONDS = 600
DEADLINE_SECONDS = 45  # the successful ones need ten, and more on a busy machine
GOOD = 6


def start(processes: Processes, command: str, seconds: int, **environment: Any) -> Process:
    words = (sys.executable, skewed_node.__file__, command)
    return processes.start(*words, name=f"{command}-{seconds}", skew_seconds=seconds, **environment)


def test_the_databases_clock_decides(real_services: RealServices, sandbox_server: Server, tmp_path: Path) -> None:
    with ExitStack() as opened:
        env = environment(real_services, sandbox_server, opened.enter_context(own_database()))
        env |= {"task_deadline_seconds": DEADLINE_SECONDS, "pythonpath": str(Path(__file__).parents[3])}
        processes = opened.enter_context(Processes(tmp_path, env))
        ports = {skew: free_port() for skew in (-SKEW_SECONDS, SKEW_SECONDS)}
        workers = {skew: start(processes, "worker", skew) for skew in ports}
        apis = {skew: start(processes, "serve", skew, port=port) for skew, port in ports.items()}
        for skew, port in ports.items():
            workers[skew].says("worker_started")
            apis[skew].answers(f"http://127.0.0.1:{port}/healthz")
            _is_off(workers[skew], skew)
        asyncio.run(_run(env, {skew: f"http://127.0.0.1:{port}" for skew, port in ports.items()}, sandbox_server))
        for process in (*workers.values(), *apis.values()):
            assert "lease_lost" not in process.log(), "a valid lease was taken over"
            assert process.terminate() == 0


def _is_off(process: Process, seconds: int) -> None:
    """Checks that the node uses the wrong clock, by the times in its log."""
    payload = datetime.fromisoformat(process.log().partition('"timestamp": "')[2].partition('"')[0])
    off = (payload - datetime.now(UTC)).total_seconds()
    assert abs(off - seconds) < SKEW_SECONDS / 2, f"the clock of {process.name} is off by {off} s"


async def _run(env: dict[str, Any], origins: dict[int, str], sandbox: Server) -> None:
    async with open_books(env) as books:
        key = await create_key(books.runtime.database, books.user_id)
        # Longer than a lease in one task. If a node's clock decided, the other worker would take it over.
        for number in range(GOOD):
            prompt = f"clock-{number}- " + directive(
                {"take_seconds": 0.2}, {"where": "poll", "fault": "hang", "seconds": 7, "times": 1}
            )
            assert (await _submit(list(origins.values())[number % 2], key, prompt)).status_code == 200
        assert (
            await _submit(origins[SKEW_SECONDS], key, 'clock-late- [[sandbox: {"end": "never"}]]')
        ).status_code == 200
        await _points_expire_by_the_same_clock(books, origins)
        for row in await books.all_ended():
            lived = (row["completed_at"] - row["created_at"]).total_seconds()
            if "clock-late-" in row["prompt"]:
                assert (row["status"], row["error_code"]) == ("failed", "TIMED_OUT")
                assert DEADLINE_SECONDS - 1 < lived < SKEW_SECONDS / 2
            else:
                assert row["status"] == "completed", row["history"]
                assert lived < SKEW_SECONDS / 2
            born = row["created_at"].replace(tzinfo=UTC)
            assert abs((datetime.now(UTC) - born).total_seconds()) < SKEW_SECONDS / 2
        for number in range(GOOD):
            assert len(accepted(sandbox, f"clock-{number}-")) == 1
        await books.prove()


async def _points_expire_by_the_same_clock(books: Books, origins: dict[int, str]) -> None:
    """Points for a minute are valid on the node that is ahead. Points for seconds are expired on the one behind."""
    for skew, seconds, status in ((SKEW_SECONDS, 60, 200), (-SKEW_SECONDS, 5, 402)):
        user_id = await create_user(books.runtime.database)
        expires = datetime.now(UTC) + timedelta(seconds=seconds)
        await ledger.grant(books.runtime.database, user_id=user_id, points=30, ref=f"clock:{skew}", expires=expires)
        key = await create_key(books.runtime.database, user_id)
        if status == 402:
            await asyncio.sleep(seconds + 0.5)
        answer = await _submit(origins[skew], key, 'clock-points- [[sandbox: {"take_seconds": 0.1}]]')
        assert answer.status_code == status, answer.text


async def _submit(origin: str, key: str, prompt: str) -> httpx.Response:
    body = {"modelName": TEXT_MODEL, "prompt": prompt}
    async with httpx.AsyncClient(base_url=origin, headers={"X-API-Key": key}, timeout=60, trust_env=False) as client:
        return await client.post("/user/ai/tasks/submit", json=body)
