"""A reason phrase in another encoding must not make an answer unreadable."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from app.settings import Settings
from app.upstreams.protocol import ResultKind
from app.upstreams.see2ai.actions import ACTIONS
from app.upstreams.see2ai.client import See2aiClient

pytestmark = pytest.mark.anyio
ACTION = ACTIONS["see2ai_image_generation_fast_v1"]


@asynccontextmanager
async def answering(status_line: bytes) -> AsyncIterator[See2aiClient]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"POST"):
            await reader.readuntil(b"}")  # closing while data still arrives would cut the answer off
        writer.write(b"HTTP/1.1 " + status_line + b"\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    see2ai = See2aiClient(Settings(_env_file=None, see2ai_base_url=f"http://127.0.0.1:{port}", see2ai_api_key="sk-x"))
    try:
        yield see2ai
    finally:
        await see2ai.close()
        server.close()


@pytest.mark.parametrize(
    ("code", "kind"),
    [(b"502", ResultKind.SERVER_ERROR), (b"429", ResultKind.RATE_LIMITED), (b"401", ResultKind.ACCOUNT_ERROR)],
)
async def test_a_reason_in_gbk_changes_no_result(code: bytes, kind: ResultKind) -> None:
    async with answering(code + " 网关错误".encode("gbk")) as see2ai:
        assert (await see2ai.submit(ACTION, {"prompt": "x"}, may_send=lambda: True)).kind is kind
        assert (await see2ai.poll(ACTION, "t1")).kind is kind


@pytest.mark.parametrize("task_id", ["/x", "a/b", "a?b#c", "任务", "%2e%2e"])
async def test_unusual_task_ids_are_polled_unchanged(task_id: str) -> None:
    async with answering(b"404 x") as see2ai:
        assert (await see2ai.poll(ACTION, task_id)).kind is ResultKind.NOT_FOUND
