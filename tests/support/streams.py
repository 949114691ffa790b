"""Push streams as clients see them: an API on a socket, and its messages by WebSocket and Server-Sent Events."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import uvicorn
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from app.api.server.options import OPTIONS
from app.cli.run.server import bind_socket
from app.cli.run.up import ServerWithoutSignals
from app.main import create_app
from app.runtime import Runtime
from tests.support.responses import data

PATIENCE = 30.0
WS = "/user/ai/tasks/ws"
EVENTS = "/user/ai/tasks/events"
TICKET = "/user/ai/tasks/ws-ticket"
DATABASE_NOW = {True: "strftime('%Y-%m-%d %H:%M:%f000', 'now')", False: "UTC_TIMESTAMP(3)"}
"""By whether the database is SQLite."""


class Door:
    """The API on a port of this machine. In this process it has `server` (uvicorn) and `state` (of the application)."""

    def __init__(self, port: int, server: Any = None, state: Any = None) -> None:
        self.server = server
        self.state = state
        self.port = port
        self.origin = f"http://127.0.0.1:{port}"

    @asynccontextmanager
    async def socket(self, query: str = "", **options: Any) -> AsyncIterator["Socket"]:
        """A WebSocket before the first message."""
        options = {"compression": None, "max_size": None, "proxy": None, "open_timeout": PATIENCE} | options
        async with connect(f"ws://127.0.0.1:{self.port}{WS}{query}", **options) as connection:
            yield Socket(connection)

    @asynccontextmanager
    async def payload(self, token: str, since: Any = None, **options: Any) -> AsyncIterator["Socket"]:
        """A WebSocket that already receives changes."""
        async with self.socket(**options) as opened:
            await opened.auth(token, since)
            yield opened

    async def ticket(self, headers: dict[str, str]) -> str:
        async with httpx.AsyncClient(base_url=self.origin, timeout=PATIENCE, trust_env=False) as client:
            payload = data(await client.post(TICKET, headers=headers))
        assert payload["expiresIn"] == 30
        return str(payload["ticket"])

    @asynccontextmanager
    async def events(self, query: str = "", **headers: str) -> AsyncIterator["Events"]:
        """The event stream of a 200 after its first event."""
        async with (
            httpx.AsyncClient(base_url=self.origin, timeout=PATIENCE, trust_env=False) as client,
            client.stream("GET", EVENTS + query, headers=headers) as answer,
        ):
            assert answer.status_code == 200, await answer.aread()
            events = Events(answer)
            assert (await events.next_block())["retry"] == "3000"
            yield events


class Socket:
    """A client that keeps its messages in order."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def say(self, message: Any) -> None:
        await self.connection.send(message if isinstance(message, str | bytes) else json.dumps(message))

    async def auth(self, token: str, since: Any = None) -> None:
        await self.say({"type": "auth", "token": token} | ({} if since is None else {"since": since}))
        assert await self.next() == {"type": "auth", "ok": True}

    async def next(self, seconds: float = PATIENCE) -> dict[str, Any]:
        async with asyncio.timeout(seconds):
            return dict(json.loads(await self.connection.recv()))

    async def next_task(self) -> dict[str, Any]:
        while (message := await self.next())["type"] != "task":
            pass
        return message

    async def until_ended(self, *task_nos: str) -> list[dict[str, Any]]:
        """All task messages up to the end of the last of these tasks."""
        waiting, messages = set(task_nos), []
        while waiting:
            messages.append(await self.next_task())
            data = messages[-1]["data"]
            if data["status"] in {"completed", "failed"}:
                waiting.discard(data["taskNo"])
        return messages

    async def code(self) -> int:
        """The close code. Other messages before it are ignored."""
        with contextlib.suppress(ConnectionClosed):
            async with asyncio.timeout(PATIENCE):
                while True:
                    await self.connection.recv()
        assert self.connection.close_code is not None
        return self.connection.close_code

    async def silence(self, seconds: float) -> list[dict[str, Any]]:
        """All messages of these seconds, except pings."""
        come: list[dict[str, Any]] = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    come.append(json.loads(await self.connection.recv()))
        return [message for message in come if message["type"] != "ping"]


class Events:
    """The blocks of an event stream, as their fields."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self._lines = answer.aiter_lines()

    async def next_block(self) -> dict[str, str]:
        """The next block that is not only a comment. {} if the stream has ended."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(PATIENCE):
            async for line in self._lines:
                if not line and fields:
                    return fields
                name, _, value = line.partition(": ")
                if name:
                    fields[name] = value
        return fields

    async def next_task(self) -> dict[str, Any]:
        """`{"id", "data"}` of the next `task`."""
        block = await self.next_block()
        assert block.get("event") == "task", block
        return {"id": block["id"], "data": json.loads(block["data"])}

    async def until_ended(self, *task_nos: str) -> list[dict[str, Any]]:
        waiting, messages = set(task_nos), []
        while waiting:
            messages.append(await self.next_task())
            data = messages[-1]["data"]
            if data["status"] in {"completed", "failed"}:
                waiting.discard(data["taskNo"])
        return messages


@asynccontextmanager
async def open_door(runtime: Runtime) -> AsyncIterator[Door]:
    """One API process as `gateway serve` runs it, but in this loop."""
    sock = bind_socket("127.0.0.1", 0)
    app = create_app(runtime.settings, runtime)
    server = ServerWithoutSignals(uvicorn.Config(app, timeout_graceful_shutdown=5, **OPTIONS))
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        async with asyncio.timeout(PATIENCE):
            while not server.started:
                await asyncio.sleep(0.01)
        yield Door(sock.getsockname()[1], server, app.state)
    finally:
        server.should_exit = True
        await serving


def states(messages: list[dict[str, Any]], task_no: str) -> list[tuple[str, int]]:
    """(status, progress) of one task, in the order of arrival."""
    return [(m["data"]["status"], m["data"]["progress"]) for m in messages if m["data"]["taskNo"] == task_no]
