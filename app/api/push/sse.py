"""Server-Sent Events: a caller's tasks as they change, and the tickets that open a stream of either kind."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.accounts.tickets import TTL_SECONDS, make_ticket
from app.aio import run_until_first_ends
from app.api.access.callers import Access, RequestContext
from app.api.push.connections import (
    SEND_TIMEOUT_SECONDS,
    ConnectionLimiter,
    dump_json,
    is_origin_allowed,
    record_slow_consumer,
    task_events,
)
from app.api.routing import DirectRoute
from app.api.schemas import Envelope, TicketResponse
from app.errors import Forbidden, Unauthenticated
from app.tasks.stream import TaskStream, read_since

RECONNECT_MILLISECONDS = 3000
REVOKED, RESTARTING = 4401, 1012  # the WebSocket's close codes in the same cases

router = APIRouter(prefix="/user/ai/tasks", route_class=DirectRoute, tags=["推送"])


@router.post("/ws-ticket", summary="换取一次性推送凭证（30 秒内有效）")
async def ws_ticket(
    context: Annotated[RequestContext, Depends(Access(scope="tasks:read", limit="read"))],
) -> Envelope[TicketResponse]:
    ticket = await make_ticket(context.runtime, context.caller)
    return Envelope(data=TicketResponse(ticket=ticket, expiresIn=TTL_SECONDS))


@router.get("/events", include_in_schema=False)  # OpenAPI cannot describe a response without an end
async def events(
    request: Request,
    context: Annotated[RequestContext, Depends(Access(scope="tasks:read", limit="read", accepts_ticket=True))],
    since: Annotated[str | None, Query(max_length=40)] = None,
    last_event_id: Annotated[str | None, Header(max_length=40)] = None,
) -> Response:
    """A browser that reconnects sends `Last-Event-ID` to its first address, so the header precedes `since`."""
    settings = context.runtime.settings
    if not is_origin_allowed(settings, request.headers):
        raise Forbidden("来源不被允许")
    stream = TaskStream(context.runtime, context.user_id, read_since(last_event_id or since, settings.zone))
    return EventStream(context, request.app.state.connection_limiter, stream)


class EventStream(Response):
    """The event stream: one `task` event for each change, comments as pings, and a last `end` event with a code."""

    media_type = "text/event-stream"

    def __init__(self, context: RequestContext, limiter: ConnectionLimiter, stream: TaskStream) -> None:
        # X-Accel-Buffering tells nginx not to collect a response before it passes it on.
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._context, self._limiter, self._stream = context, limiter, stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """An error before the first byte becomes an error response. A later error can only end the stream."""
        caller = self._context.caller
        with self._limiter.acquire(caller.user_id, "sse"):
            async with aclosing(task_events(self._context.runtime, caller, self._stream, "sse")) as changes:
                await anext(changes)  # None: the stream is subscribed and misses nothing from here on
                await run_until_first_ends(self._send_events(changes, send), _disconnected(receive))

    async def _send_events(self, changes: AsyncGenerator[dict[str, Any] | None, None], send: Send) -> None:
        async def send_text(text: str, *, more: bool = True) -> None:
            async with asyncio.timeout(SEND_TIMEOUT_SECONDS):
                await send({"type": "http.response.body", "body": text.encode(errors="replace"), "more_body": more})

        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send_text(f"retry: {RECONNECT_MILLISECONDS}\n\n")
            code = RESTARTING
            try:
                async for change in changes:
                    await send_text(_format_event(change))
            except Unauthenticated:
                code = REVOKED
            await send_text(f'event: end\ndata: {{"code":{code}}}\n\n', more=False)
        except TimeoutError:
            record_slow_consumer(self._context.caller, "sse")


def _format_event(change: dict[str, Any] | None) -> str:
    """A `task` event, or a ping where nothing changed."""
    if change is None:
        return ": ping\n\n"
    return f"id: {change['id']}\nevent: task\ndata: {dump_json(change['data'])}\n\n"


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
