"""Receivers of webhooks: real servers with scripted answers, which record their requests."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from sqlalchemy import select, update
from standardwebhooks.webhooks import Webhook

from app.aio import cancel_and_wait
from app.database import utc_after, utc_now
from app.jobs.webhook_dispatcher import WebhookDispatcher
from app.runtime import Runtime
from app.tables import webhook_deliveries
from tests.support.waiting import until

HANG = 0
"""Instead of a status: the answer never comes."""


@dataclass(frozen=True)
class Received:
    """One request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    at: float

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def verified(self, secret: str) -> Any:
        """Verifies the request with the standard's own library, which raises if the signature is wrong."""
        return Webhook(secret).verify(self.body, self.headers)


@dataclass
class Receiver:
    """Answers `script` in order, then 200. A number is a status. A callable makes the response itself."""

    origin: str
    script: list[int | Callable[[web.Request], Any]] = field(default_factory=list)
    always: int | Callable[[web.Request], Any] = 200
    headers: dict[str, str] = field(default_factory=dict)
    received: list[Received] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    @property
    def url(self) -> str:
        return f"http://{self.origin}/hook"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            headers = {name.lower(): value for name, value in request.headers.items()}
            received = Received(request.method, request.path_qs, headers, await request.read(), time.monotonic())
            self.received.append(received)
            answer = self.script.pop(0) if self.script else self.always
            if callable(answer):
                response: web.StreamResponse = await answer(request)
                return response
            if answer == HANG:
                await asyncio.sleep(3600)
            return web.Response(status=answer, headers=self.headers)
        finally:
            self.at_once -= 1

    async def receives(self, number: int = 1, seconds: float = 40) -> list[Received]:
        """Waits for that many requests. Fails if they do not come."""
        await until(f"{number} requests", lambda: len(self.received) >= number, seconds)
        return self.received


@asynccontextmanager
async def receiving(port: int) -> AsyncIterator[Receiver]:
    receiver = Receiver(f"127.0.0.1:{port}")
    app = web.Application(client_max_size=10**7)
    app.router.add_route("*", "/{path:.*}", receiver.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield receiver
    finally:
        await runner.cleanup()


@asynccontextmanager
async def couriers(runtime: Runtime, number: int = 1) -> AsyncIterator[list[WebhookDispatcher]]:
    """Runs that many dispatchers with a short poll interval."""
    all_ = [WebhookDispatcher(runtime, idle_seconds=0.05) for _ in range(number)]
    tasks = [asyncio.create_task(dispatcher.run()) for dispatcher in all_]
    try:
        yield all_
    finally:
        await cancel_and_wait(*tasks)


async def outbox(runtime: Runtime) -> list[dict[str, Any]]:
    """All rows of the outbox, the oldest first, and the database's clock in each."""
    requested = select(webhook_deliveries, utc_now().label("now")).order_by(webhook_deliveries.c.id)
    async with runtime.database.read() as connection:
        return [dict(row._mapping) for row in await connection.execute(requested)]


async def ended_deliveries(runtime: Runtime, number: int = 1, seconds: float = 40) -> list[dict[str, Any]]:
    """The outbox once it has that many rows and none is pending."""

    async def poll() -> list[dict[str, Any]]:
        rows = await outbox(runtime)
        return rows if len(rows) == number and all(row["status"] != "pending" for row in rows) else []

    return await until(f"{number} deliveries ended", poll, seconds)


async def tried_deliveries(runtime: Runtime) -> list[dict[str, Any]]:
    """The outbox once each row has the outcome of an attempt."""

    async def poll() -> list[dict[str, Any]]:
        rows = await outbox(runtime)
        return rows if all(row["outcome"] for row in rows) else []

    return await until("tried", poll)


async def shift(runtime: Runtime, table: Any, seconds: float, *names: str) -> None:
    """Sets these times of all rows to `seconds` from now, by the database's clock."""
    async with runtime.database.begin() as connection:
        await connection.execute(update(table).values({name: utc_after(seconds) for name in names}))
