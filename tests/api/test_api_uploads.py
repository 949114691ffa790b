import asyncio
import io
import re
import tempfile
import tracemalloc
import zipfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from app.accounts.api_keys import create_key
from app.files import uploads as upload
from app.main import create_app
from app.runtime import Runtime
from app.settings import Settings
from app.storage import open_object_store
from tests.support.makers import Maker, User
from tests.support.media_files import VIDEO_SIZE, audio, image, png_claiming, silence, video
from tests.support.ports import free_port
from tests.support.responses import data, refusal

pytestmark = pytest.mark.anyio
EMBEDDED = pytest.mark.worlds("embedded")
UPLOAD = "/user/files/upload"
BOUNDARY = "boundary"
FORM_TYPE = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
KEY = re.compile(r"uploads/20[0-9]{2}/(0[1-9]|1[0-2])/[0-9a-f]{32,}\.[a-z0-9]{3,4}")
MISSING = "参数错误: file 不能为空"


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A separate folder for temporary files. After each test it must be empty."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield place
    assert list(place.iterdir()) == []


async def send(make: Maker, user: User, content: bytes, name: str = "picture.png") -> httpx.Response:
    return await make.api.post(UPLOAD, files={"file": (name, content, "text/html")}, headers=user.headers)


async def kept(runtime: Runtime, link: str) -> bytes:
    found = await runtime.store.open(runtime.store.key_from_url(link) or "")
    assert found is not None
    return b"".join([chunk async for chunk in found.content])


def part(content: bytes, disposition: str = 'form-data; name="file"; filename="a.png"') -> bytes:
    head = f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\n\r\n"
    return head.encode("utf-8", "surrogateescape") + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


IMAGE = {"width": 60, "height": 40, "durationSeconds": None, "kind": "image"}
VIDEO_URL = {
    "width": VIDEO_SIZE[0],
    "height": VIDEO_SIZE[1],
    "durationSeconds": pytest.approx(1, abs=0.11),
    "kind": "video",
}
AUDIO = {"width": None, "height": None, "durationSeconds": pytest.approx(1, abs=0.11), "kind": "audio"}
KEPT = [
    (image("JPEG"), "jpg", {"type": "image/jpeg"} | IMAGE),
    (image("PNG", mode="RGBA", clear=True), "png", {"type": "image/png"} | IMAGE),
    (video("mp4", audio=True), "mp4", {"type": "video/mp4"} | VIDEO_URL),
    (video("mov"), "mov", {"type": "video/quicktime"} | VIDEO_URL),
    (video("webm"), "webm", {"type": "video/webm"} | VIDEO_URL),
    (audio("mp3"), "mp3", {"type": "audio/mpeg"} | AUDIO),
    (audio("wav"), "wav", {"type": "audio/wav"} | AUDIO),
    (audio("m4a"), "m4a", {"type": "audio/mp4"} | AUDIO),
    (audio("aac"), "aac", {"type": "audio/aac"} | AUDIO),
]
CONVERTED = [
    (image("GIF"), "png", {"type": "image/png"} | IMAGE),
    (image("WEBP"), "jpg", {"type": "image/jpeg"} | IMAGE),
    (image("HEIF"), "jpg", {"type": "image/jpeg"} | IMAGE),
    (image("AVIF", mode="RGBA", clear=True), "png", {"type": "image/png"} | IMAGE),
]


async def test_each_kind_is_stored_and_reported_by_its_bytes(make: Maker, runtime: Runtime) -> None:
    user = await make.user()
    for content, ext, wanted in KEPT:
        payload = data(await send(make, user, content, "page.html"))
        assert payload == wanted | {"url": payload["url"], "bytes": len(content)}
        key = runtime.store.key_from_url(payload["url"])
        assert key is not None
        assert KEY.fullmatch(key)
        assert key.endswith(f".{ext}")
        assert await kept(runtime, payload["url"]) == content


async def test_formats_that_see2ai_may_refuse_are_converted(make: Maker, runtime: Runtime) -> None:
    user = await make.user()
    for content, ext, wanted in CONVERTED:
        payload = data(await send(make, user, content))
        stored = await kept(runtime, payload["url"])
        assert payload == wanted | {"url": payload["url"], "bytes": len(stored)}
        assert payload["url"].endswith(f".{ext}")
        with Image.open(io.BytesIO(stored)) as shown:
            assert shown.get_format_mimetype() == wanted["type"]


async def test_the_link_serves_as_a_reference(make: Maker, runtime: Runtime) -> None:
    user = await make.user()
    first, second = [data(await send(make, user, image("PNG")))["url"] for _ in range(2)]
    assert first != second
    if runtime.store.is_local:
        answer = await make.api.get(first.removeprefix("http://gateway.test"))
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers["x-content-type-options"] == "nosniff"


@EMBEDDED
async def test_it_needs_a_credential_of_any_kind(make: Maker, runtime: Runtime) -> None:
    user = await make.user()
    files = {"file": ("a.png", image("PNG"))}
    for headers in (user.headers, user.key_headers, {"Authorization": f"Bearer {user.api_key}"}):
        assert (await make.api.post(UPLOAD, files=files, headers=headers)).status_code == 200
    assert refusal(await make.api.post(UPLOAD, files=files))[0] == 401
    stranger = await create_key(runtime.database, user.id, scopes=("points",))
    assert refusal(await make.api.post(UPLOAD, files=files, headers={"X-API-Key": stranger}))[0] == 403


@EMBEDDED
@pytest.mark.settings(submit_rate_per_minute=3)
async def test_too_many_a_minute_are_refused(make: Maker, endless_minute: None) -> None:
    user = await make.user()
    answers = [await send(make, user, image("PNG")) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert int(answers[3].headers["retry-after"]) >= 1


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("index.html", "<script>alert(1)</script>" * 100)
    return file.getvalue()


STRANGE = [
    b"<!DOCTYPE html><script>alert(1)</script>",
    b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>',
    b"%PDF-1.7\n1 0 obj\n",
    b"\x7fELF\2\1\1" + b"\0" * 60,
    b"MZ" + b"\0" * 200,
    zipped(),
    b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:1/a.ts\n",
    b"ffconcat version 1.0\nfile /etc/passwd\n",
    image("BMP"),
    image("TIFF"),
    video("webm", container="matroska"),
    b"OggS" + b"\0" * 100,
    b"plain text",
    b"\0",
]


@EMBEDDED
async def test_every_other_kind_is_refused_with_the_field(make: Maker) -> None:
    user = await make.user()
    for content in STRANGE:
        status, code, message = refusal(await send(make, user, content, "film.mp4"))
        assert (status, code) == (415, "UNSUPPORTED_MEDIA"), content[:20]
        assert "file" in message


BROKEN = [
    image("JPEG")[:-200],
    image("PNG")[:60],
    image("GIF")[:40],
    image("HEIF")[:-100],
    video("mp4")[:-100],
    video("webm")[:-100],
    audio("wav")[:-100],
    audio("m4a")[:-100],
    b"GIF89a<script>alert(1)</script>",
    b"\0\0\0\x18ftypisom\0\0\2\0isommp41<html>",
    b"\x1a\x45\xdf\xa3\x42\x82\x84webm" + b"<html>",
    b"ID3\4\0\0\0\0\0\0<script>alert(1)</script>",
    b"RIFF\xff\xff\xff\xffWAVE<script>",
]


@EMBEDDED
async def test_broken_files_are_refused_with_the_field(make: Maker) -> None:
    user = await make.user()
    for content in BROKEN:
        status, code, message = refusal(await send(make, user, content))
        assert (status, code) == (400, "INVALID_PARAMETER"), content[:20]
        assert message.startswith("参数错误: file 已损坏"), content[:20]


@EMBEDDED
@pytest.mark.parametrize("size", [(8001, 8000), (60_000, 60_000)])
async def test_a_bomb_is_refused_before_it_is_decoded(make: Maker, size: tuple[int, int]) -> None:
    user = await make.user()
    assert refusal(await send(make, user, png_claiming(*size)))[2].startswith("参数错误: file 尺寸过大")


@EMBEDDED
async def test_an_image_that_is_also_something_else_is_served_as_an_image(make: Maker, runtime: Runtime) -> None:
    """The file keeps all its bytes, also the ZIP or the page after the image. Its content type is that of the image."""
    user = await make.user()
    for behind in (zipped(), b"<html><script>alert(1)</script>"):
        payload = data(await send(make, user, image("JPEG") + behind, "page.html"))
        assert payload["type"] == "image/jpeg"
        answer = await make.api.get(payload["url"])
        assert answer.headers["content-type"] == "image/jpeg"
        assert answer.headers["x-content-type-options"] == "nosniff"


@EMBEDDED
@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (form(), MISSING),
        (form(part(b"")), MISSING),
        (form(part(b"", 'form-data; name="file"; filename=""')), MISSING),
        (form(part(image("PNG"), 'form-data; name="image"; filename="a.png"')), MISSING),
        (form(part(b"text", 'form-data; name="other"')), MISSING),
        (form(part(b"", 'form-data; name="file"')), MISSING),
        (form(part(b"text", 'form-data; name="file"')), "参数错误: file 须为文件"),
        (form(part(image("PNG")), part(image("PNG"))), "参数错误: file 只能有一个文件"),
        (form(part(image("PNG")), part(b"x", 'form-data; name="b"; filename="b"')), "参数错误: file 只能有一个文件"),
        (form(*[part(b"x", 'form-data; name="a"')] * 21), "参数错误: file 不是有效"),
        (form(part(b"x" * 10_001, 'form-data; name="a"')), "参数错误: file 不是有效"),
        (form(part(image("PNG"), "form-data")), "参数错误: file 不是有效"),
        (b"", "参数错误: file"),
        (b"nonsense", "参数错误: file 不是有效"),
        (b"--boundary\r\nno colon\r\n\r\n", "参数错误: file 不是有效"),
        (b"--boundary\r\n\r\nwithout a header\r\n--boundary--\r\n", "参数错误: file 不是有效"),
        (b"--boundary\r\n" + b"A: b\r\n" * 5000 + b"\r\nx\r\n--boundary--", "参数错误: file 不是有效"),
        (b"--boundary\r\nX: " + b"y" * 100_000 + b"\r\n\r\nx\r\n--boundary--", "参数错误: file 不是有效"),
    ],
)
async def test_a_form_that_is_no_upload_is_refused(make: Maker, body: bytes, wanted: str) -> None:
    user = await make.user()
    status, code, message = refusal(await make.api.post(UPLOAD, content=body, headers=user.headers | FORM_TYPE))
    assert (status, code) == (400, "INVALID_PARAMETER")
    assert message.startswith(wanted)


@EMBEDDED
@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=other",
        "multipart/form-data; boundary=" + "b" * 5000,
        "multipart/form-data; boundary=boundary; charset=idna",
        "multipart/form-data; boundary=boundary; charset=undefined",
        "multipart/form-data; boundary=boundary; charset=hex",
        "multipart/form-data; boundary*=utf-8''%ff",
        "multipart/form-data; boundary=\xff\xfe",
    ],
)
async def test_an_invalid_content_type_is_no_internal_error(make: Maker, content_type: str) -> None:
    user = await make.user()
    body = form(part(b"x", 'form-data; name="\xff\xfe"'), part(b""))
    headers = user.headers | {"Content-Type": content_type.encode("latin-1")}
    assert refusal(await make.api.post(UPLOAD, content=body, headers=headers))[0] == 400


@EMBEDDED
async def test_another_content_type_is_refused(make: Maker) -> None:
    user = await make.user()
    for content_type in ("application/json", "image/png", "application/x-www-form-urlencoded", "multipart/mixed", ""):
        headers = user.headers | {"Content-Type": content_type}
        answer = refusal(await make.api.post(UPLOAD, content=image("PNG"), headers=headers))
        assert answer[:2] == (415, "UNSUPPORTED_MEDIA")
        assert "file" in answer[2]


@EMBEDDED
@pytest.mark.parametrize(
    "filename",
    [
        'filename="照片 一.png"',
        'filename=""',
        'filename="../../etc/passwd"',
        'filename="a\0.html"',
        "filename=.htaccess",
        'filename="' + "长" * 900 + '"',
        "filename*=UTF-8''%e7%85%a7%00.svg; filename=x",
        'filename="\udcff\udcfe"',
    ],
)
async def test_file_names_are_ignored_and_never_stored(make: Maker, runtime: Runtime, filename: str) -> None:
    user = await make.user()
    body = form(part(image("PNG"), f'form-data; name="file"; {filename}'))
    payload = data(await make.api.post(UPLOAD, content=body, headers=user.headers | FORM_TYPE))
    assert KEY.fullmatch(runtime.store.key_from_url(payload["url"]) or "")


@EMBEDDED
async def test_other_fields_are_ignored(make: Maker) -> None:
    user = await make.user()
    fields = {"type": "image/svg+xml", "purpose": "参考图"}
    answer = await make.api.post(UPLOAD, files={"file": image("PNG")}, data=fields, headers=user.headers)
    assert data(answer)["type"] == "image/png"


async def test_50_million_bytes_are_accepted_and_one_more_is_not(make: Maker, runtime: Runtime) -> None:
    user = await make.user()
    maximum = silence(upload.MAX_UPLOAD_BYTES)
    payload = data(await send(make, user, maximum))
    assert payload["bytes"] == 50_000_000
    assert len(await kept(runtime, payload["url"])) == 50_000_000
    status, code, message = refusal(await send(make, user, silence(upload.MAX_UPLOAD_BYTES + 1)))
    assert (status, code) == (413, "PAYLOAD_TOO_LARGE")
    assert "file" in message


async def pieces(size_bytes: int, payload: list[int] | None = None) -> AsyncIterator[bytes]:
    """A multipart body in pieces, with a file that is too large."""
    yield part(b"")[:-2]
    for sent in range(0, size_bytes, 1_000_000):
        if payload is not None:
            payload.append(sent)
        yield bytes(1_000_000)


@EMBEDDED
async def test_too_much_is_refused_before_it_is_read(make: Maker) -> None:
    user, payload = await make.user(), []
    headers = user.headers | FORM_TYPE | {"Content-Length": "50200000"}
    answer = await make.api.post(UPLOAD, content=pieces(10**9, payload), headers=headers)
    assert refusal(answer) == (413, "PAYLOAD_TOO_LARGE", upload.TOO_LARGE)
    assert len(payload) <= 1


@EMBEDDED
@pytest.mark.parametrize("announced", [{}, {"Content-Length": "5"}, {"Content-Length": "-1"}, {"Content-Length": "x"}])
async def test_too_much_is_refused_while_it_is_read(make: Maker, announced: dict[str, str]) -> None:
    user, payload = await make.user(), []
    answer = await make.api.post(UPLOAD, content=pieces(10**9, payload), headers=user.headers | FORM_TYPE | announced)
    assert refusal(answer) == (413, "PAYLOAD_TOO_LARGE", upload.TOO_LARGE)
    assert len(payload) <= 52


@EMBEDDED
async def test_every_other_path_keeps_its_limit(make: Maker) -> None:
    user = await make.user()
    for path in ("/user/ai/tasks/submit", UPLOAD + "/", UPLOAD.upper(), "/user/files", "/"):
        answer = await make.api.post(path, content=bytes(1_000_001), headers=user.headers)
        assert refusal(answer)[0] == 413, path


@EMBEDDED
async def test_callers_without_permission_cannot_upload(make: Maker) -> None:
    """They are refused before the body is read."""
    payload: list[int] = []
    answer = await make.api.post(UPLOAD, content=pieces(10**7, payload), headers=FORM_TYPE)
    assert refusal(answer)[0] == 401
    assert len(payload) <= 1


@EMBEDDED
async def test_an_upload_takes_little_memory(make: Maker) -> None:
    """48 MB in pieces of 64 KB. app/storage.py bounds what the threads of the store hold."""
    user, whole = await make.user(), silence(48_000_000)

    async def body() -> AsyncIterator[bytes]:
        yield part(b"")[:-2]
        for place in range(0, len(whole), 65_536):
            yield whole[place : place + 65_536]
        yield b"\r\n" + form()

    await send(make, user, silence(1000))
    tracemalloc.start()
    try:
        payload = data(await make.api.post(UPLOAD, content=body(), headers=user.headers | FORM_TYPE))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert payload["bytes"] == len(whole)
    print(f"\npeak {peak / 1e6:.1f} MB")
    assert peak < 8_000_000


@EMBEDDED
async def test_a_closed_connection_leaves_no_file(make: Maker, runtime: Runtime, temporary: Path) -> None:
    user = await make.user()
    app = create_app(runtime.settings, runtime)
    beginning = part(b"")[:-2] + bytes(3_000_000)
    messages = [
        {"type": "http.request", "body": beginning, "more_body": True},
        {"type": "http.request", "body": bytes(3_000_000), "more_body": True},
        {"type": "http.disconnect"},
    ]
    headers = [(b"content-type", FORM_TYPE["Content-Type"].encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in user.headers.items()]
    scope = {"type": "http", "method": "POST", "path": UPLOAD, "raw_path": UPLOAD.encode(), "query_string": b""}
    scope |= {"headers": headers, "http_version": "1.1", "scheme": "http", "server": ("gateway.test", 80)}
    scope |= {"client": ("127.0.0.1", 1), "root_path": "", "asgi": {"version": "3.0"}}
    said: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        said.append(message)

    async with app.router.lifespan_context(app):
        await app(scope, receive, send)
    assert said[0]["status"] == 400
    assert list(temporary.iterdir()) == []
    assert not list(Path(runtime.settings.storage_location.removeprefix("file://")).rglob("*.*"))


@EMBEDDED
async def test_a_cancelled_request_leaves_no_file(make: Maker, runtime: Runtime, temporary: Path) -> None:
    """The request is cancelled while the file is inspected. The fixture checks what is left."""
    user = await make.user()
    sending = asyncio.create_task(send(make, user, video("mp4")))
    while not list(temporary.iterdir()):
        await asyncio.sleep(0.001)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending


async def test_storage_that_is_away_is_a_503(make: Maker, runtime: Runtime, tmp_path: Path) -> None:
    user = await make.user()
    place = {"storage_url": "s3://b", "storage_endpoint": f"http://127.0.0.1:{free_port()}"}
    if runtime.store.is_local:
        place = {"storage_url": (tmp_path / "lost").as_uri()}
    store = open_object_store(Settings(_env_file=None, **(runtime.settings.model_dump() | place)))
    if runtime.store.is_local:
        (tmp_path / "lost").rmdir()
        (tmp_path / "lost").write_bytes(b"not a directory any more")
    app = create_app(runtime.settings, replace(runtime, store=store))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway.test", timeout=60) as client:
            answer = await client.post(UPLOAD, files={"file": image("PNG")}, headers=user.headers)
    assert refusal(answer)[:2] == (503, "UNAVAILABLE")
    assert int(answer.headers["retry-after"]) >= 1


@EMBEDDED
@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"nonsense", FORM_TYPE["Content-Type"]),
        (b"--boundary\r\nno colon\r\n\r\n", FORM_TYPE["Content-Type"]),
        (b"--boundary\r\nX: " + b"y" * 100_000 + b"\r\n\r\nx\r\n--boundary--", FORM_TYPE["Content-Type"]),
        (form(part(b"x")), "multipart/form-data"),
        (form(part(b"x")), "multipart/form-data; boundary=boundary; charset=undefined"),
    ],
)
async def test_a_broken_form_leaves_one_line_of_ours(
    log: io.StringIO, make: Maker, body: bytes, content_type: str
) -> None:
    user = await make.user()
    answer = await make.api.post(UPLOAD, content=body, headers=user.headers | {"Content-Type": content_type})
    assert refusal(answer)[:2] == (400, "INVALID_PARAMETER")
    said = [line for line in log.getvalue().splitlines() if "file_limit" not in line]
    assert len(said) == 1, said
    assert "upload_refused" in said[0]
    assert answer.headers["x-request-id"] in said[0]


@EMBEDDED
async def test_what_follows_a_form_is_ignored_without_a_line(log: io.StringIO, make: Maker) -> None:
    user = await make.user()
    body = form(part(image("PNG"))) + b"\r\nwhat follows the end"
    assert data(await make.api.post(UPLOAD, content=body, headers=user.headers | FORM_TYPE))["kind"] == "image"
    assert [line for line in log.getvalue().splitlines() if "file_limit" not in line] == []


@EMBEDDED
@pytest.mark.parametrize("size_bytes", [1000, 2_000_000])
async def test_an_unwritable_disk_is_a_503(
    log: io.StringIO, make: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size_bytes: int
) -> None:
    """Small files are stored from memory. Larger ones are written to disk while they arrive."""
    user = await make.user()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    answer = await send(make, user, silence(size_bytes))
    assert refusal(answer)[:2] == (503, "UNAVAILABLE")
    assert int(answer.headers["retry-after"]) >= 1
    assert log.getvalue().count("storage_failed") == 1


@EMBEDDED
async def test_a_conversion_that_grows_too_large_is_refused(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    user = await make.user()
    monkeypatch.setattr(upload, "MAX_UPLOAD_BYTES", 100)
    status, code, message = refusal(await send(make, user, image("GIF")))
    assert (status, code) == (413, "PAYLOAD_TOO_LARGE")
    assert "file 转换后" in message


@EMBEDDED
def test_the_openapi_document_describes_the_form(runtime: Runtime) -> None:
    operation = create_app(runtime.settings, runtime).openapi()["paths"][UPLOAD]["post"]
    schema = operation["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert schema["required"] == ["file"]
    assert schema["properties"]["file"]["format"] == "binary"
    payload = operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
    assert payload.endswith("Envelope_UploadResponse_")
