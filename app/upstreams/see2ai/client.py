"""The HTTP client of SEE2AI: one try, one total time limit, one result. It never raises for an answer.

Each submit opens a new connection: if a server closes a kept connection during the write, nobody knows whether it took
the job. A GET may be repeated without harm: GETs share kept connections, and use aiohttp without httpx, which takes a
third of the CPU time. A worker makes thousands of polls a second.
"""

import asyncio
import ssl
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import httpx
import structlog
from aiohttp.connector import Connection
from httpx_aiohttp import AiohttpTransport

from app.datetimes import parse_retry_after
from app.settings import Settings
from app.telemetry import metrics
from app.upstreams.action import as_urls
from app.upstreams.protocol import ResultKind, UpstreamResult
from app.upstreams.see2ai.actions import Action
from app.upstreams.see2ai.responses import HttpResponse, read_poll, read_result, read_submit

log = structlog.get_logger()

SUBMIT_SECONDS = 60
POLL_SECONDS = 30
CONNECT_SECONDS = 10
MAX_BODY_BYTES = 1_000_000
MAX_RETRY_AFTER_SECONDS = 3600
UPLOAD_PATH = "/api/v1/actions/see2ai_storage_upload_v1"
UPLOAD_SECONDS = 300  # the vendor's own clients wait as long


class UnreadableAnswer(Exception):
    """The body is too long, or not what its encoding says."""


class UpstreamUnreachable(Exception):
    """SEE2AI could not be reached, or its answer could not be read. The text says why, for the operator."""


class _LeaseExpired(Exception):
    """The lease has ended: nothing may be sent any more."""

    def __init__(self) -> None:
        super().__init__("the lease ran out before sending")


class _Attempt:
    """One request: whether it may still be sent, and whether a byte of it may have left this machine.

    Until `begin` the other side has nothing. So an error before it, of whatever kind, means that nothing was sent.
    """

    def __init__(self, may_send: Callable[[], bool] = lambda: True) -> None:
        self._may_send = may_send
        self._has_begun = False

    def require_permission(self) -> None:
        """Raises _LeaseExpired."""
        if not self._may_send():
            raise _LeaseExpired

    def begin(self) -> None:
        """The next thing that happens is a write to the connection."""
        self._has_begun = True

    def result_of(self, error: Exception, if_sent: ResultKind) -> UpstreamResult:
        return UpstreamResult(if_sent if self._has_begun else ResultKind.NOT_SENT, _describe(error))


_attempt: ContextVar[_Attempt | None] = ContextVar("attempt", default=None)
"""The request of this context. Polls have none: they may always be sent and repeated."""

CONNECTION_ERRORS = (httpx.HTTPError, aiohttp.ClientError, UnicodeError)
"""The transport passes some errors of aiohttp on unchanged, such as the one for an answer that is not HTTP."""
EXPECTED_ERRORS = (*CONNECTION_ERRORS, TimeoutError, UnreadableAnswer, _LeaseExpired)


class See2aiClient:
    """A client for one base URL and one key. The key is sent to that origin only; redirects are not followed."""

    def __init__(self, settings: Settings) -> None:
        self._base_url = settings.see2ai_base_url.rstrip("/")
        self._headers = {
            "Authorization": f"Bearer {settings.see2ai_api_key}",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
        }
        self._fresh = _open_fresh()
        self._kept: aiohttp.ClientSession | None = None
        self._logged_states: set[str] = set()

    async def submit(self, action: Action, request: dict[str, Any], *, may_send: Callable[[], bool]) -> UpstreamResult:
        """Sends one job. `may_send` is asked first, and again when the connection is open, which may take long.

        A worker whose lease has ended sends nothing. The caller logs the request before it commits the intent to send.
        It never raises: an error of any kind is NOT_SENT where certainly no byte was sent, else UNKNOWN_OUTCOME.
        """
        attempt = _Attempt(may_send)
        try:
            attempt.require_permission()
            async with asyncio.timeout(SUBMIT_SECONDS):
                answer = await self._post(attempt, action.submit_path, json=request)
            result = read_submit(answer) if action.status_path else read_result(answer, action.read_urls)
        except Exception as error:
            if not isinstance(error, EXPECTED_ERRORS):
                log.exception("see2ai_submit_failed")
            result = attempt.result_of(error, if_sent=ResultKind.UNKNOWN_OUTCOME)
        else:
            log.info("see2ai_answer", status=answer.status, body=answer.body[:4000])
        metrics.UPSTREAM_ANSWERS.labels("submit", result.kind).inc()
        return result

    async def poll(self, action: Action, task_id: str) -> UpstreamResult:
        """Asks for the state of one job. An unreadable answer is a SERVER_ERROR: the job is polled again."""
        path = (action.status_path or "").format(task_id=quote(task_id, safe=""))
        try:
            async with asyncio.timeout(POLL_SECONDS):
                answer = await self._get(path)
        except (*CONNECTION_ERRORS, TimeoutError, UnreadableAnswer) as error:
            result = UpstreamResult(ResultKind.SERVER_ERROR, _describe(error))
        else:
            result = read_poll(answer, task_id, action.read_urls)
            if result.kind is not ResultKind.RUNNING:
                log.info("see2ai_answer", task_id=task_id, status=answer.status, body=answer.body[:4000])
        metrics.UPSTREAM_ANSWERS.labels("poll", result.kind).inc()
        self._log_unknown_state(result.unknown_state)
        return result

    async def upload(self, path: Path) -> UpstreamResult:
        """Stores a file at SEE2AI: SUCCEEDED with its URL. It may be repeated without harm."""
        attempt = _Attempt()
        try:
            with path.open("rb") as file:
                async with asyncio.timeout(UPLOAD_SECONDS):
                    answer = await self._post(attempt, UPLOAD_PATH, files={"file": (path.name, file)})
        except EXPECTED_ERRORS as error:
            result = attempt.result_of(error, if_sent=ResultKind.SERVER_ERROR)
        else:
            result = read_result(answer, lambda body: as_urls(body.get("url")))
        log.info("see2ai_upload", name=path.name, result=result.kind, note=result.detail[:300])
        metrics.UPSTREAM_ANSWERS.labels("upload", result.kind).inc()
        return result

    async def get(self, path: str) -> HttpResponse:
        """A call that may be repeated without harm. Raises UpstreamUnreachable."""
        try:
            async with asyncio.timeout(POLL_SECONDS):
                return await self._get(path)
        except Exception as error:
            raise UpstreamUnreachable(_describe(error)) from error

    async def _post(self, attempt: _Attempt, path: str, **body: Any) -> HttpResponse:
        """A POST on a connection of its own, which tells `attempt` when its first byte leaves."""
        token = _attempt.set(attempt)
        try:
            return await self._send(path, **body)
        finally:
            _attempt.reset(token)

    async def _send(self, path: str, **body: Any) -> HttpResponse:
        async with self._fresh.stream("POST", self._base_url + path, headers=self._headers, **body) as response:
            content = await _read_limited(response.aiter_raw(), response.headers)
        return _read_response(response.status_code, response.headers, content)

    async def _get(self, path: str) -> HttpResponse:
        """On a kept connection. If it turns out to be closed, aiohttp sends the GET once more on another one."""
        if self._kept is None:  # aiohttp needs a running loop
            self._kept = _open_kept(self._headers)
        async with self._kept.get(self._base_url + path, allow_redirects=False) as response:
            content = await _read_limited(response.content.iter_any(), response.headers)
        return _read_response(response.status, response.headers, content)

    def _log_unknown_state(self, state: str) -> None:
        if state and state not in self._logged_states and len(self._logged_states) < 100:  # noqa: PLR2004
            self._logged_states.add(state)
            metrics.UNKNOWN_STATES.labels(state).inc()
            log.warning("see2ai_unknown_state", state=state, meaning="taken as still running")

    async def close(self) -> None:
        await self._fresh.aclose()
        if self._kept is not None:
            await self._kept.close()


class _LenientResponse(aiohttp.ClientResponse):
    """Drops the reason phrase: if it is not UTF-8, httpx's transport raises although the answer is good."""

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        answer = await super().start(connection)
        answer.reason = None
        return answer


class _WatchedRequest(aiohttp.ClientRequest):
    """Asks for permission at the last moment: the connection is open and no byte is sent yet.

    aiohttp holds the head back until `write_bytes`, and writes it with the body, which every attempt has. So a head
    that it refuses is not sent.
    """

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        if (attempt := _attempt.get()) is not None:
            attempt.require_permission()
        return await super().send(conn)

    async def write_bytes(self, *args: Any, **options: Any) -> None:
        if (attempt := _attempt.get()) is not None:
            attempt.begin()
        await super().write_bytes(*args, **options)


@cache
def _trusted_certificates() -> ssl.SSLContext:
    """Reads the machine's certificates once in a process, which takes some 10 ms."""
    return ssl.create_default_context()


def _open_fresh() -> httpx.AsyncClient:
    def connection() -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            request_class=_WatchedRequest,
            response_class=_LenientResponse,
            connector=aiohttp.TCPConnector(limit=0, ssl=_trusted_certificates(), force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )

    return httpx.AsyncClient(
        # The transport never opens a session of its own. This context, which trusts nobody, spares it the certificates.
        transport=AiohttpTransport(verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), client=connection, trust_env=False),
        timeout=httpx.Timeout(None, connect=CONNECT_SECONDS, pool=CONNECT_SECONDS),
        follow_redirects=False,
        trust_env=False,
    )


def _open_kept(headers: Mapping[str, str]) -> aiohttp.ClientSession:
    """No cookies, no proxies and no decompression: `_read_limited` decompresses within its limit."""
    return aiohttp.ClientSession(
        headers=headers,
        connector=aiohttp.TCPConnector(limit=0, ssl=_trusted_certificates(), keepalive_timeout=15),
        timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS, sock_connect=CONNECT_SECONDS),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
    )


def _read_response(status: int, headers: Mapping[str, str], body: bytes) -> HttpResponse:
    return HttpResponse(status, body, parse_retry_after(headers.get("Retry-After"), MAX_RETRY_AFTER_SECONDS))


async def _read_limited(chunks: AsyncIterator[bytes], headers: Mapping[str, str]) -> bytes:
    """The decoded body. Raises UnreadableAnswer for more than MAX_BODY_BYTES, compressed or not."""
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise UnreadableAnswer("the body is too long")
    encoding = headers.get("Content-Encoding", "identity").lower()
    if encoding in {"identity", ""}:
        return bytes(body)
    if encoding not in {"gzip", "deflate"}:
        raise UnreadableAnswer(f"an encoding that was not asked for: {encoding[:20]}")
    decompressor = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    try:
        body_bytes = decompressor.decompress(bytes(body), MAX_BODY_BYTES)
    except zlib.error as error:
        raise UnreadableAnswer("broken compression") from error
    if decompressor.unconsumed_tail:
        raise UnreadableAnswer("the decompressed body is too long")
    return body_bytes


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]
