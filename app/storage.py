"""Permanent file storage in a directory (`file://`) or a bucket (`s3://`: OSS, MinIO, AWS).

It refuses keys that could leave the store's directory. Every failure of the store is a StorageError.
"""

import asyncio
import atexit
import re
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
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

# obstore's Tokio threads may still free Python objects while the interpreter shuts down, which aborts the process.
# A short wait lets them finish.
atexit.register(time.sleep, 0.05)

TIMEOUT_SECONDS = 25
MIN_BYTES_PER_SECOND = 512 * 1024
"""A put may take TIMEOUT_SECONDS plus the time that its bytes need at this rate."""

MAX_PLAIN_PUT_BYTES = 16 * 1024 * 1024
"""Up to this size the file is held in memory and sent in one PUT; a larger file is sent in parts."""
PART_BYTES = 8 * 1024 * 1024
MAX_CONCURRENT_PARTS = 2
LARGE_FILE_BYTES = 8 * 1024 * 1024
MAX_CONCURRENT_LARGE_PUTS = 4
READ_CHUNK_BYTES = 256 * 1024

CHECK_KEY = "health/check.txt"
MAX_KEY_LENGTH = 512
PUBLIC_PREFIXES = ("results/", "uploads/")
"""Callers may name and read objects under these prefixes only."""
_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}(/[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199})*")

_CLIENT: "ClientConfig" = {
    "connect_timeout": timedelta(seconds=5),
    "timeout": timedelta(hours=1),  # for a whole download, which may be a long video; each read has a shorter timeout
}
_RETRY: "RetryConfig" = {
    "max_retries": 2,
    "retry_timeout": timedelta(seconds=15),
    "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=2), "base": 2},
}


class StorageError(Exception):
    """The store failed, refused or was too slow. A later attempt may succeed. The text is for logs."""


class _ObjectNotFound(StorageError):
    """There is no object under the key. For a put it means that there is no such bucket."""


@dataclass(frozen=True)
class StoredObject:
    """An object's bytes in [start, end). `size` is the size of the whole object in bytes."""

    size: int
    start: int
    end: int
    content: AsyncIterator[bytes]


def open_object_store(settings: Settings) -> "ObjectStore":
    """Opens the store of `STORAGE_URL` without a request. StorageError if the directory cannot be created."""
    location = urlsplit(settings.storage_location)
    if location.scheme == "s3":
        return _open_bucket(settings, bucket=location.netloc, prefix=location.path.strip("/"))
    try:
        directory = LocalStore(url2pathname(location.path), mkdir=True)
    except (BaseError, OSError) as error:
        raise StorageError(f"open: {type(error).__name__}") from None
    return ObjectStore(directory, public_base=f"{settings.own_url}/files", folder=Path(url2pathname(location.path)))


class ObjectStore:
    """Objects by key. A key is a path of letters, digits, `_`, `-` and `.`. A put replaces the object atomically."""

    def __init__(self, store: LocalStore | S3Store, *, public_base: str, folder: Path | None = None) -> None:
        self._store = store
        self._folder = folder
        self._public_base = public_base
        self._large_puts = asyncio.Semaphore(MAX_CONCURRENT_LARGE_PUTS)

    @property
    def is_local(self) -> bool:
        """Whether the gateway itself must serve the files, under `/files/`."""
        return isinstance(self._store, LocalStore)

    def public_url(self, key: str) -> str:
        return f"{self._public_base}/{_require_key(key)}"

    def key_from_url(self, url: str) -> str | None:
        """The key whose `public_url` is exactly `url` and that callers may name; None if there is none."""
        base, _, key = url.partition(f"{self._public_base}/")
        return key if not base and _is_key(key) and key.startswith(PUBLIC_PREFIXES) else None

    async def put_file(self, key: str, path: Path, content_type: str) -> None:
        size_bytes = (await asyncio.to_thread(path.stat)).st_size
        if size_bytes <= LARGE_FILE_BYTES:
            await self._put(key, path, size_bytes, content_type)
            return
        async with self._large_puts:
            await self._put(key, path, size_bytes, content_type)

    async def put(self, key: str, data: bytes, content_type: str) -> None:
        await self._put(key, data, len(data), content_type)

    async def open(self, key: str, *, start: int = 0, end: int | None = None) -> StoredObject | None:
        """The object's bytes in [start, end), cut to its size. None if there is no such object.

        Iterating over `content` may raise StorageError. A `start` at or after the end gives no bytes.
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
            return StoredObject(meta["size"], start, start, _no_chunks())
        if start == 0 and end == meta["size"]:  # some stores respond 200 to such a range, which obstore refuses
            return await self._open_range(key, None)
        return await self._open_range(key, (start, end))

    async def delete(self, key: str) -> None:
        """Deletes the object, if there is one. Raises StorageError."""
        with suppress(_ObjectNotFound):
            async with _as_storage_error("delete", TIMEOUT_SECONDS):
                await obstore.delete_async(self._store, _require_key(key))

    async def has_space(self, size_bytes: int, reserve_bytes: int) -> bool:
        """Whether the disk of a directory keeps its reserve after so many more bytes. A bucket has no such limit.

        The reserve is at most a tenth of the disk.
        """
        if self._folder is None:
            return True
        try:
            disk = await asyncio.to_thread(shutil.disk_usage, self._folder)
        except OSError:
            return True  # the put itself reports what is wrong
        return disk.free - size_bytes >= min(reserve_bytes, disk.total // 10)

    async def exists(self, key: str) -> bool:
        return _is_key(key) and await self._head(key) is not None

    async def check(self) -> None:
        """One cheap request, for readiness. Raises StorageError. The first call writes a small object."""
        if not await self.exists(CHECK_KEY):
            await self.put(CHECK_KEY, b"ok\n", "text/plain")

    async def _put(self, key: str, body: bytes | Path, size_bytes: int, content_type: str) -> None:
        seconds = TIMEOUT_SECONDS + size_bytes / MIN_BYTES_PER_SECOND
        async with _as_storage_error("put", seconds):
            await obstore.put_async(
                self._store,
                _require_key(key),
                body,
                attributes=None if self.is_local else {"Content-Type": content_type},
                use_multipart=size_bytes > (LARGE_FILE_BYTES if self.is_local else MAX_PLAIN_PUT_BYTES),
                chunk_size=PART_BYTES,
                max_concurrency=MAX_CONCURRENT_PARTS,
            )

    async def _head(self, key: str) -> "ObjectMeta | None":
        try:
            async with _as_storage_error("head", TIMEOUT_SECONDS):
                return await obstore.head_async(self._store, key)
        except _ObjectNotFound:
            return None

    async def _open_range(self, key: str, byte_range: tuple[int, int] | None) -> StoredObject | None:
        options: GetOptions = {"range": byte_range} if byte_range else {}
        try:
            async with _as_storage_error("get", TIMEOUT_SECONDS):
                result = await obstore.get_async(self._store, key, options=options)
        except _ObjectNotFound:
            return None
        return StoredObject(result.meta["size"], *result.range, _read_chunks(result))


def _open_bucket(settings: Settings, *, bucket: str, prefix: str) -> ObjectStore:
    if not bucket or (prefix and not _is_key(prefix)):
        raise StorageError("STORAGE_URL: must be s3://bucket or s3://bucket/prefix with an ASCII prefix")
    virtual_hosted = settings.storage_virtual_hosted_style
    endpoint = settings.storage_endpoint.rstrip("/")
    if endpoint and virtual_hosted:
        endpoint = _with_bucket_in_host(endpoint, bucket)
    config: S3Config = {"region": settings.storage_region, "virtual_hosted_style_request": virtual_hosted}
    if endpoint:
        config["endpoint"] = endpoint
    if settings.storage_access_key_id:  # without a key, obstore uses the machine's role, as AWS's tools do
        config["access_key_id"] = settings.storage_access_key_id
        config["secret_access_key"] = settings.storage_secret_access_key
    client: ClientConfig = {**_CLIENT, "allow_http": endpoint.startswith("http://")}
    store = S3Store(bucket, prefix=prefix or None, config=config, client_options=client, retry_config=_RETRY)
    base = settings.storage_public_url.rstrip("/") or _bucket_url(settings, endpoint, bucket)
    return ObjectStore(store, public_base=f"{base}/{prefix}" if prefix else base)


def _with_bucket_in_host(endpoint: str, bucket: str) -> str:
    """The endpoint with the bucket as its first label. obstore needs that; consoles show the endpoint without it."""
    scheme, _, host = endpoint.partition("://")
    return endpoint if host.startswith(f"{bucket}.") else f"{scheme}://{bucket}.{host}"


def _bucket_url(settings: Settings, endpoint: str, bucket: str) -> str:
    """The URL of the bucket's root. A virtual-hosted `endpoint` already contains the bucket."""
    if settings.storage_virtual_hosted_style:
        return endpoint or f"https://{bucket}.s3.{settings.storage_region}.amazonaws.com"
    return f"{endpoint or f'https://s3.{settings.storage_region}.amazonaws.com'}/{bucket}"


def _is_key(key: str) -> bool:
    """Whether no segment is empty or begins with a dot (as `..` does), and no character needs URL escaping."""
    return len(key) <= MAX_KEY_LENGTH and _KEY.fullmatch(key) is not None


def _require_key(key: str) -> str:
    if not _is_key(key):
        raise ValueError(f"not a storage key: {key!r}")
    return key


@asynccontextmanager
async def _as_storage_error(operation: str, seconds: float) -> AsyncIterator[None]:
    """Limits the block to `seconds`, and turns obstore's errors into StorageError."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise StorageError(f"{operation}: no answer within {seconds:.0f} s") from None
    except (BaseError, OSError) as error:
        # A local store raises NotADirectory for a key below an object ("a.png/b").
        is_absent = isinstance(error, FileNotFoundError) or "kind: NotADirectory" in str(error)
        error_class = _ObjectNotFound if is_absent else StorageError
        raise error_class(f"{operation}: {type(error).__name__}: {_summary(error)}") from None


def _summary(error: Exception) -> str:
    """The error's first line without the server's XML, which may contain an access key."""
    return str(error).partition("\n")[0].partition("<")[0][:300]


async def _read_chunks(result: "GetResult") -> AsyncIterator[bytes]:
    chunks = aiter(result.stream(min_chunk_size=READ_CHUNK_BYTES))
    while True:
        async with _as_storage_error("read", TIMEOUT_SECONDS):
            chunk = await anext(chunks, None)
        if chunk is None:
            return
        yield bytes(chunk)


async def _no_chunks() -> AsyncIterator[bytes]:
    return
    yield b""
