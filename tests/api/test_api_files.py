import httpx
import pytest

from app.api.routes.files import TYPES
from app.runtime import Runtime
from tests.support.responses import refusal

pytestmark = [pytest.mark.anyio, pytest.mark.worlds("embedded")]
DIGITS = b"0123456789"
VIDEO_URL = "/files/results/2026/01/digits.mp4"


@pytest.fixture
async def digits(api: httpx.AsyncClient, runtime: Runtime) -> httpx.AsyncClient:
    await runtime.store.put("results/2026/01/digits.mp4", DIGITS, "video/mp4")
    return api


async def test_a_whole_file_announces_ranges(digits: httpx.AsyncClient) -> None:
    answer = await digits.get(VIDEO_URL)
    assert (answer.status_code, answer.content) == (200, DIGITS)
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-length"] == "10"
    assert answer.headers["content-type"] == "video/mp4"
    assert answer.headers["cache-control"].endswith("immutable")
    assert "content-range" not in answer.headers


@pytest.mark.parametrize(
    ("requested", "wanted", "payload"),
    [
        ("bytes=0-1", b"01", "bytes 0-1/10"),  # the first request of Safari
        ("bytes=0-", DIGITS, "bytes 0-9/10"),
        ("bytes=0-9", DIGITS, "bytes 0-9/10"),
        ("bytes=0-0", b"0", "bytes 0-0/10"),
        ("bytes=3-5", b"345", "bytes 3-5/10"),
        ("bytes=7-", b"789", "bytes 7-9/10"),
        ("bytes=9-9", b"9", "bytes 9-9/10"),
        ("bytes=8-99999", b"89", "bytes 8-9/10"),
        ("bytes=-3", b"789", "bytes 7-9/10"),
        ("bytes=-10", DIGITS, "bytes 0-9/10"),
        ("bytes=-99", DIGITS, "bytes 0-9/10"),
        ("Bytes= 3-5 ", b"345", "bytes 3-5/10"),
        ("bytes=000003-05", b"345", "bytes 3-5/10"),
    ],
)
async def test_a_range_is_answered_with_that_part(
    digits: httpx.AsyncClient, requested: str, wanted: bytes, payload: str
) -> None:
    answer = await digits.get(VIDEO_URL, headers={"Range": requested})
    assert (answer.status_code, answer.content) == (206, wanted)
    assert answer.headers["content-range"] == payload
    assert answer.headers["content-length"] == str(len(wanted))
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-type"] == "video/mp4"
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "requested", ["bytes=10-", "bytes=10-11", "bytes=99-100", "bytes=-0", "bytes=" + "9" * 18 + "-"]
)
async def test_a_range_after_the_end_is_416(digits: httpx.AsyncClient, requested: str) -> None:
    answer = await digits.get(VIDEO_URL, headers={"Range": requested})
    assert refusal(answer)[:2] == (416, "RANGE_NOT_SATISFIABLE")
    assert answer.headers["content-range"] == "bytes */10"
    assert "cache-control" not in answer.headers


@pytest.mark.parametrize(
    "requested",
    [
        "bytes=0-1,4-5",
        "bytes=0-1, -1",
        "bytes=5-3",
        "bytes=-",
        "bytes=",
        "bytes",
        "items=0-1",
        "bytes=a-b",
        "bytes=1-2x",
        "bytes=+1-2",
        "bytes=1.0-2",
        "bytes=--1",
        "bytes=١-٢".encode(),
        "bytes=" + "9" * 4000 + "-",
        "",
    ],
)
async def test_any_other_range_gets_the_whole_file(digits: httpx.AsyncClient, requested: str | bytes) -> None:
    answer = await digits.get(VIDEO_URL, headers=[("Range", requested)])
    assert (answer.status_code, answer.content) == (200, DIGITS)


@pytest.mark.parametrize("condition", ['"an-etag"', "Wed, 21 Oct 2026 07:28:00 GMT"])
async def test_a_failed_if_range_gets_the_whole_file(digits: httpx.AsyncClient, condition: str) -> None:
    answer = await digits.get(VIDEO_URL, headers={"Range": "bytes=3-5", "If-Range": condition})
    assert (answer.status_code, answer.content) == (200, DIGITS)


async def test_head_has_all_headers_and_no_body(digits: httpx.AsyncClient) -> None:
    for headers in ({}, {"Range": "bytes=3-5"}):
        answer = await digits.head(VIDEO_URL, headers=headers)
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["content-length"] == "10"
        assert answer.headers["accept-ranges"] == "bytes"
        assert answer.headers["content-type"] == "video/mp4"
    assert (await digits.head("/files/results/none.mp4")).status_code == 404


async def test_ranges_of_a_large_file_add_up_to_the_whole(api: httpx.AsyncClient, runtime: Runtime) -> None:
    whole = bytes(range(256)) * 8000
    await runtime.store.put("uploads/a.mov", whole, "video/quicktime")
    step = 700_001
    parts = [
        (await api.get("/files/uploads/a.mov", headers={"Range": f"bytes={place}-{place + step - 1}"})).content
        for place in range(0, len(whole), step)
    ]
    assert b"".join(parts) == whole


async def test_an_empty_file_has_no_range(api: httpx.AsyncClient, runtime: Runtime) -> None:
    await runtime.store.put("results/empty.png", b"", "image/png")
    assert (await api.get("/files/results/empty.png")).content == b""
    assert (await api.get("/files/results/empty.png", headers={"Range": "bytes=0-"})).status_code == 416
    assert (await api.get("/files/results/empty.png", headers={"Range": "bytes=-5"})).status_code == 416


@pytest.mark.parametrize("ext", TYPES)
async def test_each_kind_has_its_type(api: httpx.AsyncClient, runtime: Runtime, ext: str) -> None:
    await runtime.store.put(f"uploads/a.{ext}", b"<script>", "text/html")
    answer = await api.get(f"/files/uploads/a.{ext}")
    assert answer.headers["content-type"] == TYPES[ext]
    assert answer.headers["content-type"].partition("/")[0] in {"image", "video", "audio"}
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("ext", ["html", "svg", "js", "txt", "xml", "pdf", "HTML", "mp4.html", ""])
async def test_files_that_browsers_run_are_never_served(api: httpx.AsyncClient, runtime: Runtime, ext: str) -> None:
    await runtime.store.put(f"uploads/a.{ext}" if ext else "uploads/a", b"<script>", "text/html")
    for headers in ({}, {"Range": "bytes=0-1"}):
        answer = await api.get(f"/files/uploads/a.{ext}" if ext else "/files/uploads/a", headers=headers)
        assert refusal(answer)[0] == 404
