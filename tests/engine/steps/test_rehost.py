"""The step `rehost`: one poll for fresh URLs, then backoff, then the refund. No private address is ever called."""

import asyncio
import contextlib
import io
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

from app import storage
from app.engine import transitions
from app.engine.steps import rehost
from app.settings import Settings
from app.storage import open_object_store
from tests.support.makers import Maker
from tests.support.ports import dead_port
from tests.support.raw_connections import GONE
from tests.support.sandbox_server import Server, directive
from tests.support.task_rows import Ended, ended, fetches, polls, row_of, run_all, set_deadline, shorten_delays
from tests.support.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("working")]
PRICE = 30
BAD_IMAGES = (
    *({"fault": fault} for fault in ("not-an-image", "svg", "empty", "truncated", "lies-about-length", "pixel-bomb")),
    *({"fault": fault} for fault in ("gzip-bomb", "huge", "drip", "hang", "reset")),
    *({"fail": code} for code in (404, 403, 500)),
)


@pytest.fixture(autouse=True)
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_delays(monkeypatch)


async def stored(make: Maker, key: str) -> bytes | None:
    found = await make.runtime.store.open(key)
    return None if found is None else b"".join([chunk async for chunk in found.content])


async def assert_nothing_is_stored(make: Maker, one: Ended) -> None:
    for ending in ("-1.jpg", "-1.webp", "-1.png", "-1-thumb.jpg"):
        assert await stored(make, f"results/{one.row['created_at']:%Y/%m}/{one.row['task_no']}{ending}") is None


# ------------------------------------------------------------------ what is stored


async def test_results_are_kept_under_their_fixed_keys_with_their_sizes(make: Maker) -> None:
    user = await make.user(points=100)
    task_no = await make.task_no(
        user, '[[sandbox: {"result_count": 3, "take_seconds": 0}]]', model="sc_soraimg_text_3x2"
    )
    one = await ended(make, user, task_no)
    assert one.outcome == "completed"
    assert [len(one.task["resultUrls"]), len(one.task["thumbnailUrls"])] == [3, 3]
    assert one.task["resultUrl"] == one.task["resultUrls"][0]
    bodies = set()
    for place, result in enumerate(one.row["results"], 1):
        key = f"results/{one.row['created_at']:%Y/%m}/{task_no}-{place}.jpg"
        assert result["key"] == key
        assert one.task["resultUrls"][place - 1] == make.runtime.store.public_url(key)
        body = await stored(make, key)
        assert body is not None
        bodies.add(body)
        with Image.open(io.BytesIO(body)) as image:
            assert (image.format, image.size) == ("JPEG", (result["width"], result["height"]))
            assert image.width * 2 == image.height * 3
        assert (result["type"], result["bytes"]) == ("image/jpeg", len(body))
        thumbnail = await stored(make, result["thumbnailKey"])
        assert thumbnail is not None
        with Image.open(io.BytesIO(thumbnail)) as small:
            assert (small.format, max(small.size)) == ("JPEG", 512)
    assert len(bodies) == 3, "three different pictures"
    assert "/results/" in one.task["resultUrl"]
    assert str(one.row["upstream_task_id"]) not in one.words


async def test_the_type_of_an_image_comes_from_its_bytes_and_not_from_headers(make: Maker) -> None:
    user = await make.user(points=100)
    expected = {
        directive({"fault": "webp"}, {"take_seconds": 0}): ("webp", "image/webp"),
        directive({"fault": "content-type", "media_type": "text/html"}, {"take_seconds": 0}): ("jpg", "image/jpeg"),
        directive({"fault": "content-type", "media_type": "image/svg+xml"}, {"take_seconds": 0}): ("jpg", "image/jpeg"),
    }
    ends = await run_all(make, user, expected)
    for prompt, (ext, mime) in expected.items():
        (result,) = ends[prompt].row["results"]
        assert (result["key"].rpartition(".")[2], result["type"]) == (ext, mime)
        body = await stored(make, result["key"]) or b""
        with Image.open(io.BytesIO(body)) as image:
            assert Image.MIME[image.format or ""] == mime
            assert image.size == (result["width"], result["height"])


async def test_the_gateway_serves_results_on_disk_only(make: Maker) -> None:
    """On disk the gateway serves them itself, as images only. From a bucket it serves nothing."""
    user = await make.user(points=100)
    ends = await run_all(
        make, user, ['[[sandbox: {"take_seconds": 0}]]', directive({"fault": "webp"}, {"take_seconds": 0})]
    )
    store, settings = make.runtime.store, make.runtime.settings
    for one in ends.values():
        url = urlsplit(one.task["resultUrl"])
        answer = await make.api.get(url.path)
        if not store.is_local:
            assert one.task["resultUrl"].startswith(f"{settings.storage_endpoint}/")
            assert (await make.api.get(f"/files/{one.row['results'][0]['key']}")).status_code == 404
            continue
        assert one.task["resultUrl"].startswith("http://gateway.test/files/results/")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == one.row["results"][0]["type"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.content == await stored(make, one.row["results"][0]["key"])
        small = await make.api.get(urlsplit(one.task["thumbnailUrls"][0]).path)
        assert (small.status_code, small.headers["content-type"]) == (200, "image/jpeg")
    await store.put("results/evil.svg", b"<svg/>", "image/svg+xml")
    await store.put("results/evil.html", b"<script>", "text/html")
    for path in (
        *("results/evil.svg", "results/evil.html", "results/none.jpg", "results", "", "results/", "health/check.txt"),
        *("../gateway.db", "..%2fgateway.db", "%2e%2e/gateway.db", "results/../../x.jpg", "results%2f..%2f..%2fx.jpg"),
        *("/etc/passwd", "%2fetc%2fpasswd", "//etc/x.jpg", "results/%00.jpg", "results/a.jpg%0d%0aX: y", "~/x.jpg"),
    ):
        refused = await make.api.get(f"/files/{path}")
        assert refused.status_code == 404, path
        assert refused.headers["x-content-type-options"] == "nosniff"


# ------------------------------------------------------------------ one poll for fresh URLs


async def test_a_result_that_fails_once_is_fetched_by_a_fresh_url(
    make: Maker, upstream: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(rehost.MAX_RESULT_BYTES, "image", 1_000_000)
    monkeypatch.setitem(rehost.DOWNLOAD_SECONDS, "image", 15)
    user = await make.user(points=1000)
    # If the connection of a GET is reset, the HTTP client repeats it once by itself.
    prompts = [
        directive({"where": "result", "times": 2 if rule.get("fault") == "reset" else 1} | rule, {"take_seconds": 0})
        for rule in BAD_IMAGES
    ]
    ends = await run_all(make, user, prompts)
    for prompt, one in ends.items():
        assert one.outcome == "completed", prompt
        assert len(polls(upstream, one.row)) == 2, f"one poll for fresh URLs: {prompt}"
        assert len(fetches(upstream, one.row)) == (3 if "reset" in prompt else 2), prompt
    assert not any(entry["has_authorization"] for one in ends.values() for entry in fetches(upstream, one.row))
    assert await make.balance(user) == (1000 - PRICE * len(prompts), 0)


async def test_an_expired_url_is_requested_for_anew(make: Maker, upstream: Server) -> None:
    upstream.control({"where": "result", "delay_seconds": 5.5, "times": 1})
    user = await make.user(points=30)
    prompt = '[[sandbox: {"result_lifetime_seconds": 5, "take_seconds": 0}]]'
    one = (await run_all(make, user, [prompt]))[prompt]
    assert [entry["status"] for entry in fetches(upstream, one.row)] == [403, 200]
    assert len(polls(upstream, one.row)) == 2
    assert one.outcome == "completed"


# ------------------------------------------------------------------ the refund


async def tried_to_rehost(make: Maker, task_no: str, times: int) -> dict[str, Any]:
    """The row, after that many attempts with the same URL have failed."""

    async def poll() -> dict[str, Any] | None:
        row = await row_of(make.runtime, task_no)
        return row if row["step"] == "rehost" and row["attempts"] >= times else None

    return dict(await until(f"{times} tries to rehost {task_no}", poll))


async def test_a_result_that_is_no_image_is_refunded_at_the_hosting_deadline(
    make: Maker, upstream: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(rehost.MAX_RESULT_BYTES, "image", 1_000_000)
    monkeypatch.setitem(rehost.DOWNLOAD_SECONDS, "image", 0.5)
    user = await make.user(points=1000)
    prompts = [directive({"where": "result"} | rule, {"take_seconds": 0}) for rule in BAD_IMAGES]
    numbers = {prompt: await make.task_no(user, prompt) for prompt in prompts}
    for task_no in numbers.values():
        row = await tried_to_rehost(make, task_no, 2)
        left = (row["deadline_at"] - row["created_at"]).total_seconds()
        assert left >= make.runtime.settings.hosting_deadline_seconds > make.runtime.settings.task_deadline_seconds
        assert (await make.task(user, task_no))["status"] == "processing"
        await set_deadline(make.runtime, task_no, 0.0)
    for kind, task_no in numbers.items():
        one = await ended(make, user, task_no)
        assert one.outcome == "RESULT_LOST", kind
        assert one.row["operator_note"].startswith("result: ")
        assert one.row["results"] is None
        assert len(polls(upstream, one.row)) == 2, f"one poll for fresh URLs: {kind}"
        assert len(fetches(upstream, one.row)) >= 4, kind
        await assert_nothing_is_stored(make, one)
    assert await make.balance(user) == (1000, 0)


@pytest.mark.settings(hosting_deadline_seconds=5)
async def test_the_hosting_deadline_is_a_setting(make: Maker) -> None:
    user = await make.user(points=PRICE)
    prompt = directive({"fault": "empty"}, {"take_seconds": 0})
    one = (await run_all(make, user, [prompt]))[prompt]
    assert one.outcome == "RESULT_LOST"
    assert 4.5 <= (one.row["completed_at"] - one.row["created_at"]).total_seconds() <= 120


@asynccontextmanager
async def tripwire() -> AsyncIterator[tuple[int, list[str]]]:
    """A port of this machine that no result URL may reach. It lists every connection."""
    callers: list[str] = []

    async def note(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        callers.append(str(writer.get_extra_info("peername")))
        writer.close()

    server = await asyncio.start_server(note, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], callers
    finally:
        server.close()


async def test_nothing_private_is_ever_touched(make: Maker, upstream: Server) -> None:
    user = await make.user(points=1000)
    prompts = [directive({"result_url": "http://169.254.169.254/x.jpg", "take_seconds": 0})]
    async with tripwire() as (port, callers):
        for private in (
            *("http://169.254.169.254/latest/meta-data", "http://10.0.0.1/x.jpg", "http://[::1]/x.jpg"),
            *(f"http://127.0.0.1:{port}/x.jpg", f"http://localhost:{port}/x.jpg", f"http://2130706433:{port}/x.jpg"),
            *("file:///etc/passwd", "gopher://127.0.0.1/x"),
        ):
            prompts += [
                f'[[sandbox: {{"result_url": "{private}", "take_seconds": 0}}]]',
                directive({"where": "result", "fault": "redirect", "url": private}, {"take_seconds": 0}),
            ]
        numbers = {prompt: await make.task_no(user, prompt) for prompt in prompts}
        for task_no in numbers.values():
            await tried_to_rehost(make, task_no, 2)
            assert (await make.task(user, task_no))["status"] == "processing"
            await set_deadline(make.runtime, task_no, 0.0)
        for prompt, task_no in numbers.items():
            one = await ended(make, user, task_no)
            assert one.outcome == "RESULT_LOST", prompt
            assert one.row["operator_note"] == "result: the address is refused", prompt
            assert len(polls(upstream, one.row)) == 2
            assert "169.254" not in one.words
        assert callers == []
    assert await make.balance(user) == (1000, 0)


# ------------------------------------------------------------------ the gateway's storage and disk


async def test_a_store_that_is_away_delays_and_then_refunds(
    make: Maker, upstream: Server, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = {
        "storage_url": "s3://results/gateway",
        "storage_endpoint": f"http://127.0.0.1:{dead_port()}",
        "storage_access_key_id": "x",
        "storage_secret_access_key": "x",
    }
    away = Settings(_env_file=None, **(settings.model_dump() | nowhere))
    user = await make.user(points=2 * PRICE)
    with monkeypatch.context() as patched:
        patched.setattr(make.runtime.store, "_store", open_object_store(away)._store)
        kept, lost = [await make.task_no(user, f'[[sandbox: {{"take_seconds": 0}}]] {n}') for n in "ab"]
        for task_no in (kept, lost):
            await tried_to_rehost(make, task_no, 1)
            assert (await make.task(user, task_no))["status"] == "processing"
        await set_deadline(make.runtime, lost, 0.0)
        one = await ended(make, user, lost)
    assert one.outcome == "RESULT_LOST"
    assert one.row["operator_note"].startswith("storage: put")
    two = await ended(make, user, kept)
    assert two.outcome == "completed"
    assert [len(polls(upstream, end.row)) for end in (one, two)] == [1, 1], "SEE2AI has nothing to do with it"
    assert await make.balance(user) == (PRICE, 0)


@pytest.mark.parametrize("manner", ["denies", "is silent"])
async def test_a_store_that_denies_or_hangs_delays_and_then_refunds(
    make: Maker, settings: Settings, monkeypatch: pytest.MonkeyPatch, manner: str
) -> None:
    """Other tasks of the worker go on: a task that does not need storage yet is polled."""
    monkeypatch.setattr(storage, "TIMEOUT_SECONDS", 0.5)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(*GONE):
            await reader.readuntil(b"\r\n\r\n")
            if manner == "denies":
                writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                await writer.drain()
            else:
                await asyncio.sleep(60)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    away = {
        "storage_url": "s3://results/gateway",
        "storage_endpoint": f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}",
        "storage_access_key_id": "x",
        "storage_secret_access_key": "x",
    }
    user = await make.user(points=2 * PRICE)
    with monkeypatch.context() as patched:
        other = open_object_store(Settings(_env_file=None, **(settings.model_dump() | away)))
        patched.setattr(make.runtime.store, "_store", other._store)
        task_no = await make.task_no(user, '[[sandbox: {"take_seconds": 0}]]')
        await tried_to_rehost(make, task_no, 2)
        assert (await make.task(user, task_no))["status"] == "processing"
        failing = await make.task_no(user, '[[sandbox: {"end": "failed", "take_seconds": 0}]]')
        assert (await ended(make, user, failing)).outcome == "UPSTREAM_FAILED"
        await set_deadline(make.runtime, task_no, 0.0)
        one = await ended(make, user, task_no)
    server.close()
    assert one.outcome == "RESULT_LOST"
    assert one.row["operator_note"].startswith("storage: ")
    assert await make.balance(user) == (2 * PRICE, 0)


async def test_a_full_disk_is_an_error_of_ours_and_is_retried(
    make: Maker, upstream: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await make.user(points=PRICE)
    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "tempdir", "/nonexistent/for/a/while")
        task_no = await make.task_no(user, '[[sandbox: {"take_seconds": 0}]]')
        await tried_to_rehost(make, task_no, transitions.MAX_CRASHES + 1)
    one = await ended(make, user, task_no)
    assert (one.outcome, len(polls(upstream, one.row))) == ("completed", 1)
