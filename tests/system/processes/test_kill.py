"""SIGKILL and SIGSTOP at every failpoint of a task. Another process takes over, and nothing is paid twice.

Each case has its own database. The cases mostly wait, so several run at the same time.
"""

import asyncio
import itertools
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from app.accounts.api_keys import create_key
from app.accounts.credentials import sign_token
from app.failpoints import FAILPOINTS
from app.settings import Settings
from app.tables import tasks
from tests.support.makers import TEXT_MODEL
from tests.support.ports import free_port
from tests.support.processes.books import (
    JWT_SECRET,
    LEASE_SECONDS,
    Books,
    accepted,
    environment,
    open_books,
)
from tests.support.processes.process import Process, Processes
from tests.support.sandbox_server import KEY, Server
from tests.support.services import RealServices, own_database
from tests.support.waiting import wait_until

API_POINTS = frozenset({"submit.before_commit", "submit.after_commit"})
DISPATCHER_POINTS = frozenset({"webhook.after_send"})  # tested in test_webhooks.py
WORKER_POINTS = sorted(FAILPOINTS - API_POINTS - DISPATCHER_POINTS)
NOBODY_KNOWS = frozenset({"submit.after_intent", "submit.after_answer"})
FROZEN_POINTS = ["task.claimed", "submit.before_intent", "submit.after_intent", "submit.after_answer"]
FROZEN_POINTS += ["poll.after_answer", "rehost.after_upload", "finish.before_commit"]
UP_POINTS = ["submit.before_commit", "submit.after_commit", "submit.after_answer", "poll.after_answer"]
UP_POINTS += ["rehost.after_upload", "finish.before_commit"]

SMOKE = dict.fromkeys([("kill_worker", "rehost.after_upload"), ("freeze_worker", "task.claimed")], pytest.mark.smoke)

_words = itertools.count(1)


@dataclass(frozen=True)
class Stage:
    """What a case needs: the services (None for SQLite), SEE2AI's stand-in, and a folder."""

    services: RealServices | None
    sandbox: Server
    folder: Path


@dataclass(frozen=True)
class Outcome:
    """The task's row at the end (None if nothing was stored) and the jobs that SEE2AI accepted for it."""

    row: dict[str, Any] | None
    jobs: int
    balance: tuple[int, int] = (0, 0)


@pytest.fixture
def outcome(
    request: pytest.FixtureRequest, case: tuple[Callable[..., Any], str], sandbox_server: Server, tmp_path: Path
) -> Any:
    """Runs the case of this test."""
    play, point = case
    services = None if play is kill_up else request.getfixturevalue("real_services")
    return play(Stage(services, sandbox_server, tmp_path), point)


def prompt_and_word() -> tuple[str, str]:
    """A prompt, and the word that identifies it in the request log."""
    word = f"case-{os.getpid()}-{next(_words)}-"
    return f'一只柴犬 {word} [[sandbox: {{"take_seconds": 0.3}}]]', word


# ------------------------------------------------------------------ the cases


def kill_worker(stage: Stage, point: str) -> Outcome:
    """A worker dies at the point. A new one takes over."""
    assert stage.services is not None
    with own_database() as url:
        env = environment(stage.services, stage.sandbox, url)
        with Processes(stage.folder, env) as processes:
            return asyncio.run(_kill_worker(stage, point, env, processes))


async def _kill_worker(stage: Stage, point: str, env: dict[str, Any], processes: Processes) -> Outcome:
    prompt, word = prompt_and_word()
    async with open_books(env) as books:
        task_no = await (books.submit_with_jobs(prompt) if point.startswith("prepare.") else books.submit(prompt))
        doomed = processes.gateway("worker", gateway_fault=f"{point}:kill:{stage.folder / 'struck'}")
        assert doomed.ends(120) == -signal.SIGKILL
        fresh = processes.worker()
        return await _proved(stage, books, task_no, word, [fresh])


def freeze_worker(stage: Stage, point: str) -> Outcome:
    """A worker freezes at the point for longer than its lease. Another takes over, then the first one continues."""
    assert stage.services is not None
    with own_database() as url:
        env = environment(stage.services, stage.sandbox, url)
        with Processes(stage.folder, env) as processes:
            return asyncio.run(_freeze_worker(stage, point, env, processes))


async def _freeze_worker(stage: Stage, point: str, env: dict[str, Any], processes: Processes) -> Outcome:
    prompt, word = prompt_and_word()
    async with open_books(env) as books:
        task_no = await books.submit(prompt)
        frozen = processes.gateway("worker", gateway_fault=f"{point}:stop:{stage.folder / 'struck'}")
        wait_until(f"{frozen.name} froze", frozen.is_frozen, 120)
        frozen_at = time.monotonic()
        other = processes.worker()
        [ended] = await books.all_ended()
        assert time.monotonic() - frozen_at > LEASE_SECONDS * 0.5, "taken over before its lease ended"
        frozen.thaw()
        await asyncio.sleep(1.5)
        assert await books.row(task_no) == ended, "the thawed worker changed an ended task"
        return await _proved(stage, books, task_no, word, [other, frozen])


async def _proved(stage: Stage, books: Books, task_no: str, word: str, workers: list[Process]) -> Outcome:
    await books.all_ended()
    for worker in workers:
        assert worker.terminate() == 0, f"{worker.name} ended badly"
    await books.prove()
    return Outcome(await books.row(task_no), len(accepted(stage.sandbox, word)))


def kill_api(stage: Stage, point: str) -> Outcome:
    """The API dies in a submit. Before its COMMIT nothing is stored or deducted, after it the task runs to its end."""
    assert stage.services is not None
    port = free_port()
    with own_database() as url:
        env = environment(stage.services, stage.sandbox, url) | {"port": port}
        with Processes(stage.folder, env) as processes:
            return asyncio.run(_kill_api(stage, point, env, processes))


async def _kill_api(stage: Stage, point: str, env: dict[str, Any], processes: Processes) -> Outcome:
    prompt, word = prompt_and_word()
    origin = f"http://127.0.0.1:{env['port']}"
    async with open_books(env) as books:
        key = await create_key(books.runtime.database, books.user_id)
        doomed = processes.gateway("serve", gateway_fault=f"{point}:kill:{stage.folder / 'struck'}")
        worker = processes.worker()
        doomed.answers(f"{origin}/healthz")
        with pytest.raises(httpx.TransportError):
            _submit(origin, {"X-API-Key": key}, prompt)
        assert doomed.ends() == -signal.SIGKILL
        rows = await books.rows()
        if rows:
            await books.all_ended()
        fresh = processes.gateway("serve").answers(f"{origin}/healthz")
        balance = _balance(origin, {"X-API-Key": key})
        assert [fresh.terminate(), worker.terminate()] == [0, 0]
        await books.prove()
        rows = await books.rows()
        return Outcome(rows[0] if rows else None, len(accepted(stage.sandbox, word)), balance)


def kill_up(stage: Stage, point: str) -> Outcome:
    """`gateway up` on SQLite dies at the point and is started again in the same folder."""
    port = free_port()
    env = {
        "port": port,
        "jwt_secret": JWT_SECRET,
        "see2ai_base_url": stage.sandbox.origin,
        "see2ai_api_key": KEY,
        "egress_allow": stage.sandbox.origin.removeprefix("http://"),
        "lease_seconds": LEASE_SECONDS,
    }
    with Processes(stage.folder, env) as processes:
        doomed = processes.gateway("up", gateway_fault=f"{point}:kill:{stage.folder / 'struck'}")
        origin = f"http://127.0.0.1:{port}"
        doomed.says("Stop with Ctrl-C").answers(f"{origin}/healthz")
        found = re.search(r"\(id (\d+)\)", doomed.log())
        assert found is not None
        user_id = int(found[1])
        settings = Settings(_env_file=None, **env)
        headers = {"Authorization": f"Bearer {sign_token(settings, user_id)}"}
        prompt, word = prompt_and_word()
        try:
            _submit(origin, headers, prompt)
        except httpx.TransportError:
            assert point in API_POINTS | {"submit.after_intent", "task.claimed"}, point
        assert doomed.ends() == -signal.SIGKILL
        fresh = processes.gateway("up").says("Stop with Ctrl-C").answers(f"{origin}/healthz")
        env["database_url"] = f"sqlite+aiosqlite:///{stage.folder}/var/gateway.db"
        return asyncio.run(_poll_at_up(stage, env, user_id, word, fresh, _balance(origin, headers)[0] == 1000))


async def _poll_at_up(
    stage: Stage, env: dict[str, Any], user_id: int, word: str, up: Process, is_untouched: bool
) -> Outcome:
    async with open_books(env, user_id=user_id) as books:
        rows = await books.rows()
        if rows:
            rows = await books.all_ended()
        else:
            assert is_untouched
        assert up.terminate() == 0
        await books.prove()
        return Outcome(rows[0] if rows else None, len(accepted(stage.sandbox, word)))


def _submit(origin: str, headers: dict[str, str], prompt: str) -> None:
    body = {"modelName": TEXT_MODEL, "prompt": prompt}
    httpx.post(f"{origin}/user/ai/tasks/submit", json=body, headers=headers, timeout=60, trust_env=False)


def _balance(origin: str, headers: dict[str, str]) -> tuple[int, int]:
    answer = httpx.get(f"{origin}/user/points/consumption/balance", headers=headers, timeout=60, trust_env=False)
    return answer.json()["data"]["balance"], answer.json()["data"]["held"]


def restart_often(stage: Stage, _point: str) -> list[dict[str, Any]]:
    """SIGTERM every three seconds while ten tasks run."""
    assert stage.services is not None
    with own_database() as url:
        env = environment(stage.services, stage.sandbox, url)
        with Processes(stage.folder, env) as processes:
            return asyncio.run(_restart_often(env, processes))


async def _restart_often(env: dict[str, Any], processes: Processes) -> list[dict[str, Any]]:
    async with open_books(env) as books:
        for seconds in range(10):
            await books.submit(f'再来一张 {seconds} [[sandbox: {{"take_seconds": {seconds + 1}}}]]')
        for _ in range(4):
            worker = processes.worker()
            await asyncio.sleep(3)
            assert worker.terminate() == 0
        processes.worker()
        rows = await books.all_ended()
        await books.prove()
        return rows


def kill_often(stage: Stage, _point: str) -> list[dict[str, Any]]:
    """Two workers with tasks. Each is killed in turn, at random points."""
    assert stage.services is not None
    with own_database() as url:
        env = environment(stage.services, stage.sandbox, url)
        with Processes(stage.folder, env) as processes:
            return asyncio.run(_kill_often(stage, env, processes))


async def _kill_often(stage: Stage, env: dict[str, Any], processes: Processes) -> list[dict[str, Any]]:
    async with open_books(env) as books:
        for number in range(20):
            await books.submit(f'轮流 kill-often-{number}- [[sandbox: {{"take_seconds": {1 + number % 5}}}]]')
        for pause in (0.15, 1.2, 2.3):
            worker = processes.worker()
            await asyncio.sleep(pause)
            worker.kill()
        processes.worker()
        rows = await books.all_ended()
        await books.prove()
        for number in range(20):
            assert len(accepted(stage.sandbox, f"kill-often-{number}-")) <= 1
        return rows


# ------------------------------------------------------------------ the tests


def test_the_connection_of_the_books_survives_long_pauses(real_services: RealServices, sandbox_server: Server) -> None:
    """With ten parallel cases, one may pause between two statements for longer than a gateway's lease."""

    async def rest(env: dict[str, Any]) -> None:
        async with open_books(env) as books, books.runtime.database.begin() as connection:
            await connection.execute(select(tasks.c.id))
            time.sleep(LEASE_SECONDS + 1)
            await connection.execute(select(tasks.c.id))

    with own_database() as url:
        asyncio.run(rest(environment(real_services, sandbox_server, url)))


def each(case: Callable[..., Any], points: list[str]) -> pytest.MarkDecorator:
    cases = [pytest.param((case, point), id=point, marks=SMOKE.get((case.__name__, point), ())) for point in points]
    return pytest.mark.parametrize("case", cases)


@each(kill_worker, WORKER_POINTS)
def test_a_killed_worker_is_replaced(outcome: Outcome, case: tuple[Any, str]) -> None:
    _check_end(outcome, case[1])


@each(freeze_worker, FROZEN_POINTS)
def test_a_worker_that_thaws_after_its_lease_sends_and_changes_nothing(outcome: Outcome, case: tuple[Any, str]) -> None:
    _check_end(outcome, case[1])


def _check_end(outcome: Outcome, point: str) -> None:
    assert outcome.row is not None
    if point in NOBODY_KNOWS:
        assert (outcome.row["status"], outcome.row["error_code"]) == ("failed", "UPSTREAM_UNCERTAIN")
        assert outcome.row["suspected_orphan"]
        assert outcome.jobs == (1 if point == "submit.after_answer" else 0)
    else:
        assert outcome.row["status"] == "completed", outcome.row["history"]
        assert not outcome.row["suspected_orphan"]
        assert outcome.jobs == 1


@each(kill_api, ["submit.before_commit"])
def test_an_api_killed_before_its_commit_has_stored_and_taken_nothing(outcome: Outcome) -> None:
    assert outcome == Outcome(None, 0, (1000, 0))


@each(kill_api, ["submit.after_commit"])
def test_an_api_killed_after_its_commit_leaves_one_task_that_runs_to_its_end(outcome: Outcome) -> None:
    assert outcome.row is not None
    assert (outcome.row["status"], outcome.jobs, outcome.balance) == ("completed", 1, (970, 0))


@each(kill_up, UP_POINTS)
def test_gateway_up_killed_and_started_again_resumes(outcome: Outcome, case: tuple[Any, str]) -> None:
    if case[1] == "submit.before_commit":
        assert outcome == Outcome(None, 0)
    else:
        _check_end(outcome, case[1])


@each(restart_often, [""])
def test_restarts_fail_no_task(outcome: list[dict[str, Any]]) -> None:
    assert [row["status"] for row in outcome] == ["completed"] * 10, [row["operator_note"] for row in outcome]


@each(kill_often, [""])
def test_many_kills_fail_only_what_nobody_can_know(outcome: list[dict[str, Any]]) -> None:
    failed = {row["error_code"] for row in outcome if row["status"] == "failed"}
    assert failed <= {"UPSTREAM_UNCERTAIN"}, [row["operator_note"] for row in outcome]
