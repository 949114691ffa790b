"""The WebSocket: authenticates by ticket or first message, then sends the caller's tasks as they change."""

import asyncio
import json
from contextlib import aclosing, suppress
from datetime import datetime
from enum import IntEnum
from typing import Any

import structlog
from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from app.accounts.authentication import Caller, authenticate
from app.accounts.credentials import MAX_CREDENTIAL_LENGTH
from app.accounts.tickets import redeem_ticket
from app.aio import run_until_first_ends
from app.api.access.callers import check_scope, with_address
from app.api.push.connections import (
    SEND_TIMEOUT_SECONDS,
    dump_json,
    is_origin_allowed,
    record_slow_consumer,
    task_events,
)
from app.errors import GatewayError, InvalidParameter, Unauthenticated
from app.runtime import Runtime
from app.tasks.stream import TaskStream, read_since

log = structlog.get_logger()

AUTH_SECONDS = 5.0
CLOSE_SECONDS = 1.0
PONG_SECONDS = 1.0  # the pause after a ping or pong of the caller, so that neither can come in a flood
MAX_MESSAGE_BYTES = MAX_CREDENTIAL_LENGTH + 1024  # `gateway serve` sets the same limit in uvicorn


class CloseCode(IntEnum):
    """Why the gateway closes a connection. 44xx has the last two digits of the HTTP status 4xx."""

    NOT_TEXT = 1003
    """The caller sent a binary message."""

    TOO_BIG = 1009
    """The caller sent a message of more than 17 KB."""

    INTERNAL = 1011
    """An unexpected error; or uvicorn received no pong within 20 s of a ping."""

    RESTARTING = 1012
    """This process ends. The caller connects again with `since`."""

    TRY_AGAIN = 1013
    """The database or Redis is unreachable."""

    BAD_MESSAGE = 4400
    """The message is not a JSON object, or has an unknown type, an invalid `since` or a second `auth`."""

    UNAUTHENTICATED = 4401
    """The credential or ticket is invalid or no longer valid."""

    FORBIDDEN = 4403
    """The API key lacks the scope `tasks:read`, or may not be used from this address."""

    TOO_LATE = 4408
    """The caller sent no `auth` within 5 s."""

    NOT_READ = 4420
    """The caller read nothing for 20 s."""

    TOO_MANY = 4429
    """The user has too many streams, or connects too often."""


BY_STATUS = {
    400: CloseCode.BAD_MESSAGE,
    401: CloseCode.UNAUTHENTICATED,
    403: CloseCode.FORBIDDEN,
    429: CloseCode.TOO_MANY,
    503: CloseCode.TRY_AGAIN,
}


class ConnectionRejected(Exception):
    """Ends the session with a close code."""

    def __init__(self, code: CloseCode, reason: str = "") -> None:
        self.code, self.reason = code, reason
        super().__init__(reason)


router = APIRouter(prefix="/user/ai/tasks")


@router.websocket("/ws")
async def ws(socket: WebSocket) -> None:
    """Rejects an unknown origin before the handshake. Every other end has a close code."""
    if not is_origin_allowed(socket.app.state.runtime.settings, socket.headers):
        await socket.close()
        return
    await socket.accept()
    try:
        await _Session(socket).run()
    except WebSocketDisconnect:
        return
    except ConnectionRejected as error:
        code, reason = error.code, error.reason
    except GatewayError as error:
        code, reason = BY_STATUS.get(error.status, CloseCode.INTERNAL), error.message
    except Exception:
        log.exception("stream_failed")
        code, reason = CloseCode.INTERNAL, ""
    # A caller that does not read does not take the close frame either.
    with suppress(WebSocketDisconnect, RuntimeError, TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            await socket.close(code, reason)


class _Session:
    """One accepted connection."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket
        self._runtime: Runtime = socket.app.state.runtime
        self._accepts_since = False

    async def run(self) -> None:
        state = self._socket.app.state
        caller, since = await self._authenticate()
        check_scope(caller, "tasks:read")
        await state.rate_limiter.check("read", caller.user_id)
        stream = TaskStream(self._runtime, caller.user_id, since)
        with state.connection_limiter.acquire(caller.user_id, "websocket"):
            await run_until_first_ends(self._send_loop(caller, stream), self._receive_loop(stream))
        raise ConnectionRejected(CloseCode.RESTARTING)

    async def _authenticate(self) -> tuple[Caller, datetime | None]:
        query = self._socket.query_params
        ticket, since = query.get("ticket"), query.get("since")
        if ticket is not None:
            self._accepts_since = True
            return await redeem_ticket(self._runtime, ticket), self._read_since(since)
        try:
            async with asyncio.timeout(AUTH_SECONDS):
                message = await self._receive()
        except TimeoutError:
            raise ConnectionRejected(CloseCode.TOO_LATE, "请在 5 秒内发送 auth 消息") from None
        if message.get("type") != "auth":
            raise ConnectionRejected(CloseCode.BAD_MESSAGE, "第一条消息须为 auth")
        if not isinstance(token := message.get("token"), str):
            raise Unauthenticated
        caller = await authenticate(self._runtime, token)
        caller = with_address(caller, self._socket.scope, self._runtime.settings)
        return caller, self._read_since(message.get("since", since))

    def _read_since(self, since: Any) -> datetime | None:
        if isinstance(since, int) and not isinstance(since, bool):
            since = str(since)
        if since is not None and not isinstance(since, str):
            raise InvalidParameter("since", "须为 ISO 时间或事件 ID")
        return read_since(since, self._runtime.settings.zone)

    async def _send_loop(self, caller: Caller, stream: TaskStream) -> None:
        """Runs until this process ends."""
        ping = {"type": "auth", "ok": True}  # the first ping answers `auth`: the stream misses nothing after it
        try:
            async with aclosing(task_events(self._runtime, caller, stream, "websocket")) as changes:
                async for change in changes:
                    await self._send({"type": "task"} | change if change else ping)
                    ping = {"type": "ping"} if change is None else ping
        except TimeoutError:
            record_slow_consumer(caller, "websocket")
            raise ConnectionRejected(CloseCode.NOT_READ) from None

    async def _receive_loop(self, stream: TaskStream) -> None:
        """Handles pings and pongs. A caller with a ticket may send `auth` with `since` once."""
        while True:
            match await self._receive():
                case {"type": "ping"}:
                    await self._send({"type": "pong"})
                    await asyncio.sleep(PONG_SECONDS)
                case {"type": "pong"}:
                    await asyncio.sleep(PONG_SECONDS)
                case {"type": "auth", "since": since} if self._accepts_since:
                    self._accepts_since = False
                    if (moment := self._read_since(since)) is not None:
                        stream.replay(moment)
                case _:
                    raise ConnectionRejected(CloseCode.BAD_MESSAGE, "无法识别的消息")

    async def _receive(self) -> dict[str, Any]:
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        text = message.get("text")
        if text is None:
            raise ConnectionRejected(CloseCode.NOT_TEXT, "消息须为文本")
        if len(text) > MAX_MESSAGE_BYTES:
            raise ConnectionRejected(CloseCode.TOO_BIG, "消息过大")
        try:
            parsed = json.loads(text)
        except (ValueError, RecursionError):
            parsed = None
        if not isinstance(parsed, dict):
            raise ConnectionRejected(CloseCode.BAD_MESSAGE, "消息须为 JSON 对象")
        return parsed

    async def _send(self, message: dict[str, Any]) -> None:
        async with asyncio.timeout(SEND_TIMEOUT_SECONDS):
            await self._socket.send_text(dump_json(message))
