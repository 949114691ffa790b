"""A small asynchronous client of the points gateway: submit, wait, upload, balance, webhooks. Times are seconds."""

import asyncio
import base64
import binascii
import hashlib
import hmac
import inspect
import json
import random
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack, cast
from urllib.parse import quote as quoted

import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from gateway_client.shapes import (
    Balance,
    ImageUrl,
    Model,
    Quote,
    SubmitOptions,
    SubmittedTask,
    Task,
    Upload,
    Webhook,
)

ENDED = frozenset({"completed", "failed"})
RANKS = ("created", "queued", "processing", "completed", "failed")
PASSING = frozenset({0, 429, 502, 503, 504})  # 0: no answer at all
LONGEST_PAUSE = 60.0  # one that is asked for more patience tells the caller instead, unless that waits
ANSWER_SECONDS = 30.0
UPLOAD_SECONDS = 300.0
LONG_POLL_SECONDS = 30
WATCHED_POLL_SECONDS = 5  # where somebody wants to see it move
CONNECT_SECONDS = 10.0
RETRY_DELAY_SECONDS = 75.0  # the gateway pings every 30 s: whoever is silent for longer is gone
MOST_BREAKS = 3  # of the WebSocket in one wait, which then goes on by polling
MAX_MESSAGE_BYTES = 8_000_000
TOLERANCE_SECONDS = 300.0

Credential = str | Callable[[], str | Awaitable[str]]


class GatewayError(Exception):
    """Everything that goes wrong. `code` is the HTTP status, or 0: there was no answer, or the time was over."""

    def __init__(
        self, message: str, *, code: int = 0, error_code: str, request_id: str = "", retry_after: float | None = None
    ) -> None:
        self.message, self.code, self.error_code = message, code, error_code
        self.request_id, self.retry_after = request_id, retry_after
        super().__init__(f"{error_code}: {message}")


class Gateway:
    """`async with Gateway(url, credential) as gateway:`. The credential is an API key, a JWT, or a function giving one,
    asked before each use.
    """

    def __init__(self, base_url: str, credential: Credential, *, websocket: bool = True, tries: int = 5) -> None:
        self._base = base_url.rstrip("/")
        self._credential = credential
        self._websocket = websocket
        self._tries = tries
        self._http = httpx.AsyncClient()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def submit(
        self,
        model_name: str,
        prompt: str,
        *,
        image_url: ImageUrl | None = None,
        params: Mapping[str, Any] | None = None,
        callback_url: str | None = None,
        idempotency_key: str | None = None,
    ) -> SubmittedTask:
        """The stored task. Repeated under one Idempotency-Key, by default a new one, so it is charged once."""
        body = _order(model_name, prompt, image_url, params, callbackUrl=callback_url)
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        return cast(SubmittedTask, await self._request("POST", "/user/ai/tasks/submit", json=body, headers=headers))

    async def run(
        self,
        model_name: str,
        prompt: str,
        *,
        timeout: float = 3600,
        on_progress: Callable[[Task], object] | None = None,
        **options: Unpack[SubmitOptions],
    ) -> Task:
        """`submit`, then `wait`."""
        task = await self.submit(model_name, prompt, **options)
        return await self.wait(task["taskNo"], timeout=timeout, on_progress=on_progress)

    async def wait(
        self, task_no: str, *, timeout: float = 3600, on_progress: Callable[[Task], object] | None = None
    ) -> Task:
        """The task once it has ended, also where it failed: its `status` tells. It outlives a gateway that restarts."""
        watch, breaks = _Watch(on_progress), 0
        poll_seconds = LONG_POLL_SECONDS if on_progress is None else WATCHED_POLL_SECONDS
        try:
            async with asyncio.timeout(timeout) as limit:
                while True:
                    listens = self._websocket and breaks < MOST_BREAKS
                    pause = random.uniform(0.5, 1.5)
                    try:
                        watch.see(await self.task(task_no, wait=0 if listens else poll_seconds))
                        if listens and not watch.ended:
                            breaks += 1
                            await self._listen(task_no, watch)
                    except GatewayError as error:
                        if error.code not in PASSING:
                            raise
                        pause = max(pause, error.retry_after or 0.0)
                    if watch.ended:
                        return watch.ended
                    await asyncio.sleep(pause)
        except TimeoutError as error:
            if not limit.expired():  # the caller's own
                raise
            raise GatewayError(f"not within {timeout} s", error_code="TIMEOUT") from error

    async def task(self, task_no: str, *, wait: int = 0) -> Task:
        """As it stands, after at most `wait` seconds (up to 60) in which it did not end."""
        path = f"/user/ai/tasks/{quoted(task_no, safe='')}" + (f"?wait={wait}" if wait else "")
        return cast(Task, await self._request("GET", path, timeout=ANSWER_SECONDS + wait))

    async def cancel(self, task_no: str) -> Task:
        """Takes a task back that is not generated yet; its points are refunded. 409 NOT_CANCELLABLE otherwise."""
        return cast(Task, await self._request("POST", f"/user/ai/tasks/{quoted(task_no, safe='')}/cancel"))

    async def quote(
        self,
        model_name: str,
        prompt: str,
        *,
        image_url: ImageUrl | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> Quote:
        """What `submit` would take now; nothing is charged."""
        body = _order(model_name, prompt, image_url, params)
        return cast(Quote, await self._request("POST", "/user/ai/tasks/quote", json=body))

    async def models(self) -> list[Model]:
        return cast(list[Model], await self._request("GET", "/user/ai/models"))

    async def balance(self) -> Balance:
        return cast(Balance, await self._request("GET", "/user/points/consumption/balance"))

    async def upload(self, file: Path | bytes) -> Upload:
        """A file becomes a link, for `image_url` and the like: it is in `url`."""
        content = file if isinstance(file, bytes) else await asyncio.to_thread(file.read_bytes)
        form = {"files": {"file": ("file", content)}, "timeout": UPLOAD_SECONDS}
        return cast(Upload, await self._request("POST", "/user/files/upload", **form))

    async def _listen(self, task_no: str, watch: "_Watch") -> None:
        """Until the task has ended, or the connection has."""
        async with aclosing(self._messages(watch.since)) as messages:
            async for message in messages:
                if message["type"] == "auth":
                    # What ended just before is told to nobody who comes without `since`: so it is looked at once.
                    watch.see(await self.task(task_no))
                elif message["type"] == "task":
                    watch.since = message["id"]
                    if message["data"]["taskNo"] == task_no:
                        watch.see(message["data"])
                if watch.ended:
                    return

    async def _messages(self, since: str | None) -> AsyncGenerator[dict[str, Any], None]:
        """Of one connection, until it ends, for whatever reason."""
        hello = {"type": "auth", "token": await self._token()} | ({"since": since} if since else {})
        url = "ws" + self._base.removeprefix("http") + "/user/ai/tasks/ws"
        try:
            async with connect(
                url, open_timeout=CONNECT_SECONDS, close_timeout=1, max_size=MAX_MESSAGE_BYTES
            ) as socket:
                await socket.send(json.dumps(hello))
                while True:
                    async with asyncio.timeout(RETRY_DELAY_SECONDS):
                        message = await socket.recv()
                    yield json.loads(message)
        except (OSError, WebSocketException):  # TimeoutError is an OSError
            return

    async def _token(self) -> str:
        if isinstance(self._credential, str):
            return self._credential
        given = self._credential()
        return await given if inspect.isawaitable(given) else given

    async def _request(self, method: str, path: str, **options: Any) -> Any:
        """`data` of the answer. What may pass is tried again, which every request here may be: a submit has its key."""
        for attempt in range(1, self._tries + 1):
            try:
                return await self._send(method, path, **options)
            except GatewayError as error:
                pause = error.retry_after
                if pause is None:
                    pause = 2.0 ** (attempt - 2) * random.uniform(0.5, 1)
                if error.code not in PASSING or attempt == self._tries or pause > LONGEST_PAUSE:
                    raise
            await asyncio.sleep(pause)
        raise AssertionError("unreachable")

    async def _send(
        self,
        method: str,
        path: str,
        *,
        headers: dict[str, str] | None = None,
        timeout: float = ANSWER_SECONDS,
        **body: Any,
    ) -> Any:
        own = {"Authorization": f"Bearer {await self._token()}"} | (headers or {})
        try:
            answer = await self._http.request(method, self._base + path, headers=own, timeout=timeout, **body)
        except httpx.RequestError as error:
            raise GatewayError(f"no answer from the gateway: {error!r}", error_code="NETWORK") from error
        return _read(answer)


def verify_webhook(secret: str, headers: Mapping[str, str], body: bytes | str, *, now: float | None = None) -> Webhook:
    """What a webhook says, where it is ours; GatewayError WEBHOOK_INVALID otherwise.

    `body` is as it came, not parsed. Raises binascii.Error for a secret that is none.
    """
    named = {name.lower(): value for name, value in headers.items()}
    message_id, timestamp, signatures = (named.get(f"webhook-{name}", "") for name in ("id", "timestamp", "signature"))
    if not (message_id and timestamp.isascii() and timestamp.isdecimal() and signatures):
        raise _invalid("a webhook header is missing")
    if abs((time.time() if now is None else now) - int(timestamp)) > TOLERANCE_SECONDS:
        raise _invalid("the timestamp is too far from now")
    raw = body.encode() if isinstance(body, str) else body
    key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    right = hmac.digest(key, f"{message_id}.{timestamp}.".encode() + raw, hashlib.sha256)
    if not any(hmac.compare_digest(right, one) for one in map(_signature, signatures.split(" "))):
        raise _invalid("no signature is right")
    return cast(Webhook, json.loads(raw))


def _signature(told: str) -> bytes:
    version, _, signature = told.partition(",")
    try:
        return base64.b64decode(signature, validate=True) if version == "v1" else b""
    except (binascii.Error, ValueError):
        return b""


def _invalid(message: str) -> GatewayError:
    return GatewayError(message, code=400, error_code="WEBHOOK_INVALID")


class _Watch:
    """What is known of a task: looks and messages may overtake each other, and what is older is not told."""

    def __init__(self, tell: Callable[[Task], object] | None) -> None:
        self.since: str | None = None
        self.task: Task | None = None
        self._tell = tell

    @property
    def ended(self) -> Task | None:
        return self.task if self.task is not None and self.task["status"] in ENDED else None

    def see(self, task: Task) -> None:
        if self.ended or (self.task is not None and _place(task) <= _place(self.task)):
            return
        self.task = task
        if self._tell is not None:
            self._tell(task)


def _place(task: Task) -> tuple[int, int]:
    return RANKS.index(task["status"]), task["progress"]


def _order(
    model_name: str, prompt: str, image_url: ImageUrl | None, params: Mapping[str, Any] | None, **more: Any
) -> dict[str, Any]:
    body = {"modelName": model_name, "prompt": prompt, "imageUrl": image_url, "params": params, **more}
    return {name: value for name, value in body.items() if value is not None}


def _read(answer: httpx.Response) -> Any:
    try:
        told = answer.json()
    except ValueError:
        told = None
    if not isinstance(told, dict):
        told = {}  # something between us and the gateway answered
    if answer.is_success and told.get("code") == httpx.codes.OK:
        return told["data"]
    retry_after = answer.headers.get("Retry-After", "")
    raise GatewayError(
        told.get("message") or answer.text[:200] or answer.reason_phrase,
        code=answer.status_code,
        error_code=told.get("errorCode") or f"HTTP_{answer.status_code}",
        request_id=told.get("requestId") or answer.headers.get("X-Request-Id", ""),
        retry_after=float(retry_after) if retry_after.isdecimal() else None,
    )
