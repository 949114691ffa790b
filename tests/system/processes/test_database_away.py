"""MySQL is away, hangs, or loses answers: submits answer 503 in bounded time, no process ends, all tasks end later.

The API and the worker each have their own proxy before the database.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy.engine import make_url

from app.accounts.credentials import sign_token
from app.points.redeem_codes import create_codes
from tests.support.makers import TEXT_MODEL
from tests.support.ports import free_port
from tests.support.processes.books import Books, accepted, environment, open_books
from tests.support.processes.process import Process, Processes
from tests.support.processes.proxy import Proxy, proxied
from tests.support.sandbox_server import Server
from tests.support.services import RealServices, own_database
from tests.support.waiting import until

AWAY_SECONDS = 2.5
MAX_ANSWER_SECONDS = 20.0  # less than the timeout of a hanging database, which is 25 s
MAX_HANG_SECONDS = 50.0

# What a worker commits, by a part of the SQL: a claim, the intent, SEE2AI's answer, the release of a row, the step to
# rehost, the end.
WORKER_COMMITS = (
    b"crashes=(tasks.crashes +",
    b"step='submitting'",
    b"upstream_task_id='",
    b"lease_until=NULL, tasks.",
)
WORKER_COMMITS += (b"step='rehost'", b"'settle'")


@dataclass
class Gateway:
    """An API and a worker, each behind a proxy. The books read the database directly."""

    env: dict[str, Any]
    api_proxy: Proxy
    worker_proxy: Proxy
    api: Process
    worker: Process
    origin: str
    sandbox: Server

    @property
    def word(self) -> str:
        """Identifies the prompts of this gateway in the request log."""
        return f"by-{self.api.pid}-"

    async def submit(self, books: Books, prompt: str, seconds: float = MAX_ANSWER_SECONDS) -> httpx.Response:
        body = {"modelName": TEXT_MODEL, "prompt": f"{self.word} {prompt}"}
        return await self.post(books, "/user/ai/tasks/submit", body, seconds)

    async def post(
        self, books: Books, path: str, body: dict[str, str], seconds: float = MAX_ANSWER_SECONDS
    ) -> httpx.Response:
        headers = {"Authorization": f"Bearer {sign_token(books.runtime.settings, books.user_id)}"}
        async with httpx.AsyncClient(base_url=self.origin, headers=headers, timeout=seconds, trust_env=False) as client:
            return await client.post(path, json=body)

    def set(self, mode: str) -> None:
        self.api_proxy.set(mode)
        self.worker_proxy.set(mode)

    async def heal(self, books: Books) -> None:
        """Ends the fault. Submits must be accepted again soon."""
        self.set("pass")
        end = time.monotonic() + 60
        while (
            answer := await self.submit(books, '好了 [[sandbox: {"take_seconds": 0.1}]]', MAX_HANG_SECONDS)
        ).status_code != 200:
            assert answer.status_code == 503
            assert time.monotonic() < end, answer.text
            await asyncio.sleep(0.2)


@contextmanager
def started(services: RealServices, sandbox: Server, folder: Path) -> Iterator[Gateway]:
    port = free_port()
    with ExitStack() as opened:
        url = make_url(opened.enter_context(own_database()))
        proxies = [opened.enter_context(proxied(url.host or "127.0.0.1", url.port or 3306)) for _ in range(2)]
        env = environment(services, sandbox, url.render_as_string(hide_password=False))
        through = [url.set(host="127.0.0.1", port=one.port).render_as_string(hide_password=False) for one in proxies]
        processes = opened.enter_context(Processes(folder, env | {"port": port}))
        worker = processes.gateway("worker", database_url=through[1])
        api = processes.gateway("serve", database_url=through[0])
        worker.says("worker_started")
        api.answers(f"http://127.0.0.1:{port}/healthz")
        yield Gateway(env, *proxies, api, worker, f"http://127.0.0.1:{port}", sandbox)
        assert [worker.terminate(), api.terminate()] == [0, 0]


@pytest.fixture(scope="module")
def services(real_services: RealServices) -> RealServices:
    return real_services


@pytest.fixture(scope="module")
def gateway(
    services: RealServices, sandbox_server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    with started(services, sandbox_server, tmp_path_factory.mktemp("database")) as gateway:
        yield gateway


@asynccontextmanager
async def proved(gateway: Gateway) -> AsyncIterator[Books]:
    """Both processes still run, every task ends, the books are right, and nothing was sent twice."""
    async with open_books(gateway.env) as books:
        before = len(accepted(gateway.sandbox, gateway.word))
        known = {row["id"] for row in await books.rows()}
        yield books
        assert [gateway.api.code, gateway.worker.code] == [None, None]
        rows = [row for row in await books.all_ended() if row["id"] not in known]
        await books.prove()
        assert len(accepted(gateway.sandbox, gateway.word)) - before <= len(rows)


@pytest.mark.parametrize("mode", ["refuse", "cut"])
def test_submits_answer_503_and_everything_ends_when_it_is_back(gateway: Gateway, mode: str) -> None:
    asyncio.run(_away(gateway, mode))


async def _away(gateway: Gateway, mode: str) -> None:
    seconds = MAX_HANG_SECONDS if mode == "blackhole" else MAX_ANSWER_SECONDS
    async with proved(gateway) as books:
        for number in range(4):
            answer = await gateway.submit(books, f'前 {number} [[sandbox: {{"take_seconds": {number}}}]]')
            assert answer.status_code == 200, answer.text

        async def are_accepted() -> bool:
            rows = [row for row in await books.rows() if row["user_id"] == books.user_id]
            return all(row["step"] not in {"prepare", "submit", "submitting"} for row in rows)

        # A job whose acceptance is not recorded would be refunded: nobody knows of it after the lease.
        await until("the four jobs are accepted", are_accepted, 60)
        gateway.set(mode)
        end = time.monotonic() + AWAY_SECONDS
        while time.monotonic() < end:
            for answer in await asyncio.gather(*[gateway.submit(books, "不在", seconds) for _ in range(3)]):
                assert answer.status_code == 503, answer.text
                assert answer.json()["errorCode"] == "UNAVAILABLE"
                assert int(answer.headers["retry-after"]) > 0
            await asyncio.sleep(0.2)
        await gateway.heal(books)
        rows = await books.all_ended()
        assert [row["status"] for row in rows if row["user_id"] == books.user_id] == ["completed"] * 5


def test_an_unanswered_commit_of_a_submit_is_one_task_and_one_deduction(gateway: Gateway) -> None:
    asyncio.run(_unanswered_submit(gateway))


async def _unanswered_submit(gateway: Gateway) -> None:
    async with proved(gateway) as books:
        gateway.api_proxy.lose = [b"INSERT INTO tasks"]
        answer = await gateway.submit(books, '没听见 [[sandbox: {"take_seconds": 0.1}]]')
        assert gateway.api_proxy.lost
        assert answer.status_code == 200, answer.text
        assert answer.json()["data"]["balance"] == 970
        rows = [row for row in await books.all_ended() if row["user_id"] == books.user_id]
        assert [(row["task_no"], row["status"]) for row in rows] == [(answer.json()["data"]["taskNo"], "completed")]


def test_an_unanswered_commit_of_a_redeem_is_answered_and_granted_once(gateway: Gateway) -> None:
    asyncio.run(_unanswered_redeem(gateway))


async def _unanswered_redeem(gateway: Gateway) -> None:
    async with proved(gateway) as books:
        database = books.runtime.database
        (code,) = await create_codes(database, count=1, points=50, batch=f"{gateway.word}{books.user_id}")
        gateway.api_proxy.lose = [b"UPDATE redeem_codes"]
        for _ in range(2):
            answer = await gateway.post(books, "/user/points/redeem", {"code": code})
            assert gateway.api_proxy.lost[-1] == b"UPDATE redeem_codes"
            assert answer.status_code == 200, answer.text
            assert answer.json()["data"] == {"points": 50, "balance": 1050, "expireTime": None}
        answer = await gateway.submit(books, '花掉 [[sandbox: {"take_seconds": 0.1}]]')
        assert answer.json()["data"]["balance"] == 1020


def test_a_worker_that_never_receives_of_its_commits_loses_no_task(gateway: Gateway) -> None:
    asyncio.run(_unanswered_worker(gateway))


async def _unanswered_worker(gateway: Gateway) -> None:
    async with proved(gateway) as books:
        gateway.worker_proxy.lose = list(WORKER_COMMITS)
        for number in range(len(WORKER_COMMITS)):
            await gateway.submit(books, f'听不见 {number} [[sandbox: {{"take_seconds": {number}}}]]')
            await asyncio.sleep(0.3)
        rows = [row for row in await books.all_ended() if row["user_id"] == books.user_id]
        assert sorted(gateway.worker_proxy.lost) == sorted(WORKER_COMMITS)
        assert {row["status"] for row in rows} == {"completed"}, [row["operator_note"] for row in rows]


def test_a_database_that_hangs_is_one_that_is_away(
    services: RealServices, sandbox_server: Server, tmp_path: Path
) -> None:
    with started(services, sandbox_server, tmp_path) as gateway:
        asyncio.run(_away(gateway, "blackhole"))
