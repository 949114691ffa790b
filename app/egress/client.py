"""Fetching strangers' files, and posting to strangers: bounded in bytes, time and slowness; no cookies or proxies."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urljoin

import aiohttp
import anyio
from yarl import URL

from app.egress.errors import EgressConnectError, EgressFailed, EgressForbidden, EgressTimeout
from app.egress.resolver import DNS_THREADS, CheckedResolver, Lookup
from app.egress.urls import InvalidUrl, parse_url

MAX_REDIRECTS = 5
REDIRECTS = frozenset({301, 302, 303, 307, 308})
CONNECT_SECONDS = 10
MIN_RATE_SECONDS = 20
"""A body must bring MIN_RATE_BYTES in every such stretch: slower, it is a drip that only holds us."""
MIN_RATE_BYTES = 16 * 1024
READ_BUFFER_BYTES = 256 * 1024
DRAIN_BYTES = 4096
DRAIN_SECONDS = 1.0
MAX_URL_LENGTH = 8192
"""Looser than for callers: storage services sign results and redirects with long tokens."""

HEADERS = {"User-Agent": "points-gateway", "Accept": "*/*", "Accept-Encoding": "identity"}


@dataclass(frozen=True)
class Download:
    """`content_type` is what the server claims, lower case, without parameters: judge by the bytes."""

    size_bytes: int
    content_type: str


@dataclass(frozen=True)
class PostResult:
    """The answer to a POST: any status at all, and its Retry-After as it came."""

    status: int
    retry_after: str | None


class Egress:
    """`allowed`: exact `host:port` origins exempt from the public-address and port rules.

    `lookup` stands in for the system's resolver. Open one for the life of the process and close it.
    """

    def __init__(
        self, allowed: frozenset[str], *, lookup: Lookup | None = None, dns_threads: int = DNS_THREADS
    ) -> None:
        self._allowed = allowed
        self._resolver = CheckedResolver(allowed, lookup, dns_threads)
        self._session: aiohttp.ClientSession | None = None

    async def download(self, url: str, to: Path, *, max_bytes: int, timeout_seconds: float) -> Download:
        """Stream `url` into the file `to`, which is there afterwards only if all of it arrived.

        Raises EgressForbidden, EgressFailed, or OSError where our own disk will not take it.
        """
        try:
            async with _bounded(timeout_seconds), self._open_response(url, {}) as response:
                size_bytes = await _write_to(response, to, max_bytes)
        except BaseException:
            to.unlink(missing_ok=True)  # noqa: ASYNC240  nothing may be awaited while being cancelled
            raise
        claimed = response.headers.get("Content-Type", "").partition(";")[0]
        return Download(size_bytes, claimed.strip().lower() or "application/octet-stream")

    async def read_start(self, url: str, *, max_bytes: int, timeout_seconds: float) -> bytes:
        """The first `max_bytes` at `url`, or all there is; no more is read, whatever the server sends.

        Raises EgressForbidden or EgressFailed.
        """
        start = bytearray()
        range_wanted = {"Range": f"bytes=0-{max_bytes - 1}"}
        async with (
            _bounded(timeout_seconds),
            self._open_response(url, range_wanted) as response,
            aclosing(_chunks(response)) as chunks,
        ):
            async for chunk in chunks:
                start += chunk
                if len(start) >= max_bytes:
                    break
        if not start:
            raise EgressFailed("empty body", response.status)
        return bytes(start[:max_bytes])

    async def post(self, url: str, body: bytes, headers: Mapping[str, str], *, timeout_seconds: float) -> PostResult:
        """One POST to exactly this address: a redirect is an answer like any other, and nobody follows it.

        Raises EgressForbidden, or EgressFailed where no answer came.
        """
        async with _bounded(timeout_seconds):
            response = await self._open_session().post(
                self._checked_url(url), data=body, headers=headers, allow_redirects=False
            )
        try:
            await _drain(response)
            return PostResult(response.status, response.headers.get("Retry-After"))
        finally:
            response.close()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
        await self._resolver.close()

    @asynccontextmanager
    async def _open_response(self, url: str, headers: dict[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer at the end of the redirects, its body unread; each hop is judged anew."""
        connection = self._open_session()
        for _ in range(MAX_REDIRECTS + 1):
            target = self._checked_url(url)
            response = await connection.get(target, headers=headers, allow_redirects=False)
            try:
                if response.status not in REDIRECTS:
                    _require_plain_body(response, ranged="Range" in headers)
                    yield response
                    return
                url = _redirect_target(target, response)
            finally:
                response.close()
        raise EgressFailed("too many redirects")

    def _checked_url(self, url: str) -> URL:
        try:
            return parse_url(url, self._allowed, longest=MAX_URL_LENGTH)
        except InvalidUrl:
            raise EgressForbidden from None

    def _open_session(self) -> aiohttp.ClientSession:
        """Made at the first call, because aiohttp wants a running loop. No connection is used twice."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(resolver=self._resolver, use_dns_cache=False, force_close=True, limit=0),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=MIN_RATE_SECONDS),
                headers=HEADERS,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,  # or a bomb would swell before its header is refused
                trust_env=False,
                read_bufsize=READ_BUFFER_BYTES,
            )
        return self._session


@asynccontextmanager
async def _bounded(timeout_seconds: float) -> AsyncIterator[None]:
    """One deadline over everything within, and our own errors instead of aiohttp's, whose texts hold URLs."""
    try:
        async with asyncio.timeout(timeout_seconds):
            yield
    except TimeoutError:
        raise EgressTimeout("timed out") from None
    except aiohttp.ClientSSLError as error:
        raise EgressFailed(f"no TLS ({type(error).__name__})") from None
    except aiohttp.ClientConnectorError:
        raise EgressConnectError("cannot connect") from None
    except (aiohttp.ClientError, ConnectionError) as error:
        raise EgressFailed(f"broken answer ({type(error).__name__})") from None


async def _drain(response: aiohttp.ClientResponse) -> None:
    """A little of a body nobody wants, so that who answers briefly is not cut off; who does not is."""
    with suppress(TimeoutError, aiohttp.ClientError, ConnectionError):
        async with asyncio.timeout(DRAIN_SECONDS):
            await response.content.read(DRAIN_BYTES)


def _require_plain_body(response: aiohttp.ClientResponse, *, ranged: bool) -> None:
    partial = ranged and response.status == HTTPStatus.PARTIAL_CONTENT
    if response.status != HTTPStatus.OK and not partial:
        raise EgressFailed(f"HTTP {response.status}", response.status)
    if partial and not response.headers.get("Content-Range", "").lower().startswith("bytes 0-"):
        raise EgressFailed("another range than asked for", response.status)
    if response.headers.get("Content-Encoding", "identity").strip().lower() not in {"", "identity"}:
        raise EgressFailed("compressed although not asked for", response.status)


def _redirect_target(target: URL, response: aiohttp.ClientResponse) -> str:
    try:
        return urljoin(str(target), response.headers["Location"])
    except (KeyError, ValueError):
        raise EgressFailed("redirect without a usable Location", response.status) from None


async def _write_to(response: aiohttp.ClientResponse, to: Path, max_bytes: int) -> int:
    announced_bytes = response.content_length
    if announced_bytes is not None and announced_bytes > max_bytes:
        raise EgressFailed("too large", response.status)
    size_bytes = 0
    async with aclosing(_chunks(response)) as chunks, await anyio.open_file(to, "wb") as file:
        async for chunk in chunks:
            size_bytes += len(chunk)
            if size_bytes > max_bytes:
                raise EgressFailed("too large", response.status)
            await file.write(chunk)
    if size_bytes == 0:
        raise EgressFailed("empty body", response.status)
    return size_bytes


async def _chunks(response: aiohttp.ClientResponse) -> AsyncGenerator[bytes]:
    """The body as it comes, given up when it drips. No clock is left running across a `yield`."""
    loop = asyncio.get_running_loop()
    due, fresh_bytes = loop.time() + MIN_RATE_SECONDS, 0
    while True:
        try:
            async with asyncio.timeout_at(due):
                chunk = await response.content.readany()
        except TimeoutError:
            raise EgressFailed("stalled", response.status) from None
        if not chunk:
            return
        fresh_bytes += len(chunk)
        if fresh_bytes >= MIN_RATE_BYTES:
            due, fresh_bytes = loop.time() + MIN_RATE_SECONDS, 0
        yield chunk
