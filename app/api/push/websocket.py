"""The WebSocket: who it is, by ticket or first message; then their tasks as they change, until somebody ends it."""

import asyncio
import json
from contextlib import aclosing, suppress
from datetime import datetime
from enum import IntEnum
from typing import Any

import structlog
from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from app.accounts.authentication import Caller, authenticate
from app.accounts.tickets import redeem_ticket
from app.aio import cancel_and_wait
from app.api.access import check_scope
from app.api.push.sse import SEND_TIMEOUT_SECONDS, is_origin_allowed, record_slow_consumer, task_events, write_json
from app.errors import GatewayError, InvalidParameter, Unauthenticated
from app.runtime import Runtime
from app.tasks.stream import TaskStream, read_since

log = structlog.get_logger()

AUTH_SECONDS = 5.0
CLOSE_SECONDS = 1.0
PONG_SECONDS = 1.0  # a caller is heard at most so often
MAX_MESSAGE_BYTES = 16_384  # uvicorn is told the same: `gateway serve` never reads a larger one to its end


class CloseCode(IntEnum):
    """Why a connection is closed by us. The tens and units of a 44xx are those of the HTTP status."""

    NOT_TEXT = 1003
    """A binary message came."""

    TOO_BIG = 1009
    """A message of more than 16 KB came."""

    INTERNAL = 1011
    """A fault of ours; or, said by the server below us, no pong came within 20 s of a ping."""

    RESTARTING = 1012
    """This process ends. Connect again, with `since`."""

    TRY_AGAIN = 1013
    """The database or Redis is away."""

    BAD_MESSAGE = 4400
    """Not JSON, not an object, a type nobody knows, an unreadable `since`, a second `auth`."""

    UNAUTHENTICATED = 4401
    """The credential or ticket is not, or no longer, good."""

    FORBIDDEN = 4403
    """The key's scopes do not reach tasks."""

    TOO_LATE = 4408
    """No `auth` came within 5 s."""

    NOT_READ = 4420
    """Nobody took a message for 20 s."""

    TOO_MANY = 4429
    """Too many streams of one user, or too often."""


BY_STATUS = {
    400: CloseCode.BAD_MESSAGE,
    401: CloseCode.UNAUTHENTICATED,
    403: CloseCode.FORBIDDEN,
    429: CloseCode.TOO_MANY,
}
BY_STATUS |= {503: CloseCode.TRY_AGAIN}


class ConnectionRejected(Exception):
    """Ends the conversation with a code."""

    def __init__(self, code: CloseCode, reason: str = "") -> None:
        self.code, self.reason = code, reason
        super().__init__(reason)


router = APIRouter(prefix="/user/ai/tasks")


@router.websocket("/ws")
async def ws(socket: WebSocket) -> None:
    """A page of an origin we do not know is refused before the handshake; all else is closed with a code."""
    if not is_origin_allowed(socket.app.state.runtime.settings, socket.headers):
        await socket.close()
        return
    await socket.accept()
    try:
        await _Session(socket).run()
    except WebSocketDisconnect:
        return
    except ConnectionRejected as refused:
        code, reason = refused.code, refused.reason
    except GatewayError as error:
        code, reason = BY_STATUS.get(error.status, CloseCode.INTERNAL), error.message
    except Exception:
        log.exception("stream_failed")
        code, reason = CloseCode.INTERNAL, ""
    # Whoever does not read takes no goodbye either.
    with suppress(WebSocketDisconnect, RuntimeError, TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            await socket.close(code, reason)


class _Session:
    """One connection, from its acceptance on."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket
        self._runtime: Runtime = socket.app.state.runtime
        self._may_ask_since = False

    async def run(self) -> None:
        state, settings = self._socket.app.state, self._runtime.settings
        caller, since = await self._authenticate()
        check_scope(caller, "tasks")
        await state.limits.check("read", caller.user_id, settings.read_rate_per_minute)
        stream = TaskStream(self._runtime, caller.user_id, since)
        with state.limiter.taken(caller.user_id, "websocket"):
            sides = [
                asyncio.create_task(self._send_loop(caller, stream)),
                asyncio.create_task(self._receive_loop(stream)),
            ]
            try:
                await asyncio.wait(sides, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await cancel_and_wait(*sides)
            errors = [side.exception() for side in sides if not side.cancelled()]
        raise next(filter(None, errors), ConnectionRejected(CloseCode.RESTARTING))

    async def _authenticate(self) -> tuple[Caller, datetime | None]:
        asked = self._socket.query_params
        ticket, since = asked.get("ticket"), asked.get("since")
        if ticket is not None:
            self._may_ask_since = True
            return await redeem_ticket(self._runtime, ticket), self._read_since(since)
        try:
            async with asyncio.timeout(AUTH_SECONDS):
                first = await self._receive()
        except TimeoutError:
            raise ConnectionRejected(CloseCode.TOO_LATE, "请在 5 秒内发送 auth 消息") from None
        if first.get("type") != "auth":
            raise ConnectionRejected(CloseCode.BAD_MESSAGE, "第一条消息须为 auth")
        if not isinstance(token := first.get("token"), str):
            raise Unauthenticated
        return await authenticate(self._runtime, token), self._read_since(first.get("since", since))

    def _read_since(self, since: Any) -> datetime | None:
        if isinstance(since, int) and not isinstance(since, bool):
            since = str(since)
        if since is not None and not isinstance(since, str):
            raise InvalidParameter("since", "须为 ISO 时间或事件 ID")
        return read_since(since, self._runtime.settings.zone)

    async def _send_loop(self, caller: Caller, stream: TaskStream) -> None:
        """Until this process ends."""
        ping = {"type": "auth", "ok": True}  # the first is the answer to `auth`: from here on nothing is missed
        try:
            async with aclosing(task_events(self._runtime, caller, stream, "websocket")) as told:
                async for one in told:
                    await self._send({"type": "task"} | one if one else ping)
                    ping = {"type": "ping"} if one is None else ping
        except TimeoutError:
            record_slow_consumer(caller, "websocket")
            raise ConnectionRejected(CloseCode.NOT_READ) from None

    async def _receive_loop(self, stream: TaskStream) -> None:
        """There is little to hear: pings, pongs, and who came by a ticket may say `since` afterwards, once."""
        while True:
            match await self._receive():
                case {"type": "ping"}:
                    await self._send({"type": "pong"})
                    await asyncio.sleep(PONG_SECONDS)
                case {"type": "pong"}:
                    await asyncio.sleep(PONG_SECONDS)
                case {"type": "auth", "since": since} if self._may_ask_since:
                    self._may_ask_since = False
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
            told = json.loads(text)
        except (ValueError, RecursionError):
            told = None
        if not isinstance(told, dict):
            raise ConnectionRejected(CloseCode.BAD_MESSAGE, "消息须为 JSON 对象")
        return told

    async def _send(self, message: dict[str, Any]) -> None:
        async with asyncio.timeout(SEND_TIMEOUT_SECONDS):
            await self._socket.send_text(write_json(message))
