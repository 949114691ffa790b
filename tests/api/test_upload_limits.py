"""Uploads are shared between users, bounded in a day and by the disk, and expire unless a task uses them."""

import asyncio
import io
import shutil
from collections import namedtuple
from typing import Any

import httpx
import pytest
from PIL import Image
from sqlalchemy import select

from app.api.routes import uploads as route
from app.files import upload_records, uploads
from app.files.media import images, isolation
from app.files.upload_records import expire_uploads
from app.jobs.scheduler import periodic_jobs
from app.runtime import Runtime
from app.storage import StorageError
from app.tables import uploads as uploads_table
from tests.support.makers import IMAGE_MODEL, Maker, User
from tests.support.media_files import image
from tests.support.responses import data, refusal
from tests.support.waiting import until
from tests.support.worlds import execute

pytestmark = pytest.mark.anyio
UPLOAD = "/user/files/upload"
PICTURE = image("PNG")
GONE = "上传的文件已过期或不存在，请重新上传"
Disk = namedtuple("Disk", ["total", "used", "free"])


async def send(make: Maker, user: User, content: bytes = PICTURE) -> httpx.Response:
    return await make.api.post(UPLOAD, files={"file": ("a", content)}, headers=user.headers)


async def upload(make: Maker, user: User, content: bytes = PICTURE) -> str:
    return str(data(await send(make, user, content))["url"])


async def is_stored(runtime: Runtime, url: str) -> bool:
    return await runtime.store.exists(runtime.store.key_from_url(url) or "")


async def rows(runtime: Runtime) -> list[Any]:
    async with runtime.database.read() as connection:
        return list(await connection.execute(select(uploads_table).order_by(uploads_table.c.id)))


async def make_old(runtime: Runtime) -> None:
    """All uploads are older than UPLOAD_KEEP_DAYS."""
    await execute(runtime, "UPDATE uploads SET created_at = '2020-01-01 00:00:00'")


# ------------------------------------------------------------------ at the same time


async def test_large_images_of_one_user_do_not_delay_a_small_one_of_another(make: Maker) -> None:
    """Each of these is a few bytes and takes seconds."""
    file = io.BytesIO()
    Image.new("RGB", (4097, 4097), "navy").save(file, "WEBP", lossless=True, quality=0, method=0)
    assert file.tell() < 100
    attacker, other = await make.user(), await make.user()
    large = [asyncio.create_task(send(make, attacker, file.getvalue())) for _ in range(4)]
    await until("one of them is converted", lambda: isolation._slots._large._waiting)
    assert (await send(make, other, image("WEBP"))).status_code == 200
    assert sum(one.done() for one in large) <= 2
    for one in large:
        one.cancel()
    await asyncio.gather(*large, return_exceptions=True)
    assert (await send(make, attacker)).status_code == 200, "what was cancelled has left its slots and places"


async def test_a_header_that_lies_gives_no_large_job_a_small_ones_place(make: Maker) -> None:
    """A GIF of one pixel by its header, whose first frame is large."""
    file = io.BytesIO()
    Image.new("P", (4097, 4097)).save(file, "GIF")
    lying = bytearray(file.getvalue())
    lying[6:10] = b"\1\0\1\0"
    status, code, _ = refusal(await send(make, await make.user(), bytes(lying)))
    assert (status, code) == (400, "INVALID_PARAMETER")


async def test_uploads_at_the_same_time_have_a_bound(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route, "MAX_UPLOADS_PER_USER", 2)
    monkeypatch.setattr(route, "MAX_UPLOADS", 3)
    end, waiting = asyncio.Event(), 0

    async def slow(*_: Any) -> Any:
        nonlocal waiting
        waiting += 1
        await end.wait()
        raise StorageError("put: away")

    monkeypatch.setattr(make.runtime.store, "put_file", slow)
    first, second, third = [await make.user() for _ in range(3)]
    held = [asyncio.create_task(send(make, user)) for user in (first, first, second)]
    await until("three are under way", lambda: waiting == 3)
    own, full = await send(make, first), await send(make, third)
    end.set()
    assert {answer.status_code for answer in await asyncio.gather(*held)} == {503}
    assert refusal(own)[:2] == (429, "RATE_LIMITED")
    assert refusal(full) == (503, "UNAVAILABLE", uploads.BUSY)
    assert int(own.headers["retry-after"]) > 0
    assert int(full.headers["retry-after"]) > 0
    assert await rows(make.runtime) == [], "what was not stored is not counted"


async def test_a_wait_for_a_slot_ends(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MAX_INSPECTION_SECONDS", 0.2)
    user = await make.user()
    async with images._slots.slot(is_large=False), images._slots.slot(is_large=False):
        assert refusal(await send(make, user)) == (503, "UNAVAILABLE", uploads.BUSY)
    monkeypatch.undo()
    assert (await send(make, user)).status_code == 200


# ------------------------------------------------------------------ in a day


@pytest.mark.both_worlds
@pytest.mark.settings(upload_mb_per_day=1)
async def test_a_users_day_has_a_limit_that_uploads_at_once_do_not_exceed(make: Maker, runtime: Runtime) -> None:
    """A small file counts 100 kB. The limit holds without Redis, because the database counts."""
    user, other = await make.user(points=10), await make.user(points=10)
    await runtime.redis.aclose()
    answers = await asyncio.gather(*[send(make, user) for _ in range(14)])
    assert sorted(answer.status_code for answer in answers) == [200] * 10 + [429] * 4
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refusal(refused) == (429, "RATE_LIMITED", "24 小时内上传的文件合计不能超过 1 MB")
    assert 86_000 < int(refused.headers["retry-after"]) <= 86_400
    assert (await send(make, other)).status_code == 200
    assert len(await rows(runtime)) == 11
    await make_old(runtime)
    assert (await send(make, user)).status_code == 200


async def test_a_user_without_points_may_upload_less(
    make: Maker, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload_records, "MB_WITHOUT_POINTS", 0.2)
    poor, rich = await make.user(), await make.user(points=1)
    for user in (poor, rich):
        assert [(await send(make, user)).status_code for _ in range(2)] == [200, 200]
    assert "有积分后可上传更多" in refusal(await send(make, poor))[2]
    assert (await send(make, rich)).status_code == 200


async def test_an_upload_that_is_refused_does_not_count(make: Maker, runtime: Runtime) -> None:
    user = await make.user()
    assert (await send(make, user, PICTURE[:60])).status_code == 400
    assert await rows(runtime) == []


@pytest.mark.worlds("embedded")  # a bucket has no disk of its own
@pytest.mark.settings(storage_reserve_mb=500)
async def test_the_last_of_the_disk_is_for_results(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reserve is at most a tenth of the disk."""
    user, store = await make.user(), make.runtime.store
    disk = Disk(10**12, 0, 600_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk)
    assert (await send(make, user)).status_code == 200
    disk = Disk(10**9, 0, 101_000_000)
    assert (await send(make, user)).status_code == 200
    disk = Disk(10**9, 0, 99_000_000)
    assert (await send(make, user)).status_code == 503
    disk = Disk(10**12, 0, 499_000_000)
    answer = await send(make, user)
    assert refusal(answer) == (503, "UNAVAILABLE", uploads.NO_SPACE)
    assert int(answer.headers["retry-after"]) > 0
    await store.put("results/2026/11/a.png", PICTURE, "image/png")
    assert await store.exists("results/2026/11/a.png")


# ------------------------------------------------------------------ until they expire


@pytest.mark.both_worlds
async def test_what_no_task_used_expires_and_its_link_is_refused(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=100)
    used, unused = await upload(make, user), await upload(make, user)
    assert (await make.submit(user, model=IMAGE_MODEL, imageUrl=[used])).status_code == 200
    assert await expire_uploads(runtime) == 0, "all are young"
    await make_old(runtime)
    young = await upload(make, user)
    assert await expire_uploads(runtime) == 1
    assert [await is_stored(runtime, url) for url in (used, unused, young)] == [True, False, True]
    assert await expire_uploads(runtime) == 0
    before = await make.balance(user)
    for path in ("submit", "quote"):
        body = {"modelName": IMAGE_MODEL, "prompt": "x", "imageUrl": [young, unused]}
        answer = await make.api.post(f"/user/ai/tasks/{path}", json=body, headers=user.headers)
        assert refusal(answer) == (400, "INVALID_PARAMETER", f"参数错误: imageUrl {GONE}")
    assert await make.balance(user) == before
    assert [row.used_at is None for row in await rows(runtime)] == [False, True], "the refused submit marked nothing"
    assert (await make.submit(user, model=IMAGE_MODEL, imageUrl=[used, young])).status_code == 200


async def test_the_field_of_an_expired_link_is_named(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=10_000)
    link = await upload(make, user)
    await execute(runtime, "DELETE FROM uploads")
    params = {"videoUrls": [link]}
    answer = await make.submit(user, model="sc_video_text_standard", params=params)
    assert refusal(answer)[2] == f"参数错误: params.videoUrls {GONE}"


@pytest.mark.both_worlds
async def test_a_stopped_run_goes_on_and_no_task_gets_a_file_that_is_being_deleted(
    make: Maker, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await make.user(points=100)
    link = await upload(make, user)
    await make_old(runtime)

    async def denied(_key: str) -> None:
        raise StorageError("delete: denied")

    with monkeypatch.context() as patch:
        patch.setattr(runtime.store, "delete", denied)
        assert await expire_uploads(runtime) == 0
    assert (await make.submit(user, model=IMAGE_MODEL, imageUrl=link)).status_code == 400
    assert await expire_uploads(runtime) == 1
    assert not await is_stored(runtime, link)
    assert await rows(runtime) == []


async def test_many_expire_in_batches_and_a_lost_file_stops_nothing(
    make: Maker, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload_records, "EXPIRE_BATCH", 2)
    monkeypatch.setattr(upload_records, "_UNUSED", upload_records._UNUSED.limit(2))
    user = await make.user()
    links = [await upload(make, user) for _ in range(5)]
    await runtime.store.delete(runtime.store.key_from_url(links[0]) or "")
    await make_old(runtime)
    assert await expire_uploads(runtime) == 5
    assert [await is_stored(runtime, link) for link in links] == [False] * 5


async def test_a_link_of_a_version_without_rows_is_taken_as_before(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=100)
    old = runtime.store.public_url(f"uploads/2026/10/{'0' * 40}.png")
    assert (await make.submit(user, model=IMAGE_MODEL, imageUrl=old)).status_code == 200


@pytest.mark.settings(upload_keep_days=0)
async def test_uploads_may_be_kept_for_ever(runtime: Runtime) -> None:
    assert "uploads" not in {job.name for job in periodic_jobs(runtime.settings)}
