"""The upload: what it stores, serves and refuses, and its entry in the request log."""

import io

import httpx
import pytest
from PIL import Image

from app.sandbox.media.file_store import FileStore
from app.sandbox.routes.uploads import MAX_FILE_BYTES
from tests.support.run import full
from tests.support.sandbox_server import UPLOAD, Server


def image(kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (300, 200), "teal").save(file, kind)
    return file.getvalue()


def upload(sandbox: Server, content: bytes, name: str = "cat.jpg", media_type: str = "image/jpeg") -> httpx.Response:
    return sandbox.client.post(UPLOAD, files={"file": (name, content, media_type)}, timeout=60)


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("cat.jpg", "image/jpeg"),
        ("猫.PNG", "image/png"),
        ("clip.mp4", "video/mp4"),
        ("cat", "application/octet-stream"),
        ("page.html", "application/octet-stream"),
        ("x.svg", "application/octet-stream"),
        ("../../etc/x.b!d", "application/octet-stream"),
    ],
)
def test_an_uploaded_file_is_served_unchanged(sandbox: Server, name: str, media_type: str) -> None:
    content = image()
    answer = upload(sandbox, content, name).json()
    assert answer == {"status": "success", "url": answer["url"], "filename": name, "size": len(content)}
    assert answer["url"].startswith(f"{sandbox.origin}/uploads/")
    served = sandbox.fetch(answer["url"])
    assert served.content == content
    assert served.headers["content-type"] == media_type
    assert served.headers["x-content-type-options"] == "nosniff"


def test_refused_uploads(sandbox: Server) -> None:
    assert upload(sandbox, b"").status_code == 422
    for answer in (
        upload(sandbox, image("WEBP")),
        upload(sandbox, image(), "cat.WEBP"),
        upload(sandbox, image(), "cat", "image/webp"),
    ):
        assert (answer.status_code, "WebP" in answer.json()["detail"]) == (422, True)
    for answer in (
        sandbox.client.post(UPLOAD, json={"file": "x"}),
        sandbox.client.post(UPLOAD, data={"file": "x"}),
        sandbox.client.post(UPLOAD, files={"files": ("a.jpg", image())}),
    ):
        assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["body", "file"])
    assert sandbox.journal(outcome="stored") == []
    assert httpx.post(sandbox.origin + UPLOAD, files={"file": ("a.jpg", b"x")}).status_code == 401
    assert httpx.get(f"{sandbox.origin}/uploads/{'0' * 32}.jpg").status_code == 404


@pytest.mark.parametrize(("more_bytes", "code"), [(0, 200), *full((1, 413), (30 << 20, 413))])
def test_fifty_megabytes_are_the_limit(sandbox: Server, more_bytes: int, code: int) -> None:
    answer = upload(sandbox, bytes(MAX_FILE_BYTES + more_bytes))
    assert answer.status_code == code
    assert len(sandbox.journal(outcome="stored")) == (1 if code == 200 else 0)


def test_the_request_log_keeps_the_name_and_size_but_not_the_bytes(sandbox: Server) -> None:
    content = image()
    sandbox.fetch(upload(sandbox, content).json()["url"])
    stored, served = sandbox.journal(action="see2ai_storage_upload_v1")
    assert stored["outcome"] == "stored"
    assert stored["body"] == {"filename": "cat.jpg", "size": len(content), "content_type": "image/jpeg"}
    assert (served["outcome"], served["status"]) == ("served", 200)
    assert sandbox.journal(outcome="accepted") == []


def test_faults_of_an_upload_come_from_control(sandbox: Server) -> None:
    sandbox.control(
        {"fail": 503, "where": "upload", "times": 1, "retry_after": 2},
        {"where": "upload", "fault": "reset", "times": 1},
    )
    assert upload(sandbox, image()).headers["retry-after"] == "2"
    with pytest.raises(httpx.ReadError):
        upload(sandbox, image())
    assert upload(sandbox, image()).status_code == 200
    assert [entry["fault"] for entry in sandbox.journal(outcome="stored")] == ["upload reset", None]
    sandbox.control(
        {"where": "upload", "fault": "wrapped", "times": 1},
        {"where": "upload", "fault": "malformed", "times": 1},
        {"where": "upload", "fail": 413},
    )
    assert upload(sandbox, image()).json()["data"]["status"] == "success"
    with pytest.raises(ValueError):
        upload(sandbox, image()).json()
    assert upload(sandbox, image()).status_code == 413


def test_faults_of_an_uploaded_file(sandbox: Server) -> None:
    url = upload(sandbox, image()).json()["url"]
    sandbox.control(
        {"where": "result", "fail": 500, "times": 1},
        {"fault": "not-an-image", "times": 1},
        {"where": "result", "fault": "hang"},
    )
    assert sandbox.fetch(url).status_code == 500


def test_the_file_store_is_bounded_and_knows_no_other_files(tmp_path) -> None:
    store = FileStore(max_files=3, max_bytes=100)
    paths = [store.put(io.BytesIO(b"x"), ".jpg") for _ in range(5)]
    assert [path.exists() for path in paths] == [False, False, True, True, True]
    large = store.put(io.BytesIO(bytes(100)), "")
    assert store.find(large.name) == large
    assert [store.find(path.name) for path in paths] == [None] * 5
    assert store.find("../" + large.name) is None
    folder = large.parent
    del store
    assert not folder.exists()
