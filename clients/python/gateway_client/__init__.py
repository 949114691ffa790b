"""An asynchronous client of the points gateway: tasks, uploads, balance, webhooks. All times are in seconds."""

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

from gateway_client.keys import Keys
from gateway_client.login import Login
from gateway_client.responses import GatewayError, read_response
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

__all__ = ["Gateway", "GatewayError", "Login", "verify_webhook"]

ENDED = frozenset({"completed", "failed"})
RANKS = ("created", "queued", "processing", "completed", "failed")
RETRYABLE = frozenset({0, 429, 502, 503, 504})  # 0: no response
MAX_PAUSE_SECONDS = 60.0  # a longer `Retry-After` raises the error; only `wait` waits longer
REQUEST_SECONDS = 30.0
UPLOAD_SECONDS = 300.0
LONG_POLL_SECONDS = 30
PROGRESS_POLL_SECONDS = 5  # with `on_progress`
CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 75.0  # the gateway pings every 30 s, so a longer silence means a lost connection
MAX_CONNECTIONS = 3  # WebSockets of one `wait`, which then polls
MAX_MESSAGE_BYTES = 8_000_000
TOLERANCE_SECONDS = 300.0

Credential = str | Callable[[], str | Awaitable[str]]


class Gateway:
    """A gateway: `async with Gateway(url, credential) as gateway:`.

    The credential is an API key, a JWT, a `Login`, or a function that returns one of the first two. The function is
    called before each request.
    """

    def __init__(self, base_url: str, credential: Credential, *, websocket: bool = True, tries: int = 5) -> None:
        self._base = base_url.rstrip("/")
        self._credential = credential
        self._websocket = websocket
        self._tries = tries
        self._http = httpx.AsyncClient()
        self.keys = Keys(self._request)

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
        """Submits a task. Retries use one Idempotency-Key, by default a new one, so the task is charged once."""
        body = _submit_body(model_name, prompt, image_url, params, callbackUrl=callback_url)
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
        """Submits a task and waits for its end."""
        task = await self.submit(model_name, prompt, **options)
        return await self.wait(task["taskNo"], timeout=timeout, on_progress=on_progress)

    async def wait(
        self, task_no: str, *, timeout: float = 3600, on_progress: Callable[[Task], object] | None = None
    ) -> Task:
        """The task once it has ended; its `status` is completed or failed. It survives a restart of the gateway."""
        progress, connections = _Progress(on_progress), 0
        poll_seconds = LONG_POLL_SECONDS if on_progress is None else PROGRESS_POLL_SECONDS
        try:
            async with asyncio.timeout(timeout) as limit:
                while True:
                    listens = self._websocket and connections < MAX_CONNECTIONS
                    pause = random.uniform(0.5, 1.5)
                    try:
                        progress.update(await self.task(task_no, wait=0 if listens else poll_seconds))
                        if listens and not progress.ended:
                            connections += 1
                            await self._listen(task_no, progress)
                    except GatewayError as error:
                        if error.code not in RETRYABLE:
                            raise
                        pause = max(pause, error.retry_after or 0.0)
                    if progress.ended:
                        return progress.ended
                    await asyncio.sleep(pause)
        except TimeoutError as error:
            if not limit.expired():  # a timeout of the caller
                raise
            raise GatewayError(f"not within {timeout} s", error_code="TIMEOUT") from error

    async def task(self, task_no: str, *, wait: int = 0) -> Task:
        """The task now. With `wait` (up to 60 seconds) the gateway answers when it ends, or after that time."""
        path = f"/user/ai/tasks/{quoted(task_no, safe='')}" + (f"?wait={wait}" if wait else "")
        return cast(Task, await self._request("GET", path, timeout=REQUEST_SECONDS + wait))

    async def cancel(self, task_no: str) -> Task:
        """Cancels a task whose generation has not started, and refunds it. Raises NOT_CANCELLABLE (409) otherwise."""
        return cast(Task, await self._request("POST", f"/user/ai/tasks/{quoted(task_no, safe='')}/cancel"))

    async def quote(
        self,
        model_name: str,
        prompt: str,
        *,
        image_url: ImageUrl | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> Quote:
        """The price of a submit. It charges nothing."""
        body = _submit_body(model_name, prompt, image_url, params)
        return cast(Quote, await self._request("POST", "/user/ai/tasks/quote", json=body))

    async def models(self) -> list[Model]:
        return cast(list[Model], await self._request("GET", "/user/ai/models"))

    async def balance(self) -> Balance:
        return cast(Balance, await self._request("GET", "/user/points/consumption/balance"))

    async def upload(self, file: Path | bytes) -> Upload:
        """Uploads a file. Its `url` can be an `image_url` or another reference."""
        content = file if isinstance(file, bytes) else await asyncio.to_thread(file.read_bytes)
        form: dict[str, Any] = {"files": {"file": ("file", content)}, "timeout": UPLOAD_SECONDS}
        return cast(Upload, await self._request("POST", "/user/files/upload", **form))

    async def _listen(self, task_no: str, progress: "_Progress") -> None:
        """Receives changes until the task or the connection ends."""
        async with aclosing(self._messages(progress.since)) as messages:
            async for message in messages:
                if message["type"] == "auth":
                    # Without `since` the stream omits earlier changes, so the end may lie before it.
                    progress.update(await self.task(task_no))
                elif message["type"] == "task":
                    progress.since = message["id"]
                    if message["data"]["taskNo"] == task_no:
                        progress.update(message["data"])
                if progress.ended:
                    return

    async def _messages(self, since: str | None) -> AsyncGenerator[dict[str, Any], None]:
        """The messages of one connection, until it ends for any reason."""
        auth = {"type": "auth", "token": await self._token()} | ({"since": since} if since else {})
        url = "ws" + self._base.removeprefix("http") + "/user/ai/tasks/ws"
        try:
            async with connect(
                url, open_timeout=CONNECT_SECONDS, close_timeout=1, max_size=MAX_MESSAGE_BYTES
            ) as socket:
                await socket.send(json.dumps(auth))
                while True:
                    async with asyncio.timeout(SILENCE_SECONDS):
                        message = await socket.recv()
                    yield json.loads(message)
        except (OSError, WebSocketException):  # TimeoutError is an OSError
            return

    async def _token(self) -> str:
        if isinstance(self._credential, str):
            return self._credential
        token = self._credential()
        return await token if inspect.isawaitable(token) else token

    async def _request(self, method: str, path: str, *, once: bool = False, **options: Any) -> Any:
        """The response's `data`. It retries temporary errors, which is safe: a submit has its Idempotency-Key."""
        for attempt in range(1, self._tries + 1):
            token = ""
            try:
                token = await self._token()
                return await self._send(method, path, token, **options)
            except GatewayError as error:
                is_refused = token and error.code == httpx.codes.UNAUTHORIZED
                if is_refused and attempt == 1 < self._tries and isinstance(self._credential, Login):
                    self._credential.forget(token)  # it was revoked before its end
                    continue
                pause = error.retry_after
                if pause is None:
                    pause = 2.0 ** (attempt - 2) * random.uniform(0.5, 1)
                if once or error.code not in RETRYABLE or attempt == self._tries or pause > MAX_PAUSE_SECONDS:
                    raise
            await asyncio.sleep(pause)
        raise AssertionError("unreachable")

    async def _send(
        self,
        method: str,
        path: str,
        token: str,
        *,
        headers: dict[str, str] | None = None,
        timeout: float = REQUEST_SECONDS,
        **body: Any,
    ) -> Any:
        all_headers = {"Authorization": f"Bearer {token}"} | (headers or {})
        try:
            response = await self._http.request(method, self._base + path, headers=all_headers, timeout=timeout, **body)
        except httpx.RequestError as error:
            raise GatewayError(f"no response from the gateway: {error!r}", error_code="NETWORK") from error
        return read_response(response)


def verify_webhook(secret: str, headers: Mapping[str, str], body: bytes | str, *, now: float | None = None) -> Webhook:
    """Verifies a webhook and returns it. Raises GatewayError WEBHOOK_INVALID where the signature is wrong.

    `body` is the raw body. Raises binascii.Error for a malformed secret.
    """
    lowercase = {name.lower(): value for name, value in headers.items()}
    message_id, timestamp, signatures = (
        lowercase.get(f"webhook-{name}", "") for name in ("id", "timestamp", "signature")
    )
    if not (message_id and timestamp.isascii() and timestamp.isdecimal() and signatures):
        raise _invalid("a webhook header is missing")
    if abs((time.time() if now is None else now) - int(timestamp)) > TOLERANCE_SECONDS:
        raise _invalid("the timestamp is too far from now")
    raw = body.encode() if isinstance(body, str) else body
    key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    expected = hmac.digest(key, f"{message_id}.{timestamp}.".encode() + raw, hashlib.sha256)
    if not any(hmac.compare_digest(expected, signature) for signature in map(_signature, signatures.split(" "))):
        raise _invalid("no signature matches")
    return cast(Webhook, json.loads(raw))


def _signature(text: str) -> bytes:
    version, _, signature = text.partition(",")
    try:
        return base64.b64decode(signature, validate=True) if version == "v1" else b""
    except (binascii.Error, ValueError):
        return b""


def _invalid(message: str) -> GatewayError:
    return GatewayError(message, code=400, error_code="WEBHOOK_INVALID")


class _Progress:
    """The newest known state of a task. Responses and messages may overtake each other; older ones are dropped."""

    def __init__(self, on_progress: Callable[[Task], object] | None) -> None:
        self.since: str | None = None
        self.task: Task | None = None
        self._on_progress = on_progress

    @property
    def ended(self) -> Task | None:
        return self.task if self.task is not None and self.task["status"] in ENDED else None

    def update(self, task: Task) -> None:
        if self.ended or (self.task is not None and _rank(task) <= _rank(self.task)):
            return
        self.task = task
        if self._on_progress is not None:
            self._on_progress(task)


def _rank(task: Task) -> tuple[int, int]:
    return RANKS.index(task["status"]), task["progress"]


def _submit_body(
    model_name: str, prompt: str, image_url: ImageUrl | None, params: Mapping[str, Any] | None, **others: Any
) -> dict[str, Any]:
    body = {"modelName": model_name, "prompt": prompt, "imageUrl": image_url, "params": params, **others}
    return {name: value for name, value in body.items() if value is not None}
