"""Where results live for good: in a directory (`file://`) or in a bucket (`s3://`: OSS, MinIO, AWS).

It knows keys and bytes, refuses keys that could climb out of their place, and says StorageError, and nothing
else, when the store is away, slow or denying.
"""

import asyncio
import atexit
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, S3Store

from app.settings import Settings

if TYPE_CHECKING:  # exist in obstore's stubs only
    from obstore import GetOptions, GetResult, ObjectMeta
    from obstore.store import ClientConfig, RetryConfig, S3Config

# obstore's Tokio threads may still be dropping Python objects when the interpreter goes away, which aborts
# the process after its work is done: give them a moment.
atexit.register(time.sleep, 0.05)

TIMEOUT_SECONDS = 25
MIN_BYTES_PER_SECOND = 512 * 1024
"""A put may take TIMEOUT_SECONDS and then as long as this rate needs for its bytes."""

PLAIN_PUT_BYTES = 16 * 1024 * 1024
"""Up to here one plain PUT, whose body is held in memory; above, parts."""
PART_BYTES = 8 * 1024 * 1024
PARTS_AT_ONCE = 2
LARGE_BYTES = 8 * 1024 * 1024
LARGE_PUTS_AT_ONCE = 4
READ_BYTES = 256 * 1024

CHECK_KEY = "health/check.txt"
MAX_KEY_LENGTH = 512
PUBLIC_PREFIXES = ("results/", "uploads/")
"""What callers may name; whatever else lies in the store is not theirs."""
_SEGMENT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}")

_CLIENT: "ClientConfig" = {
    "connect_timeout": timedelta(seconds=5),
    # Over a whole answer, which for a film may be long; every wait of ours has a shorter clock of its own.
    "timeout": timedelta(hours=1),
}
_RETRY: "RetryConfig" = {
    "max_retries": 2,
    "retry_timeout": timedelta(seconds=15),
    "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=2), "base": 2},
}


class StorageError(Exception):
    """The store did not do what was asked; trying again later may help. The text is for logs."""


class _NoSuchObjectError(StorageError):
    """Nothing under that key: an answer to a reader, and a fault to a writer (there is no such bucket)."""


@dataclass(frozen=True)
class StoredObject:
    """An object's bytes from `start` up to, not including, `end`; `size` is that of the whole object."""

    size: int
    start: int
    end: int
    content: AsyncIterator[bytes]


def open_object_store(settings: Settings) -> "ObjectStore":
    """The store of `STORAGE_URL`; nothing is sent yet. StorageError for a directory that cannot be made."""
    location = urlsplit(settings.storage_location)
    if location.scheme == "s3":
        return _open_bucket(settings, bucket=location.netloc, prefix=location.path.strip("/"))
    try:
        directory = LocalStore(url2pathname(location.path), mkdir=True)
    except (BaseError, OSError) as error:
        raise StorageError(f"open: {type(error).__name__}") from None
    return ObjectStore(directory, public_base=f"{settings.own_url}/files")


class ObjectStore:
    """Keys are paths of letters, digits, `_`, `-`, `.`; every put replaces what was there, all or nothing."""

    def __init__(self, store: LocalStore | S3Store, *, public_base: str) -> None:
        self._store = store
        self._public_base = public_base
        self._large_puts = asyncio.Semaphore(LARGE_PUTS_AT_ONCE)

    @property
    def is_local(self) -> bool:
        """Whether the gateway must serve the files itself, under `/files/`."""
        return isinstance(self._store, LocalStore)

    def public_url(self, key: str) -> str:
        return f"{self._public_base}/{_checked(key)}"

    def key_from_url(self, url: str) -> str | None:
        """The key that `public_url` would make this very URL of; None for any other."""
        base, _, key = url.partition(f"{self._public_base}/")
        return key if not base and _is_key(key) and key.startswith(PUBLIC_PREFIXES) else None

    async def put_file(self, key: str, path: Path, content_type: str) -> None:
        size_bytes = (await asyncio.to_thread(path.stat)).st_size
        if size_bytes <= LARGE_BYTES:
            await self._put(key, path, size_bytes, content_type)
            return
        async with self._large_puts:
            await self._put(key, path, size_bytes, content_type)

    async def put(self, key: str, data: bytes, content_type: str) -> None:
        await self._put(key, data, len(data), content_type)

    async def open(self, key: str, *, start: int = 0, end: int | None = None) -> StoredObject | None:
        """The object's bytes in [start, end), cut to its size; None where there is no such object.

        `content` may raise StorageError on the way. A `start` at or behind the end gives no bytes.
        """
        if not _is_key(key):
            return None
        if start == 0 and end is None:
            return await self._open_range(key, None)
        meta = await self._head(key)
        if meta is None:
            return None
        end = meta["size"] if end is None else min(end, meta["size"])
        if start >= end:
            return StoredObject(meta["size"], start, start, _nothing())
        if start == 0 and end == meta["size"]:  # some stores answer that with the whole, which obstore would refuse
            return await self._open_range(key, None)
        return await self._open_range(key, (start, end))

    async def exists(self, key: str) -> bool:
        return _is_key(key) and await self._head(key) is not None

    async def check(self) -> None:
        """One cheap round trip, for readiness; raises StorageError. The first leaves a small object."""
        if not await self.exists(CHECK_KEY):
            await self.put(CHECK_KEY, b"ok\n", "text/plain")

    async def _put(self, key: str, body: bytes | Path, size_bytes: int, content_type: str) -> None:
        seconds = TIMEOUT_SECONDS + size_bytes / MIN_BYTES_PER_SECOND
        async with _as_storage_error("put", seconds):
            await obstore.put_async(
                self._store,
                _checked(key),
                body,
                attributes=None if self.is_local else {"Content-Type": content_type},
                use_multipart=size_bytes > (LARGE_BYTES if self.is_local else PLAIN_PUT_BYTES),
                chunk_size=PART_BYTES,
                max_concurrency=PARTS_AT_ONCE,
            )

    async def _head(self, key: str) -> "ObjectMeta | None":
        try:
            async with _as_storage_error("head", TIMEOUT_SECONDS):
                return await obstore.head_async(self._store, key)
        except _NoSuchObjectError:
            return None

    async def _open_range(self, key: str, wanted: tuple[int, int] | None) -> StoredObject | None:
        options: GetOptions = {"range": wanted} if wanted else {}
        try:
            async with _as_storage_error("get", TIMEOUT_SECONDS):
                found = await obstore.get_async(self._store, key, options=options)
        except _NoSuchObjectError:
            return None
        return StoredObject(found.meta["size"], *found.range, _read(found))


def _open_bucket(settings: Settings, *, bucket: str, prefix: str) -> ObjectStore:
    if not bucket or (prefix and not _is_key(prefix)):
        raise StorageError("STORAGE_URL: want s3://bucket or s3://bucket/prefix, the prefix in plain letters")
    virtual_hosted = settings.storage_virtual_hosted_style
    endpoint = settings.storage_endpoint.rstrip("/")
    if endpoint and virtual_hosted:
        endpoint = _with_bucket_in_host(endpoint, bucket)
    config: S3Config = {"region": settings.storage_region, "virtual_hosted_style_request": virtual_hosted}
    if endpoint:
        config["endpoint"] = endpoint
    if settings.storage_access_key_id:  # without: the machine's role, as AWS's own tools do
        config["access_key_id"] = settings.storage_access_key_id
        config["secret_access_key"] = settings.storage_secret_access_key
    client: ClientConfig = {**_CLIENT, "allow_http": endpoint.startswith("http://")}
    store = S3Store(bucket, prefix=prefix or None, config=config, client_options=client, retry_config=_RETRY)
    base = settings.storage_public_url.rstrip("/") or _bucket_url(settings, endpoint, bucket)
    return ObjectStore(store, public_base=f"{base}/{prefix}" if prefix else base)


def _with_bucket_in_host(endpoint: str, bucket: str) -> str:
    """obstore wants the bucket in a virtual-hosted endpoint; consoles show the endpoint without it."""
    scheme, _, host = endpoint.partition("://")
    return endpoint if host.startswith(f"{bucket}.") else f"{scheme}://{bucket}.{host}"


def _bucket_url(settings: Settings, endpoint: str, bucket: str) -> str:
    """The address of the bucket's root as its endpoint serves it; `endpoint` has the bucket in its place."""
    if settings.storage_virtual_hosted_style:
        return endpoint or f"https://{bucket}.s3.{settings.storage_region}.amazonaws.com"
    return f"{endpoint or f'https://s3.{settings.storage_region}.amazonaws.com'}/{bucket}"


def _is_key(key: str) -> bool:
    """No empty, hidden or climbing segment (`..` begins with a dot), nothing a URL would have to escape."""
    return len(key) <= MAX_KEY_LENGTH and all(_SEGMENT.fullmatch(segment) for segment in key.split("/"))


def _checked(key: str) -> str:
    if not _is_key(key):
        raise ValueError(f"not a storage key: {key!r}")
    return key


@asynccontextmanager
async def _as_storage_error(doing: str, seconds: float) -> AsyncIterator[None]:
    """A clock, and one error for the many of obstore's."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise StorageError(f"{doing}: no answer within {seconds:.0f} s") from None
    except (BaseError, OSError) as error:
        # On a disk, a key below an object ("a.png/b") is answered with this instead of "not found".
        is_absent = isinstance(error, FileNotFoundError) or "kind: NotADirectory" in str(error)
        kind = _NoSuchObjectError if is_absent else StorageError
        raise kind(f"{doing}: {type(error).__name__}: {_summary(error)}") from None


def _summary(error: Exception) -> str:
    """What went wrong, without the server's XML behind it, which may repeat an access key."""
    return str(error).partition("\n")[0].partition("<")[0][:300]


async def _read(found: "GetResult") -> AsyncIterator[bytes]:
    chunks = aiter(found.stream(min_chunk_size=READ_BYTES))
    while True:
        async with _as_storage_error("read", TIMEOUT_SECONDS):
            chunk = await anext(chunks, None)
        if chunk is None:
            return
        yield bytes(chunk)


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""
