"""The only speaker of HTTP to SEE2AI: one try, one total deadline, one verdict. It never raises for what it hears.

Submits use a fresh connection each: on a kept one, a server that hangs up just as we write would leave us not
knowing whether the job was taken. Polls share kept connections, because asking twice is harmless.
"""

import asyncio
import ssl
import time
import zlib
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

import aiohttp
import httpx
import structlog
from aiohttp.connector import Connection
from httpx_aiohttp import AiohttpTransport

from app import metrics
from app.see2ai.actions import Action
from app.see2ai.states import Answer, Kind, Verdict, read_poll, read_submit
from app.settings import Settings

log = structlog.get_logger()

SUBMIT_SECONDS = 60
POLL_SECONDS = 30
CONNECT_SECONDS = 10
LONGEST_BODY = 1_000_000
LONGEST_PAUSE_SECONDS = 3600
CHUNK = 65_536


class UnreadableAnswer(Exception):
    """The body is too long, or not what its encoding says."""


class See2ai:
    """A client for one base URL and one key. The key goes to that origin only and never along a redirect.

    The transport leaves some of aiohttp's errors as they are, such as that for an answer that is no HTTP.
    """

    def __init__(self, settings: Settings) -> None:
        self._base_url = settings.see2ai_base_url.rstrip("/")
        self._headers = {
            "Authorization": f"Bearer {settings.see2ai_api_key}",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
        }
        self._fresh = _open_client(keep_connections=False)
        self._kept = _open_client(keep_connections=True)
        self._told_words: set[str] = set()

    async def submit(self, action: Action, request: dict[str, Any], *, may_send: Callable[[], bool]) -> Verdict:
        """Sends one job. `may_send` is asked at the last moment: a visit whose lease has run out sends nothing."""
        if not may_send():
            return Verdict(Kind.NOT_SENT, "the lease ran out before sending")
        log.info("see2ai_submit", action=action.name, payload=request)
        try:
            async with asyncio.timeout(SUBMIT_SECONDS):
                answer = await self._ask(self._fresh, "POST", action.submit_path, json=request)
        except (httpx.HTTPError, aiohttp.ClientError, UnicodeError) as error:
            verdict = Verdict(Kind.NOT_SENT if _was_never_sent(error) else Kind.AMBIGUOUS, _name(error))
        except (TimeoutError, UnreadableAnswer) as error:
            verdict = Verdict(Kind.AMBIGUOUS, _name(error))
        else:
            verdict = read_submit(answer)
            log.info("see2ai_answer", status=answer.status, body=answer.body[:4000])
        metrics.UPSTREAM_ANSWERS.labels("submit", verdict.kind).inc()
        return verdict

    async def poll(self, action: Action, task_id: str) -> Verdict:
        """Looks after one job. Anything unreadable is trouble, to be looked at again."""
        path = action.status_path.format(task_id=quote(task_id, safe=""))
        try:
            async with asyncio.timeout(POLL_SECONDS):
                answer = await self._ask(self._kept, "GET", path)
        except (httpx.HTTPError, aiohttp.ClientError, UnicodeError, TimeoutError, UnreadableAnswer) as error:
            verdict = Verdict(Kind.TROUBLE, _name(error))
        else:
            verdict = read_poll(answer, task_id)
            if verdict.kind is not Kind.RUNNING:
                log.info("see2ai_answer", task_id=task_id, status=answer.status, body=answer.body[:4000])
        metrics.UPSTREAM_ANSWERS.labels("poll", verdict.kind).inc()
        self._note_unknown_word(verdict.unknown_word)
        return verdict

    async def _ask(self, client: httpx.AsyncClient, method: str, path: str, json: Any = None) -> Answer:
        url = self._base_url + path
        async with client.stream(method, url, headers=self._headers, json=json) as response:
            body = await _read_capped(response)
        return Answer(response.status_code, body, _retry_after(response.headers.get("Retry-After")))

    def _note_unknown_word(self, word: str) -> None:
        if word and word not in self._told_words and len(self._told_words) < 100:  # noqa: PLR2004
            self._told_words.add(word)
            metrics.UNKNOWN_STATES.labels(word).inc()
            log.warning("see2ai_unknown_state", word=word, meaning="taken as still running")

    async def close(self) -> None:
        await self._fresh.aclose()
        await self._kept.aclose()


class _WithoutReason(aiohttp.ClientResponse):
    """Forgets the reason phrase: one that is no UTF-8 would make httpx's transport raise over a good answer."""

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        answer = await super().start(connection)
        answer.reason = None
        return answer


def _open_client(*, keep_connections: bool) -> httpx.AsyncClient:
    def session() -> aiohttp.ClientSession:
        # `force_close` and a keep-alive time exclude each other in aiohttp's connector.
        connector = (
            aiohttp.TCPConnector(limit=0, ssl=ssl.create_default_context(), keepalive_timeout=15)
            if keep_connections
            else aiohttp.TCPConnector(limit=0, ssl=ssl.create_default_context(), force_close=True)
        )
        return aiohttp.ClientSession(
            response_class=_WithoutReason, connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
        )

    return httpx.AsyncClient(
        transport=AiohttpTransport(client=session, trust_env=False),
        timeout=httpx.Timeout(None, connect=CONNECT_SECONDS, pool=CONNECT_SECONDS),
        follow_redirects=False,
        trust_env=False,
    )


def _was_never_sent(error: Exception) -> bool:
    """Whether the request certainly stayed here.

    The transport reports a connection lost *after* sending as ConnectTimeout, too, so its own classes cannot be
    trusted here; aiohttp's are exact: these two are raised only while a connection is being made.
    """
    return isinstance(error.__cause__, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)


async def _read_capped(response: httpx.Response) -> bytes:
    """The decoded body, never more than LONGEST_BODY of it, however it was packed."""
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > LONGEST_BODY:
            raise UnreadableAnswer("the body is too long")
    encoding = response.headers.get("Content-Encoding", "identity").lower()
    if encoding in {"identity", ""}:
        return bytes(body)
    if encoding not in {"gzip", "deflate"}:
        raise UnreadableAnswer(f"an encoding we did not ask for: {encoding[:20]}")
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    try:
        plain = unpacker.decompress(bytes(body), LONGEST_BODY)
    except zlib.error as error:
        raise UnreadableAnswer("broken compression") from error
    if unpacker.unconsumed_tail:
        raise UnreadableAnswer("the unpacked body is too long")
    return plain


def _retry_after(value: str | None) -> float | None:
    """Seconds from now, of either form; None for what is neither."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return min(max(seconds, 0.0), LONGEST_PAUSE_SECONDS) if seconds == seconds else None  # noqa: PLR0124 (NaN)


def _name(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]
