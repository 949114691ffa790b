"""The HTTP client for foreign URLs. It bounds bytes, time and slowness, and uses no cookies and no proxies.

What a server says about a body is not trusted: neither its type nor its encoding. The bytes decide.
"""

import asyncio
import re
import zlib
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
from app.egress.urls import MAX_REQUESTED_URL_LENGTH, InvalidUrl, parse_url

MAX_REDIRECTS = 5
REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})
FILE_STATUSES = frozenset({HTTPStatus.OK, HTTPStatus.NON_AUTHORITATIVE_INFORMATION})
CONNECT_SECONDS = 10
MIN_RATE_SECONDS = 20
"""A body must bring MIN_RATE_BYTES in every period of this length. A slower server would only block us."""
MIN_RATE_BYTES = 16 * 1024
READ_BUFFER_BYTES = 256 * 1024
MAX_HEADER_LINE_BYTES = 32 * 1024  # some servers send long policies and signed redirects
GZIP_SIGNATURE = b"\x1f\x8b"  # no image, video or audio file begins with it
DRAIN_BYTES = 4096
DRAIN_SECONDS = 1.0

_RAW_BYTES = re.compile("[\udc80-\udcff]")  # as aiohttp decodes them
HEADERS = {"User-Agent": "points-gateway", "Accept": "*/*", "Accept-Encoding": "identity"}


@dataclass(frozen=True)
class Download:
    """A downloaded file. `content_type` is the server's claim, in lower case and without parameters."""

    size_bytes: int
    content_type: str


@dataclass(frozen=True)
class PostResult:
    """The response to a POST: its status, and the raw Retry-After header."""

    status: int
    retry_after: str | None


class Egress:
    """The client of one process. Close it at the end.

    `allowed` holds exact `host:port` origins that are exempt from the public-address rule and the port rule.
    `lookup` replaces the system's resolver.
    """

    def __init__(
        self, allowed: frozenset[str], *, lookup: Lookup | None = None, dns_threads: int = DNS_THREADS
    ) -> None:
        self._allowed = allowed
        self._resolver = CheckedResolver(allowed, lookup, dns_threads)
        self._session: aiohttp.ClientSession | None = None

    async def download(self, url: str, to: Path, *, max_bytes: int, timeout_seconds: float) -> Download:
        """Downloads `url` into the file `to`. The file exists afterwards only if the download is complete.

        Raises EgressForbidden, EgressFailed, or OSError if our own disk fails.
        """
        try:
            async with _limited(timeout_seconds), self._open_response(url, {}) as response:
                size_bytes = await _write_to(response, to, max_bytes)
        except BaseException:
            to.unlink(missing_ok=True)  # noqa: ASYNC240  during cancellation nothing may be awaited
            raise
        content_type = response.headers.get("Content-Type", "").partition(";")[0]
        return Download(size_bytes, content_type.strip().lower() or "application/octet-stream")

    async def read_start(self, url: str, *, max_bytes: int, timeout_seconds: float, https_only: bool = False) -> bytes:
        """Reads the first `max_bytes` bytes at `url`, or fewer if the file is shorter.

        Raises EgressForbidden or EgressFailed, with `https_only` also for a redirect to plain HTTP.
        """
        start = bytearray()
        range_header = {"Range": f"bytes=0-{max_bytes - 1}"}
        async with (
            _limited(timeout_seconds),
            self._open_response(url, range_header, https_only=https_only) as response,
            aclosing(_decompressed(response)) as chunks,
        ):
            async for chunk in chunks:
                start += chunk
                if len(start) >= max_bytes:
                    break
        if not start:
            raise EgressFailed("empty body", response.status)
        return bytes(start[:max_bytes])

    async def post(self, url: str, body: bytes, headers: Mapping[str, str], *, timeout_seconds: float) -> PostResult:
        """Sends one POST. It does not follow redirects.

        Raises EgressForbidden, or EgressFailed if there is no response.
        """
        async with _limited(timeout_seconds):
            response = await self._get_session().post(
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
    async def _open_response(
        self, url: str, headers: dict[str, str], *, https_only: bool = False
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Sends a GET and follows redirects; each URL is checked again. The body is not read yet."""
        session = self._get_session()
        for _ in range(MAX_REDIRECTS + 1):
            target = self._checked_url(url)
            if https_only and target.scheme != "https":
                raise EgressForbidden
            response = await session.get(target, headers=headers, allow_redirects=False)
            try:
                if response.status not in REDIRECT_STATUSES:
                    _require_file(response, is_ranged="Range" in headers)
                    yield response
                    return
                url = _redirect_target(target, response)
            finally:
                response.close()
        raise EgressFailed("too many redirects")

    def _checked_url(self, url: str) -> URL:
        try:
            return parse_url(url, self._allowed, max_length=MAX_REQUESTED_URL_LENGTH)
        except InvalidUrl:
            raise EgressForbidden from None

    def _get_session(self) -> aiohttp.ClientSession:
        """The session, created at the first call, because aiohttp needs a running loop. It reuses no connection."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(resolver=self._resolver, use_dns_cache=False, force_close=True, limit=0),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=MIN_RATE_SECONDS),
                headers=HEADERS,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,  # the bytes tell whether a body is compressed, see `_decompressed`
                trust_env=False,
                read_bufsize=READ_BUFFER_BYTES,
                max_field_size=MAX_HEADER_LINE_BYTES,
            )
        return self._session


@asynccontextmanager
async def _limited(timeout_seconds: float) -> AsyncIterator[None]:
    """Limits the block to `timeout_seconds`, and turns aiohttp's errors, whose texts contain URLs, into ours."""
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
    """Reads the start of a response body and ignores it, so that the server of a short response sees no reset."""
    with suppress(TimeoutError, aiohttp.ClientError, ConnectionError):
        async with asyncio.timeout(DRAIN_SECONDS):
            await response.content.read(DRAIN_BYTES)


def _require_file(response: aiohttp.ClientResponse, *, is_ranged: bool) -> None:
    is_partial = is_ranged and response.status == HTTPStatus.PARTIAL_CONTENT
    if response.status not in FILE_STATUSES and not is_partial:
        raise EgressFailed(f"HTTP {response.status}", response.status)
    if is_partial and not response.headers.get("Content-Range", "").lower().startswith("bytes 0-"):
        raise EgressFailed("wrong Content-Range", response.status)


def _redirect_target(target: URL, response: aiohttp.ClientResponse) -> str:
    """Bytes of Location that are not UTF-8 are escaped as they are."""
    try:
        location = _RAW_BYTES.sub(lambda match: f"%{ord(match[0]) & 0xFF:02X}", response.headers["Location"])
        return urljoin(str(target), location)
    except (KeyError, ValueError):
        raise EgressFailed("redirect without a usable Location", response.status) from None


async def _write_to(response: aiohttp.ClientResponse, to: Path, max_bytes: int) -> int:
    content_length = response.content_length
    if content_length is not None and content_length > max_bytes:
        raise EgressFailed("too large", response.status)
    size_bytes = 0
    async with aclosing(_decompressed(response)) as chunks, await anyio.open_file(to, "wb") as file:
        async for chunk in chunks:
            size_bytes += len(chunk)
            if size_bytes > max_bytes:
                raise EgressFailed("too large", response.status)
            await file.write(chunk)
    if size_bytes == 0:
        raise EgressFailed("empty body", response.status)
    return size_bytes


async def _chunks(response: aiohttp.ClientResponse) -> AsyncGenerator[bytes]:
    """The body in chunks. Raises EgressFailed below the minimum rate. No timeout runs across a `yield`."""
    loop = asyncio.get_running_loop()
    deadline, received_bytes = loop.time() + MIN_RATE_SECONDS, 0
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                chunk = await response.content.readany()
        except TimeoutError:
            raise EgressFailed("stalled", response.status) from None
        if not chunk:
            return
        received_bytes += len(chunk)
        if received_bytes >= MIN_RATE_BYTES:
            deadline, received_bytes = loop.time() + MIN_RATE_SECONDS, 0
        yield chunk


async def _decompressed(response: aiohttp.ClientResponse) -> AsyncGenerator[bytes]:
    """The body in chunks, decompressed if it is gzip. A chunk has at most READ_BUFFER_BYTES more than it received."""
    start = b""
    async with aclosing(_chunks(response)) as chunks:
        async for chunk in chunks:
            start += chunk
            if len(start) >= len(GZIP_SIGNATURE):
                break
        if not start.startswith(GZIP_SIGNATURE):
            if start:
                yield start
            async for chunk in chunks:
                yield chunk
            return
        gzip = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        try:
            while start and not gzip.eof:
                if piece := gzip.decompress(start, READ_BUFFER_BYTES):
                    yield piece
                start = gzip.unconsumed_tail or await anext(chunks, b"")
        except zlib.error:
            raise EgressFailed("broken compression", response.status) from None
    if not gzip.eof:
        raise EgressFailed("the compressed body ends too early", response.status)
