import asyncio
import contextlib
import hashlib
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from app import storage
from app.settings import Settings, load_settings
from app.storage import ObjectStore, StorageError, StoredObject, open_object_store
from tests.support.ports import dead_port
from tests.support.raw_connections import GONE
from tests.support.services import S3Server, start_s3

pytestmark = pytest.mark.anyio
VIDEO_BYTES = 20 * 1024 * 1024
META = b'ETag: "e"\r\nLast-Modified: Mon, 02 Jan 2006 15:04:05 GMT\r\n'
BAD_KEYS = ["", "/", "/etc/passwd", "../secret", "a/../b", "a/./b", "a//b", "a/", ".env", "a/.b", "a\\b"]
BAD_KEYS += ["a b", "图", "a%2e", "a?b", "a#1", "a\n", "a\0", "x" * 600]


@pytest.fixture(scope="module")
def s3_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s3")


@pytest.fixture(scope="module")
def s3_server(s3_directory: Path) -> Iterator[S3Server]:
    server = start_s3(s3_directory)
    yield server
    server.stop()


def bucket_settings(server: S3Server, **changes: object) -> Settings:
    knobs: dict[str, object] = {
        "storage_url": f"s3://{server.bucket}/media/v1",
        "storage_endpoint": server.endpoint,
        "storage_access_key_id": server.access_key,
        "storage_secret_access_key": server.secret_key,
    }
    return load_settings(**(knobs | changes))


def dead_settings(port: int, **changes: object) -> Settings:
    nowhere = {"storage_url": "s3://b", "storage_endpoint": f"http://127.0.0.1:{port}"}
    keys = {"storage_access_key_id": "planted-id", "storage_secret_access_key": "planted-secret"}
    return load_settings(**(nowhere | keys | changes))


@pytest.fixture(params=["file", "s3"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "file":
        return open_object_store(load_settings(storage_url=(tmp_path / "the files").as_uri()))
    return open_object_store(bucket_settings(request.getfixturevalue("s3_server")))


async def read(found: StoredObject | None) -> bytes:
    assert found is not None
    data = b"".join([chunk async for chunk in found.content])
    assert len(data) == found.end - found.start
    return data


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "film.mp4"
    path.write_bytes(os.urandom(VIDEO_BYTES))
    return path


async def test_a_stored_object_can_be_read(store: ObjectStore) -> None:
    await store.put("pictures/one.png", b"first", "image/png")
    await store.put("pictures/one.png", b"second, longer", "image/png")
    found = await store.open("pictures/one.png")
    assert found is not None
    assert found.size == 14
    assert await read(found) == b"second, longer"
    assert await store.exists("pictures/one.png")


async def test_a_stored_file_can_be_read(store: ObjectStore, video: Path) -> None:
    await store.put_file("films/one.mp4", video, "video/mp4")
    assert await read(await store.open("films/one.mp4")) == video.read_bytes()


async def test_a_file_in_parts_can_be_read(store: ObjectStore, video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "MAX_PLAIN_PUT_BYTES", 1024)
    await store.put_file("films/parts.mp4", video, "video/mp4")
    assert await read(await store.open("films/parts.mp4")) == video.read_bytes()


@pytest.mark.parametrize(
    ("start", "end", "wanted"),
    [(0, 4, b"0123"), (3, 5, b"34"), (7, None, b"789"), (8, 99, b"89"), (10, None, b""), (99, 100, b"")],
)
async def test_a_range_is_cut_to_the_object(tmp_path: Path, start: int, end: int | None, wanted: bytes) -> None:
    store = open_object_store(load_settings(storage_url=tmp_path.as_uri()))
    await store.put("digits", b"0123456789", "text/plain")
    found = await store.open("digits", start=start, end=end)
    assert found is not None
    assert found.size == 10
    assert await read(found) == wanted


async def test_only_the_range_is_requested_from_a_bucket() -> None:
    """Not with rclone, which answers a range with 200 instead of 206."""
    whole = b"HTTP/1.1 200 OK\r\n" + META + b"Content-Length: 10\r\n\r\n"
    part = b"HTTP/1.1 206 Partial Content\r\n" + META
    part += b"Content-Length: 2\r\nContent-Range: bytes 8-9/10\r\n\r\n89"
    received: list[bytes] = []
    async with speaking({b"HEAD": whole, b"GET": part}, received) as port:
        found = await open_object_store(dead_settings(port)).open("digits", start=8, end=99)
        assert found is not None
        assert found.size == 10
        assert await read(found) == b"89"
    assert b"range: bytes=8-9" in received[1].lower()


@pytest.mark.parametrize("key", ["no/such.png", "images", "digits/below"])
async def test_a_missing_object_is_none(store: ObjectStore, key: str) -> None:
    await store.put("digits", b"0123456789", "text/plain")
    await store.put("pictures/one.png", b"x", "image/png")
    assert await store.open(key) is None
    assert await store.open(key, start=1) is None
    assert not await store.exists(key)


@pytest.mark.parametrize("key", BAD_KEYS)
async def test_a_key_cannot_leave_the_folder(tmp_path: Path, key: str) -> None:
    (tmp_path / "secret").write_bytes(b"x")
    store = open_object_store(load_settings(storage_url=(tmp_path / "files").as_uri()))
    assert await store.open(key) is None
    assert not await store.exists(key)
    with pytest.raises(ValueError, match="not a storage key"):
        await store.put(key, b"x", "text/plain")
    with pytest.raises(ValueError, match="not a storage key"):
        store.public_url(key)
    assert {path.name for path in tmp_path.iterdir()} == {"secret", "files"}


async def test_a_reader_never_sees_a_partial_write(tmp_path: Path) -> None:
    store = open_object_store(load_settings(storage_url=tmp_path.as_uri()))
    bodies = [bytes([n]) * 8_000_000 for n in range(4)]
    await store.put("key", bodies[0], "image/png")

    async def write() -> None:
        for body in bodies * 2:
            await store.put("key", body, "image/png")

    writing = asyncio.create_task(write())
    while not writing.done():
        assert await read(await store.open("key")) in bodies
    await writing
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


async def test_the_prefix_is_used(s3_server: S3Server, s3_directory: Path) -> None:
    await open_object_store(bucket_settings(s3_server)).put("a/b.png", b"x", "image/png")
    assert (s3_directory / s3_server.bucket / "media/v1/a/b.png").read_bytes() == b"x"


async def test_check_passes_again_and_again(store: ObjectStore) -> None:
    await store.check()
    await store.check()


@pytest.mark.parametrize(
    "change", [{"storage_secret_access_key": "wrong-planted"}, {"storage_url": "s3://no-such-bucket"}]
)
async def test_check_reports_a_wrong_secret_and_a_missing_bucket(s3_server: S3Server, change: dict[str, str]) -> None:
    store = open_object_store(bucket_settings(s3_server, **change))
    with pytest.raises(StorageError) as caught:
        await store.check()
    assert "planted" not in str(caught.value)
    assert s3_server.access_key not in str(caught.value)


async def test_check_reports_a_lost_directory(tmp_path: Path) -> None:
    store = open_object_store(load_settings(storage_url=(tmp_path / "files").as_uri()))
    (tmp_path / "files").rmdir()
    (tmp_path / "files").write_bytes(b"not a directory any more")
    with pytest.raises(StorageError):
        await store.check()
    with pytest.raises(StorageError):
        open_object_store(load_settings(storage_url=(tmp_path / "files" / "below").as_uri()))


async def test_an_error_reports_the_status_and_no_key() -> None:
    """The XML of S3's error repeats the access key id."""
    xml = b"<Error><Code>SignatureDoesNotMatch</Code><AWSAccessKeyId>planted-id</AWSAccessKeyId></Error>"
    refusal = f"HTTP/1.1 403 Forbidden\r\nContent-Length: {len(xml)}\r\n\r\n".encode() + xml
    async with speaking({b"PUT": refusal}, []) as port:
        with pytest.raises(StorageError, match="403") as caught:
            await open_object_store(dead_settings(port)).put("key", b"x", "text/plain")
    assert "planted" not in str(caught.value)


async def test_a_closed_port_fails_quickly() -> None:
    store = open_object_store(dead_settings(dead_port()))
    began = time.monotonic()
    with pytest.raises(StorageError) as caught:
        await store.put("key", b"x", "text/plain")
    assert time.monotonic() - began < 30
    assert "planted" not in str(caught.value)


async def test_a_silent_endpoint_fails_quickly(monkeypatch: pytest.MonkeyPatch, video: Path) -> None:
    """A listening socket whose connections are never accepted."""
    monkeypatch.setattr(storage, "TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(storage, "MIN_BYTES_PER_SECOND", VIDEO_BYTES)
    with socket.create_server(("127.0.0.1", 0)) as subscription:
        store = open_object_store(dead_settings(subscription.getsockname()[1]))
        began = time.monotonic()
        for doing in (store.check(), store.exists("key"), store.open("key"), store.put_file("k", video, "v/m")):
            with pytest.raises(StorageError, match="no answer within"):
                await doing
        assert time.monotonic() - began < 20


def test_the_timeout_is_about_half_a_minute() -> None:
    assert storage.TIMEOUT_SECONDS + 2_000_000 / storage.MIN_BYTES_PER_SECOND <= 30


@contextlib.asynccontextmanager
async def speaking(answers: dict[bytes, bytes], received: list[bytes]) -> AsyncIterator[int]:
    """A server that records each request, sends the answer of its method and keeps the connection open."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(*GONE):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lines = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
                body = await reader.readexactly(int(lines.get(b"content-length", b"0")))
                received.append(head + body)
                writer.write(answers[head.split()[0]])

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=VIDEO_BYTES * 2)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def test_a_file_of_usual_size_is_one_plain_signed_put(video: Path) -> None:
    """What OSS accepts: a length, a type, a plain sha256; no chunks, no parts, no checksum trailers."""
    os.truncate(video, storage.MAX_PLAIN_PUT_BYTES)
    received: list[bytes] = []
    async with speaking({b"PUT": b"HTTP/1.1 200 OK\r\n" + META + b"Content-Length: 0\r\n\r\n"}, received) as port:
        await open_object_store(dead_settings(port)).put_file("films/a.mp4", video, "video/mp4")
    assert len(received) == 1
    head, _, body = received[0].partition(b"\r\n\r\n")
    assert body == video.read_bytes()
    assert head.startswith(b"PUT /b/films/a.mp4 HTTP/1.1")
    fields = head.lower().decode()
    assert "content-type: video/mp4" in fields
    assert f"x-amz-content-sha256: {hashlib.sha256(body).hexdigest()}" in fields
    assert "chunked" not in fields


async def test_an_object_that_stops_in_the_middle_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    start = b"HTTP/1.1 200 OK\r\n" + META + b"Content-Length: 900000\r\n\r\n" + b"x" * 300_000
    async with speaking({b"GET": start}, []) as port:
        found = await open_object_store(dead_settings(port)).open("key")
        monkeypatch.setattr(storage, "TIMEOUT_SECONDS", 0.5)
        with pytest.raises(StorageError, match="read"):
            await read(found)


OSS = "https://oss-cn-hangzhou.aliyuncs.com"


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, "https://s3.us-east-1.amazonaws.com/pics/a/b.png"),
        ({"storage_virtual_hosted_style": True}, "https://pics.s3.us-east-1.amazonaws.com/a/b.png"),
        ({"storage_endpoint": "http://minio:9000/"}, "http://minio:9000/pics/a/b.png"),
        (
            {"storage_endpoint": OSS, "storage_virtual_hosted_style": True},
            "https://pics.oss-cn-hangzhou.aliyuncs.com/a/b.png",
        ),
        (
            {
                "storage_endpoint": "https://pics.oss-cn-hangzhou.aliyuncs.com",
                "storage_virtual_hosted_style": True,
            },
            "https://pics.oss-cn-hangzhou.aliyuncs.com/a/b.png",
        ),
        ({"storage_public_url": "https://cdn.example/"}, "https://cdn.example/a/b.png"),
        (
            {"storage_public_url": "https://cdn.example", "storage_url": "s3://pics/x/y"},
            "https://cdn.example/x/y/a/b.png",
        ),
    ],
)
def test_the_public_url_of_an_object(changes: dict[str, object], wanted: str) -> None:
    store = open_object_store(load_settings(**({"storage_url": "s3://pics"} | changes)))
    assert store.public_url("a/b.png") == wanted
    assert not store.is_local


def test_the_public_url_of_a_local_object(tmp_path: Path) -> None:
    settings = load_settings(storage_url=tmp_path.as_uri(), public_url="https://gw.example/")
    store = open_object_store(settings)
    assert store.public_url("a/b.png") == "https://gw.example/files/a/b.png"
    assert store.is_local


@pytest.mark.parametrize("url", ["s3://", "s3://b/../c", "s3://b/a%20b"])
def test_a_malformed_location_is_refused(url: str) -> None:
    with pytest.raises(StorageError, match="STORAGE_URL"):
        open_object_store(load_settings(storage_url=url))


@pytest.mark.parametrize("settings", [{"storage_url": "s3://pics"}, {"storage_url": "s3://pics/x/y"}, {}])
def test_a_link_gives_back_its_key(tmp_path: Path, settings: dict[str, str]) -> None:
    store = open_object_store(load_settings(**({"storage_url": tmp_path.as_uri()} | settings)))
    link = store.public_url("uploads/2026/01/a-b_c.png")
    assert store.key_from_url(link) == "uploads/2026/01/a-b_c.png"
    strange = ["", link + "?x=1", link + "#x", link + "/", link + "\n", " " + link, link.upper(), "x" + link]
    strange += [link.replace("uploads", f"..{end}") for end in ("", "/..", "/%2e%2e")]
    strange += [link.replace("//", "//user@", 1), link.replace("://", ":///", 1), f"https://evil.example/{link}"]
    strange += [store.public_url("x")[:-1], store.public_url("x")[:-2], store.public_url("x") + "/.hidden"]
    strange += ["uploads/2026/01/a-b_c.png", link.replace("/uploads", ".evil.example/uploads"), link + "é"]
    for other in strange:
        assert store.key_from_url(other) is None, other


async def test_a_large_file_on_disk_is_complete_or_absent(tmp_path: Path, video: Path) -> None:
    """It is written in parts, so that no more than these are in memory."""
    store = open_object_store(load_settings(storage_url=(tmp_path / "files").as_uri()))
    await store.put_file("films/one.mp4", video, "video/mp4")
    putting = asyncio.create_task(store.put_file("films/two.mp4", video, "video/mp4"))
    while not putting.done():
        two = tmp_path / "files/films/two.mp4"
        assert not two.exists() or two.stat().st_size == VIDEO_BYTES
        await asyncio.sleep(0)
    await putting
    assert [path.name for path in sorted((tmp_path / "files/films").iterdir())] == ["one.mp4", "two.mp4"]
