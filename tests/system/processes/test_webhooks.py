"""Webhooks of real workers: killed between sending and recording, without Redis, and without the database."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import make_url

from app.tasks.cancel import cancel_task
from app.tasks.submit import submit_task
from app.tasks.validation import Submission
from app.webhooks.signing_secrets import get_secrets
from tests.support.makers import TEXT_MODEL
from tests.support.ports import free_port
from tests.support.processes.books import Books, environment, open_books
from tests.support.processes.process import Processes
from tests.support.processes.proxy import proxied
from tests.support.sandbox_server import Server
from tests.support.services import RealServices, own_database
from tests.support.webhook_receivers import Receiver, ended_deliveries, outbox, receiving

NOBODY = "redis://127.0.0.1:1/0"
Play = Callable[["Scene"], Awaitable[None]]


@dataclass(frozen=True)
class Scene:
    """A database, a receiver that the gateway may call, and processes without Redis."""

    env: dict[str, Any]
    books: Books
    receiver: Receiver
    processes: Processes


@pytest.fixture
def open_scene(real_services: RealServices, sandbox_server: Server, tmp_path: Path) -> Iterator[Callable[[Play], None]]:
    port = free_port()
    with own_database() as url:
        env = environment(real_services, sandbox_server, url) | {"redis_url": NOBODY}
        env["egress_allow"] += f",127.0.0.1:{port}"

        async def perform(play: Play) -> None:
            with Processes(tmp_path, env) as processes:
                async with receiving(port) as receiver, open_books(env | {"redis_url": "memory://"}) as books:
                    await play(Scene(env, books, receiver, processes))

        yield lambda play: asyncio.run(perform(play))


async def end_a_task(scene: Scene) -> str:
    """A task that its caller cancels, with a callbackUrl."""
    runtime, user_id = scene.books.runtime, scene.books.user_id
    requested = Submission(TEXT_MODEL, "一只柴犬", callback_url=scene.receiver.url)
    task_no = str((await submit_task(runtime, user_id, requested)).row["task_no"])
    await cancel_task(runtime, user_id, task_no)
    return task_no


def test_a_worker_killed_between_sending_and_recording_reports_it_again(
    open_scene: Callable[[Play], None], tmp_path: Path
) -> None:
    async def play(scene: Scene) -> None:
        runtime, receiver = scene.books.runtime, scene.receiver
        task_no = await end_a_task(scene)
        doomed = scene.processes.gateway("worker", gateway_fault=f"webhook.after_send:kill:{tmp_path / 'struck'}")
        assert await asyncio.to_thread(doomed.ends, 120) == -signal.SIGKILL
        (row,) = await outbox(runtime)
        assert (row["status"], row["attempts"], row["outcome"]) == ("pending", 1, None)
        assert len(receiver.received) == 1
        scene.processes.gateway("worker")
        (row,) = await ended_deliveries(runtime, 1, 120)
        assert (row["status"], row["attempts"]) == ("delivered", 2)
        secret = (await get_secrets(runtime.database, scene.books.user_id)).secret
        assert [received.id for received in receiver.received] == [f"msg_{task_no}"] * 2
        assert receiver.received[0].verified(secret) == receiver.received[1].verified(secret)

    open_scene(play)


def test_a_database_that_goes_and_comes_is_waited_for(open_scene: Callable[[Play], None]) -> None:
    async def play(scene: Scene) -> None:
        url = make_url(scene.env["database_url"])
        with proxied(str(url.host), int(url.port or 3306)) as proxy:
            through = url.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
            worker = scene.processes.gateway("worker", database_url=through)
            await end_a_task(scene)
            await ended_deliveries(scene.books.runtime, 1, 120)
            proxy.set("refuse")
            await end_a_task(scene)
            await asyncio.sleep(3)
            assert len(scene.receiver.received) == 1
            assert worker.code is None
            proxy.set("pass")
            await ended_deliveries(scene.books.runtime, 2, 90)
            assert len({received.id for received in scene.receiver.received}) == 2

    open_scene(play)
