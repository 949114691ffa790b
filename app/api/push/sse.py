"""Push: tasks as they change, by WebSocket and by Server-Sent Events, and the tickets that open both.

What is told, and that nothing is missed, is the business of `tasks/follow.py`; here is who may listen and for how long.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager, suppress
from typing import Annotated, Any
from urllib.parse import urlsplit

import structlog
from fastapi import APIRouter, Header, Query, Request
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.accounts.authentication import Caller, reauthenticate
from app.accounts.tickets import TTL_SECONDS, make_ticket
from app.aio import cancel_and_wait
from app.api.access import RequestContext, StreamDesk, TaskDesk
from app.api.schemas import Envelope, TicketResponse
from app.errors import Forbidden, RateLimited, Unauthenticated, Unavailable
from app.runtime import Runtime
from app.settings import Settings
from app.tasks.stream import TaskStream, event_id, read_since
from app.tasks.view import view_task
from app.telemetry import metrics

log = structlog.get_logger()

MAX_STREAMS = 20  # of one user in one process
CHECK_SECONDS = 60.0  # how often a stream's credential is asked about
SEND_TIMEOUT_SECONDS = 20.0  # a message nobody takes for so long was for nobody
RECONNECT_MILLISECONDS = 3000
REVOKED, RESTARTING = 4401, 1012  # as a WebSocket is closed in the same cases

router = APIRouter(prefix="/user/ai/tasks", tags=["推送"])


@router.post("/ws-ticket", summary="换取一次性推送凭证（30 秒内有效）")
async def ws_ticket(context: TaskDesk) -> Envelope[TicketResponse]:
    ticket = await make_ticket(context.runtime, context.caller)
    return Envelope(data=TicketResponse(ticket=ticket, expiresIn=TTL_SECONDS))


@router.get("/events", include_in_schema=False)  # it has no end, which no document can say
async def events(
    request: Request,
    context: StreamDesk,
    since: Annotated[str | None, Query(max_length=40)] = None,
    last_event_id: Annotated[str | None, Header(max_length=40)] = None,
) -> Response:
    """`Last-Event-ID` is what a browser sends when it comes back, to the address it first called."""
    settings = context.runtime.settings
    if not is_origin_allowed(settings, request.headers):
        raise Forbidden("来源不被允许")
    stream = TaskStream(context.runtime, context.user_id, read_since(last_event_id or since, settings.zone))
    return EventStream(context, request.app.state.limiter, stream)


class ConnectionLimiter:
    """How many streams each user has open in this process."""

    def __init__(self) -> None:
        self._taken: Counter[int] = Counter()

    @contextmanager
    def acquire(self, user_id: int, kind: str) -> Iterator[None]:
        if self._taken[user_id] >= MAX_STREAMS:
            raise RateLimited(f"同时打开的推送连接过多，最多 {MAX_STREAMS} 个", retry_after_seconds=5)
        self._taken[user_id] += 1
        metrics.OPEN_STREAMS.labels(kind).inc()
        try:
            yield
        finally:
            metrics.OPEN_STREAMS.labels(kind).dec()
            self._taken[user_id] -= 1
            if not self._taken[user_id]:
                del self._taken[user_id]


def is_origin_allowed(settings: Settings, headers: Headers) -> bool:
    """Browsers name the page's origin: one of the list, or our own. Who names none is no browser."""
    origin = headers.get("origin")
    if origin is None or "*" in settings.cors_allowed or origin in settings.cors_allowed:
        return True
    try:
        named = urlsplit(origin)
    except ValueError:  # "http://["
        return False
    return named.scheme in {"http", "https"} and named.netloc in {
        headers.get("host"),
        urlsplit(settings.own_url).netloc,
    }


async def task_events(
    runtime: Runtime, caller: Caller, stream: TaskStream, kind: str
) -> AsyncGenerator[dict[str, Any] | None, None]:
    """`{"id", "data"}` of each change, data as `GET` of the task gives it; None as `TaskStream.changes` has it.

    Raises Unauthenticated once the caller's credential is worth nothing any more.
    """
    check_at = time.monotonic() + CHECK_SECONDS
    async with aclosing(stream.changes()) as changes:
        async for row in changes:
            if time.monotonic() >= check_at:
                check_at = time.monotonic() + CHECK_SECONDS
                with suppress(Unavailable):
                    await reauthenticate(runtime, caller)
            if row is not None:
                metrics.EVENTS.labels(kind).inc()
            yield row and {"id": event_id(row), "data": view_task(runtime, row)}


def write_json(message: Any) -> str:
    return json.dumps(message, ensure_ascii=False, separators=(",", ":"))


def record_slow_consumer(caller: Caller, kind: str) -> None:
    metrics.SLOW_CONSUMERS.labels(kind).inc()
    log.warning("stream_not_read", user_id=caller.user_id, kind=kind)


class EventStream(Response):
    """Server-Sent Events: one `task` a change, comments as pings, and an `end` that says why, where we end it."""

    media_type = "text/event-stream"

    def __init__(self, context: RequestContext, limiter: ConnectionLimiter, stream: TaskStream) -> None:
        # X-Accel-Buffering: a proxy that gathers answers would gather this one for ever.
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._desk, self._limiter, self._stream = context, limiter, stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """What is wrong before the first byte becomes an answer in the envelope; later on there is only the end."""
        caller = self._desk.caller
        with self._limiter.acquire(caller.user_id, "sse"):
            async with aclosing(task_events(self._desk.runtime, caller, self._stream, "sse")) as told:
                await anext(told)
                work = [asyncio.create_task(self._send_events(told, send)), asyncio.create_task(_disconnected(receive))]
                try:
                    await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    await cancel_and_wait(*work)
                if work[0].done() and not work[0].cancelled():
                    work[0].result()

    async def _send_events(self, told: AsyncGenerator[dict[str, Any] | None, None], send: Send) -> None:
        async def say(text: str, *, more: bool = True) -> None:
            async with asyncio.timeout(SEND_TIMEOUT_SECONDS):
                await send({"type": "http.response.body", "body": text.encode(errors="replace"), "more_body": more})

        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await say(f"retry: {RECONNECT_MILLISECONDS}\n\n")
            code = await self._send_all(told, say)
            await say(f'event: end\ndata: {{"code":{code}}}\n\n', more=False)
        except TimeoutError:
            record_slow_consumer(self._desk.caller, "sse")

    async def _send_all(self, told: AsyncGenerator[dict[str, Any] | None, None], say: Any) -> int:
        try:
            async for one in told:
                await say(
                    ": ping\n\n"
                    if one is None
                    else f"id: {one['id']}\nevent: task\ndata: {write_json(one['data'])}\n\n"
                )
        except Unauthenticated:
            return REVOKED
        return RESTARTING


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
