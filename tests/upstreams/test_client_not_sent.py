"""Whatever goes wrong before the first byte of a submit: the job was not sent, and is no suspected orphan."""

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from app.settings import Settings
from app.telemetry import logs
from app.upstreams.protocol import ResultKind
from app.upstreams.see2ai import client
from app.upstreams.see2ai.actions import ACTIONS
from app.upstreams.see2ai.client import See2aiClient
from tests.support.makers import Maker
from tests.support.ports import dead_port
from tests.support.raw_connections import GONE
from tests.support.sandbox_server import Server
from tests.support.task_rows import row_of
from tests.support.waiting import until

pytestmark = pytest.mark.anyio
ACTION = ACTIONS["see2ai_image_generation_fast_v1"]
GOOD = {"prompt": "x"}


@asynccontextmanager
async def listening(answer: bytes = b"") -> AsyncIterator[tuple[str, list[bytes]]]:
    """The origin of somebody who notes what each connection brings."""
    brought: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(*GONE):
            brought.append(await reader.read(10_000))
            writer.write(answer)
            writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", brought
    finally:
        server.close()


async def submit(origin: str, request: Any = GOOD, **changes: Any) -> client.UpstreamResult:
    settings = Settings(_env_file=None, see2ai_base_url="http://a.example", see2ai_api_key="sk-x")
    see2ai = See2aiClient(settings.model_copy(update={"see2ai_base_url": origin} | changes))
    try:
        return await see2ai.submit(ACTION, request, may_send=lambda: True)
    finally:
        await see2ai.close()


REQUESTS = {"NaN": {"prompt": float("nan")}, "no JSON": {"prompt": object()}, "no UTF-8": {"prompt": "\ud800"}}


@pytest.mark.parametrize("request_name", REQUESTS)
async def test_a_request_that_cannot_be_written(request_name: str) -> None:
    async with listening() as (origin, brought):
        result = await submit(origin, REQUESTS[request_name])
        assert (result.kind, brought) == (ResultKind.NOT_SENT, [])
        assert result.detail


@pytest.mark.parametrize("key", ["sk-x\ny", "sk-x\x00", "密钥"])
async def test_a_header_that_cannot_be_written(key: str) -> None:
    async with listening() as (origin, brought):
        result = await submit(origin, see2ai_api_key=key)
        assert result.kind is ResultKind.NOT_SENT
        await asyncio.sleep(0.05)
        assert brought in ([], [b""]), "a connection at the most, and no byte on it"
        assert key not in result.detail


@pytest.mark.parametrize(
    "origin", ["http://127.0.0.1:99999", "ftp://127.0.0.1", "http://a b", "http://", "x", "http://[::1"]
)
async def test_a_url_that_leads_nowhere(origin: str) -> None:
    assert (await submit(origin)).kind is ResultKind.NOT_SENT


async def test_a_connection_that_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await submit(f"http://127.0.0.1:{dead_port()}")).kind is ResultKind.NOT_SENT

    async def hang(*_: Any, **__: Any) -> None:
        await asyncio.sleep(60)

    async def no_file(*_: Any, **__: Any) -> None:
        raise OSError(24, "Too many open files")

    for connect in (hang, no_file):
        monkeypatch.setattr(client, "SUBMIT_SECONDS", 0.2)
        monkeypatch.setattr(aiohttp.TCPConnector, "_create_connection", connect)
        assert (await submit("http://127.0.0.1:1")).kind is ResultKind.NOT_SENT


async def test_a_line_that_cannot_be_logged_loses_neither_a_job_nor_its_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The disk of the log is full: the job is sent once, and its id is known."""

    class Full(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(28, "No space left on device")

    logs.configure_logs(Settings(_env_file=None))
    monkeypatch.setattr(logs, "sys", SimpleNamespace(stderr=Full()))
    async with listening(b'HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{"task_id": "t"}') as (origin, brought):
        result = await submit(origin)
        assert (result.kind, result.task_id, len(brought)) == (ResultKind.ACCEPTED, "t", 1)


async def test_an_error_of_ours_after_the_first_byte_leaves_the_outcome_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a bug")

    async with listening() as (origin, brought):
        assert (await submit(origin)).kind is ResultKind.UNKNOWN_OUTCOME
        monkeypatch.setattr(client, "_read_limited", fail)
        async with listening(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}") as (good, _):
            assert (await submit(good)).kind is ResultKind.UNKNOWN_OUTCOME
        assert len(brought) == 1


@pytest.mark.usefixtures("working")
async def test_a_task_is_sent_once_the_error_is_gone(make: Maker, upstream: Server) -> None:
    """No task becomes uncertain, and no points are lost: it waits in the queue."""
    user = await make.user(points=30)
    see2ai: Any = make.runtime.upstreams["see2ai"]
    good, see2ai._headers = see2ai._headers, see2ai._headers | {"Authorization": "Bearer sk-x\ny"}
    task_no = await make.task_no(user, '[[sandbox: {"take_seconds": 0}]]')

    async def was_tried() -> bool:
        return bool((await row_of(make.runtime, task_no))["attempts"] >= 2)

    await until("two tries", was_tried)
    row = await row_of(make.runtime, task_no)
    assert (row["status"], row["suspected_orphan"]) == ("queued", False)
    assert upstream.journal() == []
    see2ai._headers = good
    ended = await make.ended(user, task_no)
    assert (ended["status"], len(upstream.journal(outcome="accepted"))) == ("completed", 1)
