"""Answers that a user requests and does not read: over a socket, because the server's buffers are at stake."""

import asyncio
import socket
from collections.abc import AsyncIterator

import httpx
import pytest
from sqlalchemy import insert, select

from app.api import middleware
from app.runtime import Runtime
from app.tables import tasks
from tests.support.makers import Maker, User
from tests.support.responses import LIST, data, refusal
from tests.support.streams import Door
from tests.support.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.worlds("embedded")]
PAGE = f"{LIST}?size=100"
COPIES = 99
CHARACTERS = 20_000
PAGE_BYTES = (COPIES + 1) * CHARACTERS * 3
"""Of the list, at least: more than the buffers of a connection take."""


@pytest.fixture(autouse=True)
def room_for_one_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "MAX_UNREAD_BYTES", PAGE_BYTES * 3 // 2)


async def add_long_tasks(make: Maker, runtime: Runtime, user: User) -> None:
    """A whole page of the longest prompts; all but one cost nothing."""
    task_no = await make.task_no(user, "猫" * CHARACTERS)
    async with runtime.database.begin() as connection:
        row = dict((await connection.execute(select(tasks).where(tasks.c.task_no == task_no))).one()._mapping)
        del row["id"]
        copies = [row | {"task_no": f"{task_no}-{number}", "points_cost": 0} for number in range(COPIES)]
        await connection.execute(insert(tasks), copies)


class Reader:
    """One connection that has requested the list, and reads when it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def request(cls, door: Door, user: User) -> "Reader":
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", door.port))
        reader, writer = await asyncio.open_connection(sock=sock, limit=4096)
        writer.write(f"GET {PAGE} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {user.token}\r\n\r\n".encode())
        return cls(reader, writer)

    async def status(self) -> int:
        return int((await asyncio.wait_for(self.reader.readline(), 30)).split()[1])

    async def body(self) -> bytes:
        head = await self.reader.readuntil(b"\r\n\r\n")
        (length,) = [line for line in head.lower().splitlines() if line.startswith(b"content-length")]
        return await asyncio.wait_for(self.reader.readexactly(int(length.split(b":")[1])), 60)


@pytest.fixture
async def browser(door: Door) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=door.origin, timeout=30, trust_env=False) as client:
        yield client


async def test_a_user_who_does_not_read_gets_no_more_and_others_do(
    make: Maker, runtime: Runtime, door: Door, browser: httpx.AsyncClient
) -> None:
    user, other = await make.user(points=30), await make.user(points=30)
    await add_long_tasks(make, runtime, user)
    await make.task_no(other)
    first = await Reader.request(door, user)
    assert await first.status() == 200
    refused = await browser.get(PAGE, headers=user.headers)
    assert refusal(refused) == (429, "RATE_LIMITED", "未读取的响应过多，请读取后再试")
    assert int(refused.headers["retry-after"]) > 0
    assert data(await browser.get(f"{LIST}?size=1", headers=other.headers))["total"] == 1
    assert data(await browser.get("/user/points/consumption/balance", headers=user.headers))["balance"] == 0
    body = await first.body()
    assert len(body) > PAGE_BYTES
    assert (body[:12], body[-2:]) == (b'{"code":200,', b"}}"), "whole, although it is sent in pieces"
    assert data(await browser.get(PAGE, headers=user.headers))["total"] == COPIES + 1
    first.writer.close()


async def test_a_caller_who_hangs_up_holds_nothing(
    make: Maker, runtime: Runtime, door: Door, browser: httpx.AsyncClient
) -> None:
    user = await make.user(points=30)
    await add_long_tasks(make, runtime, user)
    gone = await Reader.request(door, user)
    assert await gone.status() == 200
    gone.writer.transport.abort()

    async def is_served() -> bool:
        return (await browser.get(PAGE, headers=user.headers)).status_code == 200

    await until("the next request is served", is_served)
