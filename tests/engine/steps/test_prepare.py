"""The step `prepare` with hostile callers or slow uploads: no private data leaves, and no task is delayed."""

import asyncio
import io
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from app.egress import Egress
from app.engine import pools, runner
from app.engine.runner import TaskRunner
from app.engine.steps import prepare, rehost
from app.runtime import Runtime
from app.upstreams import breaker_monitor
from tests.support.breakers import end_pause, trip
from tests.support.makers import IMAGE_MODEL, Maker
from tests.support.sandbox_server import Server
from tests.support.task_rows import ended, submits
from tests.support.waiting import until
from tests.support.workers import stepping

pytestmark = [pytest.mark.anyio, pytest.mark.settings(see2ai_uploads="always")]
AUTO_MODEL = "sc_soraimg_img2img_auto"
UPLOADED = "uploads/2026/01/0123456789abcdef0123456789abcdef.png"


def uploads(upstream: Server) -> list[dict[str, Any]]:
    return [entry for entry in upstream.journal() if entry["path"].endswith("see2ai_storage_upload_v1")]


async def put_image(runtime: Runtime, key: str) -> str:
    file = io.BytesIO()
    Image.new("RGB", (32, 12), "navy").save(file, "PNG")
    await runtime.store.put(key, file.getvalue(), "image/png")
    return runtime.store.public_url(key)


@pytest.mark.usefixtures("working")
@pytest.mark.parametrize("key", ["health/check.txt", "private/passport.png", "backup.db"])
async def test_other_files_of_the_store_are_never_uploaded(make: Maker, upstream: Server, key: str) -> None:
    url = await put_image(make.runtime, key)
    assert make.runtime.store.key_from_url(url) is None
    user = await make.user(points=100)
    answer = await make.submit(user, model="sc_image_normalize", imageUrl=url)
    if answer.status_code == 200:  # a public URL of the gateway, which SEE2AI may try to fetch
        await make.ended(user, answer.json()["data"]["taskNo"])
    assert uploads(upstream) == []


@pytest.mark.usefixtures("working")
async def test_a_file_larger_than_see2ai_takes_is_not_sent(
    make: Maker, upstream: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "MAX_REFERENCE_BYTES", 50)
    user = await make.user(points=35)
    url = await put_image(make.runtime, UPLOADED)
    one = await ended(make, user, await make.task_no(user, model=IMAGE_MODEL, imageUrl=url))
    assert one.outcome == "UPSTREAM_REJECTED"
    assert uploads(upstream) == []
    assert await make.balance(user) == (35, 0)


@pytest.mark.usefixtures("working")
async def test_an_upload_answer_with_our_own_url_is_refused(
    make: Maker, upstream: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = await put_image(make.runtime, UPLOADED)
    monkeypatch.setattr("app.upstreams.see2ai.client.as_urls", lambda _: (url,))
    user = await make.user(points=35)
    one = await ended(make, user, await make.task_no(user, model=IMAGE_MODEL, imageUrl=url))
    assert one.outcome == "UPSTREAM_UNAVAILABLE"
    assert len(uploads(upstream)) == 1


@pytest.mark.usefixtures("working")
async def test_a_missing_file_does_not_use_up_the_breakers_probe(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker_monitor, "OVERDUE_SECONDS", 1000.0)
    breaker = make.runtime.breakers["see2ai"]
    await trip(make.runtime, "HTTP 401", is_free=True)
    await end_pause(make.runtime)  # the next call is the probe
    user = await make.user(points=35)
    gone = make.runtime.store.public_url(UPLOADED.replace("0", "1"))
    one = await ended(make, user, await make.task_no(user, model=IMAGE_MODEL, imageUrl=gone))
    assert one.outcome == "UPSTREAM_REJECTED"
    assert (breaker.is_open, breaker.wait_seconds(is_free=True)) == (True, 0.0)


@pytest.mark.usefixtures("hurry")
async def test_references_whose_names_hang_delay_no_other_user(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are more of them than slots."""
    monkeypatch.setattr(pools, "SLOW_CONCURRENCY", 4)
    monkeypatch.setattr(prepare, "MAX_READS_PER_USER", 2)
    monkeypatch.setattr(runner, "OTHERS_GRACE_SECONDS", 0.1)
    names: list[str] = []

    async def hang(host: str, _port: int) -> list[str]:
        names.append(host)
        await asyncio.Event().wait()
        return []

    runtime = replace(make.runtime, caller_egress=Egress(frozenset(), lookup=hang))
    user, other = await make.user(points=1000), await make.user(points=100)
    slow = [await make.task_no(user, model=AUTO_MODEL, imageUrl=f"http://hangs{n}.example/") for n in range(8)]
    async with stepping(runtime):
        await until("the user's share is taken", lambda: len(names) == 2)
        url = await put_image(make.runtime, UPLOADED)
        task = await make.ended(other, await make.task_no(other, model=AUTO_MODEL, imageUrl=url))
        assert task["status"] == "completed"
        assert len(names) == 2
        assert {(await make.task(user, task_no))["status"] for task_no in slow} <= {"created", "queued"}
    await runtime.caller_egress.close()


@pytest.mark.usefixtures("hurry")
async def test_slow_uploads_delay_no_other_task(make: Maker, upstream: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are more uploads than slots, and each takes a minute. A task without references ends meanwhile."""
    real = TaskRunner.__init__

    def narrow(self: TaskRunner, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        for pool in self._pools:
            pool.size = min(pool.size, 2)

    monkeypatch.setattr(TaskRunner, "__init__", narrow)
    monkeypatch.setattr(runner, "OTHERS_GRACE_SECONDS", 0.1)
    upstream.control({"where": "upload", "fault": "hang", "seconds": 60})
    user = await make.user(points=1000)
    url = await put_image(make.runtime, UPLOADED)
    slow = [await make.task_no(user, model=IMAGE_MODEL, imageUrl=url) for _ in range(3)]
    async with stepping(make.runtime):
        while not uploads(upstream):
            await asyncio.sleep(0.02)
        quick = await make.task_no(user, '快 [[sandbox: {"take_seconds": 0.2}]]')
        assert (await make.ended(user, quick))["status"] == "completed"
        assert not submits(upstream, "一只可爱的柴犬")
    upstream.control()
    async with stepping(make.runtime):
        for task_no in slow:
            assert (await make.ended(user, task_no))["status"] == "completed"


@pytest.mark.usefixtures("hurry")
async def test_downloads_stay_within_their_pool(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty jobs end at once. The pool never downloads more results in parallel than it has slots."""
    under_way, maximum, real = 0, 0, rehost._rehost

    async def counted(*args: Any) -> dict[str, Any]:
        nonlocal under_way, maximum
        under_way += 1
        maximum = max(maximum, under_way)
        await asyncio.sleep(0.2)
        try:
            return await real(*args)
        finally:
            under_way -= 1

    monkeypatch.setattr(rehost, "_rehost", counted)
    monkeypatch.setattr(pools, "SLOW_CONCURRENCY", 8)
    user = await make.user(points=1000)
    tasks = [await make.task_no(user, '[[sandbox: {"take_seconds": 0}]]') for _ in range(30)]
    async with stepping(make.runtime):
        for task_no in tasks:
            assert (await make.ended(user, task_no))["status"] == "completed"
    assert 1 < maximum <= 8


async def test_a_key_too_long_for_the_file_system_is_no_key(make: Maker) -> None:
    store = make.runtime.store
    base = store.public_url("uploads/x").removesuffix("uploads/x")
    assert store.key_from_url(f"{base}uploads/{'a' * 300}.png") is None
    assert store.key_from_url(f"{base}uploads/../private/x.png") is None
    assert store.key_from_url(f"{base}uploads/%2e%2e/x.png") is None
    assert store.key_from_url(f"{base}uploads/x.png?y=1") is None
    assert store.key_from_url(f"{base}uploads/x.png") == "uploads/x.png"
