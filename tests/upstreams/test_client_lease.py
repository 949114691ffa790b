"""If the lease ends while the connection is made (slow handshake, frozen process), the job is not sent."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from app.settings import Settings
from app.upstreams.protocol import ResultKind
from app.upstreams.see2ai.actions import ACTIONS
from app.upstreams.see2ai.client import See2aiClient
from tests.support.waiting import until

pytestmark = pytest.mark.anyio
ACTION = ACTIONS["see2ai_image_generation_fast_v1"]


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[See2aiClient, list[bytes]]]:
    """A server that accepts connections, and the bytes that each connection sent."""
    brought: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        brought.append(await reader.read(1000))
        if brought[-1]:
            writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{"task_id": "t"}')
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    see2ai = See2aiClient(Settings(_env_file=None, see2ai_base_url=f"http://127.0.0.1:{port}", see2ai_api_key="sk-x"))
    try:
        yield see2ai, brought
    finally:
        await see2ai.close()
        server.close()


async def test_nothing_is_sent_once_the_lease_has_run_out_on_the_way() -> None:
    leases = [True]  # valid when the submit begins, expired afterwards

    async with listening() as (see2ai, brought):
        result = await see2ai.submit(ACTION, {"prompt": "x"}, may_send=lambda: bool(leases and leases.pop()))
        assert result.kind is ResultKind.NOT_SENT
        assert "lease" in result.detail
        await until("it has closed the connection", lambda: brought)
        assert brought == [b""], "only a connection, without a byte"


async def test_each_call_checks_its_own_lease() -> None:
    async with listening() as (see2ai, brought):
        lost, held = [True], [True] * 9
        kinds = await asyncio.gather(
            *[
                see2ai.submit(ACTION, {"prompt": "x"}, may_send=lambda mine=mine: bool(mine and mine.pop()))
                for mine in (lost, held)
            ]
        )
        assert [result.kind for result in kinds] == [ResultKind.NOT_SENT, ResultKind.ACCEPTED]
        await until("both have arrived", lambda: len(brought) == 2)
        assert sorted(map(bool, brought)) == [False, True]
        assert (await see2ai.poll(ACTION, "t")).kind is not ResultKind.NOT_SENT
