"""Stand-ins for other servers, the bucket, pictures and Redis. Each call may fail, and may be a point of a crash."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from redis.exceptions import ConnectionError as RedisAway

from app.egress import Download, EgressFailed
from app.files.media import ImageInfo, MediaError
from app.storage import ObjectStore, StorageError, StoredObject
from tests.simulator.weather import Weather

PNG_START = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + (64).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0" + bytes(16)
PUBLIC = "https://files.example.com"
LINK_LIVES_SECONDS = 15.0


class Cloud:
    """What is stored, and when each link was fetched."""

    def __init__(self, weather: Weather) -> None:
        self.weather = weather
        self.stored: set[str] = set()
        self._first_seen: dict[str, float] = {}

    async def deliver(self, url: str, timeout_seconds: float) -> None:
        weather, now = self.weather, asyncio.get_running_loop().time()
        await weather.cross("egress.get", 1.0)
        if weather.strikes("egress.slow"):
            seconds = weather.between(5, 2 * timeout_seconds)
            await asyncio.sleep(min(seconds, timeout_seconds))
            if seconds > timeout_seconds:
                raise EgressFailed("timed out")
        is_old = now - self._first_seen.setdefault(url, now) > LINK_LIVES_SECONDS
        if weather.strikes("egress.fails") or (is_old and weather.strikes("egress.links_expire")):
            raise EgressFailed("HTTP 404", 404)

    async def keep(self, key: str) -> None:
        weather = self.weather
        await weather.cross("store.put", 0.3)
        if weather.strikes("store.slow"):
            await asyncio.sleep(weather.between(5, 25))
        if weather.strikes("store.fails"):
            raise StorageError("put: denied")
        self.stored.add(key)
        await weather.cross("store.stored", 0.1)

    async def inspect(self, path: Path) -> ImageInfo:
        if self.weather.strikes("media.broken"):
            raise MediaError("half a picture")
        assert path.exists()
        return ImageInfo("image/png", "png", 64, 64)

    async def thumbnail(self, path: Path) -> bytes:
        assert path.exists()
        return b"small"


def egress_of(cloud: Cloud) -> Callable[[Any], Any]:
    async def download(url: str, to: Path, *, max_bytes: int, timeout_seconds: float) -> Download:
        await cloud.deliver(url, timeout_seconds)
        to.write_bytes(b"a picture"[:max_bytes])
        return Download(9, "image/png")

    async def read_start(url: str, *, max_bytes: int, timeout_seconds: float) -> bytes:
        await cloud.deliver(url, timeout_seconds)
        return PNG_START[:max_bytes]

    async def close() -> None: ...

    return lambda _allowed: SimpleNamespace(download=download, read_start=read_start, close=close)


class Store(ObjectStore):
    """The gateway's own store, but the bytes are not real."""

    def __init__(self, cloud: Cloud) -> None:
        super().__init__(None, public_base=PUBLIC)  # type: ignore[arg-type]
        self._cloud = cloud

    async def put_file(self, key: str, path: Path, content_type: str) -> None:
        assert path.exists()
        assert content_type
        await self._cloud.keep(key)

    async def put(self, key: str, data: bytes, content_type: str) -> None:
        assert data
        await self._cloud.keep(key)

    async def open(self, key: str, *, start: int = 0, end: int | None = None) -> StoredObject | None:
        await self._cloud.weather.cross("store.get", 0.2)
        if self._cloud.weather.strikes("store.fails"):
            raise StorageError("get: away")

        async def content() -> AsyncIterator[bytes]:
            yield PNG_START[start:end]

        return StoredObject(len(PNG_START), start, len(PNG_START), content())


def open_file(path: Path, mode: str) -> Any:
    """`anyio.open_file` without its thread."""

    class Plain:
        async def __aenter__(self) -> "Plain":
            self._file = path.open(mode)
            return self

        async def __aexit__(self, *_: object) -> None:
            self._file.close()

        async def write(self, data: bytes) -> None:
            self._file.write(data)

    async def opened() -> Plain:
        return Plain()

    return opened()


class Redis:
    """The Redis calls of wakeups and of the pubsub. A wakeup reaches one living worker, or none."""

    def __init__(self, weather: Weather, ring: Callable[[], None]) -> None:
        self._weather = weather
        self._ring = ring

    async def enqueue_job(self, _job: str, **_: Any) -> None:
        await self._try("redis.ring")
        if self._weather.strikes("redis.flushed"):
            return
        loop = asyncio.get_running_loop()
        for _ring in range(10 if self._weather.strikes("redis.rings_ten_times") else 1):
            loop.call_later(self._weather.between(0, 0.15), self._ring, context=self._weather.context)

    async def publish(self, _channel: str, _text: str) -> None:
        await self._try("redis.publish")

    async def _try(self, door: str) -> None:
        await self._weather.cross(door)
        if self._weather.strikes("redis.hangs"):
            await asyncio.sleep(30)
        if self._weather.strikes("redis.fails"):
            raise RedisAway("no Redis there")

    async def aclose(self) -> None: ...
