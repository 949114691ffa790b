"""Push with real processes: API processes on MariaDB and Redis, many streams, SIGKILL, and a stop without waiting."""

import asyncio
import contextlib
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from app.accounts.credentials import sign_token
from app.accounts.users import create_user
from app.points import ledger
from app.tasks.submit import submit_task
from app.tasks.validation import Submission
from tests.support.makers import TEXT_MODEL
from tests.support.ports import free_port
from tests.support.processes.books import ENDED, Books, environment, open_books
from tests.support.processes.process import Process, Processes, script
from tests.support.responses import data
from tests.support.sandbox_server import Server
from tests.support.services import RealServices, own_database
from tests.support.streams import Door, Socket

USERS, TASKS = 100, 20
PATIENCE = 400.0


@pytest.fixture
def services(real_services: RealServices) -> RealServices:
    return real_services


@pytest.fixture
def ground(services: RealServices, sandbox_server: Server, tmp_path: Path) -> Iterator[tuple[Processes, Any]]:
    """Processes with their own database, none started yet, and their environment."""
    with own_database() as url:
        env = environment(services, sandbox_server, url)
        with Processes(tmp_path, env) as processes:
            yield processes, env


class Subscription:
    """A user, the submitted tasks, the received states of each task in order, and the newest event id."""

    def __init__(self, user_id: int, token: str) -> None:
        self.user_id = user_id
        self.token = token
        self.submitted: set[str] = set()
        self.payload: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
        self.since = str(int(time.time() * 1000))
        self.is_listening = asyncio.Event()

    def take(self, message: dict[str, Any]) -> None:
        self.payload[message["data"]["taskNo"]].append((message["data"]["status"], message["data"]["progress"]))
        self.since = max(self.since, message["id"], key=int)

    def is_done(self) -> bool:
        return len(self.submitted) == TASKS and all(
            self.payload.get(no, [("", 0)])[-1][0] in ENDED for no in self.submitted
        )

    async def listen(self, socket: Socket) -> None:
        while not self.is_done():
            message = await socket.next(PATIENCE)
            if message["type"] == "task":
                self.take(message)

    def prove(self) -> None:
        """Every task of the user was received to its end and in order, and no task of another user."""
        assert set(self.payload) == self.submitted
        order = ["created", "queued", "processing", "completed", "failed"]
        for states in self.payload.values():
            ranks = [(order.index(status), progress) for status, progress in states]
            assert ranks == sorted(ranks), states


async def arrive(books: Books, number: int) -> list[Subscription]:
    """Users with points for all their submits."""
    database, people = books.runtime.database, []
    for _ in range(number):
        user_id = await create_user(database)
        await ledger.grant(database, user_id=user_id, points=30 * TASKS, ref=f"push:{user_id}")
        people.append(Subscription(user_id, sign_token(books.runtime.settings, user_id)))
    return people


async def submit(books: Books, people: list[Subscription], number: int) -> None:
    """The same number for each user, eight at a time. Four of five fail, so that they need no storage."""
    slots = asyncio.Semaphore(8)

    async def one(who: Subscription, n: int) -> None:
        prompt = f'{who.user_id}.{n} [[sandbox: {{"end": "failed"}}]]' if n % 5 else f"{who.user_id}.{n}"
        async with slots:
            result = await submit_task(books.runtime, who.user_id, Submission(TEXT_MODEL, prompt))
        who.submitted.add(result.row["task_no"])

    await asyncio.gather(*(one(who, n) for n in range(number) for who in people))


def start_two(processes: Processes) -> tuple[list[Process], list[Door]]:
    """Two API processes and a worker."""
    doors = [Door(free_port()) for _ in range(2)]
    serving = [processes.gateway("serve", port=door.port) for door in doors]
    processes.worker()
    for process, door in zip(serving, doors, strict=True):
        process.answers(door.origin + "/healthz")
    return serving, doors


def test_every_user_receives_their_own_ends_over_two_processes(
    ground: tuple[Processes, dict[str, Any]],
) -> None:
    processes, env = ground
    serving, doors = start_two(processes)

    async def work() -> None:
        async with open_books(env) as books, contextlib.AsyncExitStack() as stack:
            people = await arrive(books, USERS)
            listening = []
            for n, who in enumerate(people):
                socket = await stack.enter_async_context(doors[n % 2].payload(who.token))
                listening.append(asyncio.create_task(who.listen(socket)))
            await submit(books, people, TASKS)
            async with asyncio.timeout(PATIENCE):
                await asyncio.gather(*listening)
            for who in people:
                who.prove()
            await books.prove()

    asyncio.run(work())
    for process in serving:
        assert "Traceback" not in process.log()


def test_after_a_kill_the_other_process_reports_what_was_missed(ground: tuple[Processes, dict[str, Any]]) -> None:
    processes, env = ground
    serving, doors = start_two(processes)

    async def follow(who: Subscription) -> None:
        with contextlib.suppress(ConnectionClosed):
            async with doors[0].payload(who.token) as socket:
                who.is_listening.set()
                await who.listen(socket)
        assert not who.is_done()
        async with doors[1].payload(who.token, who.since) as socket:
            await who.listen(socket)

    async def work() -> None:
        async with open_books(env) as books:
            people = await arrive(books, 20)
            following = [asyncio.create_task(follow(who)) for who in people]
            async with asyncio.timeout(PATIENCE):
                await asyncio.gather(*(who.is_listening.wait() for who in people))
            await submit(books, people, TASKS // 2)
            async with asyncio.timeout(PATIENCE):
                while sum(len(who.payload) for who in people) < 50:
                    await asyncio.sleep(0.02)
            serving[0].kill()
            await submit(books, people, TASKS - TASKS // 2)
            async with asyncio.timeout(PATIENCE):
                await asyncio.gather(*following)
            for who in people:
                assert set(who.payload) == who.submitted
            await books.prove()

    asyncio.run(work())


@pytest.mark.parametrize("command", ["gateway", "uvicorn"])
def test_a_stop_waits_for_no_stream_and_no_ticket_is_logged(
    ground: tuple[Processes, dict[str, Any]], command: str
) -> None:
    processes, env = ground
    door = Door(free_port())
    if command == "gateway":
        process = processes.gateway("serve", port=door.port, log_level="DEBUG")
    else:
        process = processes.start(script("uvicorn"), "app.main:create_app", "--factory", "--port", str(door.port))
    process.answers(door.origin + "/healthz")
    tickets = asyncio.run(_end_it(door, env, process))
    assert process.ends(15) == (0 if command == "gateway" else -signal.SIGTERM)
    for ticket in tickets:
        assert ticket not in process.log()
    if command == "uvicorn":  # it logs requests, so the tickets could be in the log
        assert "/user/ai/tasks/ws?***" in process.log()
        assert "/user/ai/tasks/events?***" in process.log()
    assert "Traceback" not in process.log()


async def _end_it(door: Door, env: dict[str, Any], process: Process) -> list[str]:
    """SIGTERM while a socket, a stream and a wait are open. Returns the tickets of the first two."""
    async with open_books(env) as books, httpx.AsyncClient(base_url=door.origin, trust_env=False) as client:
        task_no = await books.submit("没有人做")
        headers = {"Authorization": f"Bearer {sign_token(books.runtime.settings, books.user_id)}"}
        wait = client.get(f"/user/ai/tasks/{task_no}?wait=60", headers=headers, timeout=60)
        waiting = asyncio.create_task(wait)
        tickets = [await door.ticket(headers) for _ in range(2)]
        async with door.socket(f"?ticket={tickets[0]}") as socket, door.events(f"?ticket={tickets[1]}") as events:
            assert await socket.next() == {"type": "auth", "ok": True}
            await asyncio.sleep(1)
            process.send(signal.SIGTERM)
            assert await socket.code() == 1012
            assert await events.next_block() == {"event": "end", "data": '{"code":1012}'}
            assert data(await waiting)["status"] == "created"
    return tickets
