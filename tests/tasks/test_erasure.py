"""Erasing one task: its work is gone everywhere, its files are deleted, and the ledger keeps its numbers."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select

from app.files import deletions
from app.files.deletions import delete_files
from app.jobs.webhook_payload import build_payload
from app.points.audit.checks import audit
from app.runtime import Runtime
from app.storage import StorageError
from app.tables import file_deletions, points_ledger, uploads, webhook_deliveries
from app.tasks.stream import TaskStream
from tests.support.ended_tasks import complete, completed, fail, row, start, stored
from tests.support.makers import IMAGE_MODEL, Maker, User
from tests.support.media_files import image
from tests.support.responses import LIST, data, refusal
from tests.support.worlds import execute

pytestmark = [pytest.mark.anyio, pytest.mark.both_worlds]
NOT_FOUND = (404, "NOT_FOUND", "任务不存在")
HOOK = "https://receiver.example.com/hook"


async def erase(make: Maker, user: User, task_no: str) -> httpx.Response:
    return await make.api.delete(f"/user/ai/tasks/{task_no}", headers=user.headers)


async def upload(make: Maker, user: User) -> str:
    answer = await make.api.post("/user/files/upload", files={"file": ("a", image("PNG"))}, headers=user.headers)
    return str(data(answer)["url"])


async def queued(runtime: Runtime) -> dict[str, int]:
    """The attempts of each queued file."""
    async with runtime.database.read() as connection:
        rows = await connection.execute(select(file_deletions.c.object_key, file_deletions.c.attempts))
        return {row.object_key: row.attempts for row in rows}


async def make_due(runtime: Runtime) -> None:
    await execute(runtime, "UPDATE file_deletions SET next_attempt_at = '2020-01-01 00:00:00'")


async def entries(runtime: Runtime) -> list[Any]:
    async with runtime.database.read() as connection:
        return list(await connection.execute(select(points_ledger).order_by(points_ledger.c.id)))


async def test_a_work_is_gone_and_its_numbers_stay(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=100)
    fields = {"callbackUrl": HOOK, "params": {"resolution": "2K"}}
    task_no, keys = await completed(make, user, **fields)
    kept, kept_keys = await completed(make, user, prompt="another")
    before = await entries(runtime)
    deliveries = "/user/webhooks/deliveries"
    (delivery,) = data(await make.api.get(deliveries, headers=user.headers))["records"]
    assert data(await erase(make, user, task_no)) == {"taskNo": task_no, "erased": True}
    task = f"/user/ai/tasks/{task_no}"
    assert refusal(await make.api.get(task, headers=user.headers)) == NOT_FOUND
    assert refusal(await make.api.post(f"{task}/cancel", headers=user.headers)) == NOT_FOUND
    assert refusal(await erase(make, user, task_no)) == NOT_FOUND
    for query in ({}, {"keyword": "secret"}, {"status": "completed"}, {"page": 2, "size": 1}):
        listed = data(await make.api.get(LIST, params=query, headers=user.headers))
        assert [one["taskNo"] for one in listed["records"]] == (
            [kept] if query in ({}, {"status": "completed"}) else []
        )
        assert listed["total"] == (0 if "keyword" in query else 1)
    assert data(await make.api.get(deliveries, headers=user.headers))["total"] == 0
    replay = await make.api.post(f"{deliveries}/{delivery['id']}/replay", headers=user.headers)
    assert refusal(replay)[:2] == (404, "NOT_FOUND")
    assert await entries(runtime) == before
    assert data(await make.api.get(f"{task}/points", headers=user.headers))["state"] == "settled"
    found = await row(runtime, task_no)
    assert "secret" not in repr(found)
    assert (found["prompt"], found["image_url"], found["params"], found["upstream_request"]) == ("", None, {}, {})
    assert (found["results"], found["callback_url"], found["status"], found["points_cost"]) == (
        [],
        None,
        "completed",
        30,
    )
    assert found["erased_at"] is not None
    assert await build_payload(runtime, found["id"]) is None
    assert await audit(runtime.database) == []
    assert await delete_files(runtime) == 2
    assert await stored(runtime, keys) == [False, False]
    assert await stored(runtime, kept_keys) == [True, True]
    assert await queued(runtime) == {}


@pytest.mark.worlds("embedded")
async def test_its_permanent_links_are_404(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=100)
    task_no, _ = await completed(make, user)
    links = [(await make.task(user, task_no))[name][0] for name in ("resultUrls", "thumbnailUrls")]
    assert [(await make.api.get(link)).status_code for link in links] == [200, 200]
    data(await erase(make, user, task_no))
    await delete_files(runtime)
    assert {refusal(await make.api.get(link))[:2] for link in links} == {(404, "NOT_FOUND")}


async def test_a_running_task_is_not_erased(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=100)
    task_no = await make.task_no(user)
    before = await row(runtime, task_no)
    assert refusal(await erase(make, user, task_no))[:2] == (409, "TASK_RUNNING")
    assert await row(runtime, task_no) == before
    claimed = (await start(runtime))[task_no]
    assert refusal(await erase(make, user, task_no))[:2] == (409, "TASK_RUNNING")
    await complete(runtime, claimed)
    assert (await erase(make, user, task_no)).status_code == 200


async def test_anothers_task_is_like_none(make: Maker, runtime: Runtime) -> None:
    owner, stranger = await make.user(points=100), await make.user()
    task_no, keys = await completed(make, owner)
    numbers = (task_no, "TASK-1", "x" * 41, task_no.lower(), "a%00b")
    assert {refusal(await erase(make, stranger, one)) for one in numbers} == {NOT_FOUND}
    assert refusal(await make.api.delete(f"/user/ai/tasks/{task_no}"))[0] == 401
    assert (await make.task(owner, task_no))["prompt"] == "secret words"
    assert await queued(runtime) == {}
    assert await stored(runtime, keys) == [True, True]


async def test_many_at_once_erase_it_once(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=100)
    task_no, _ = await completed(make, user)
    answers = await asyncio.gather(*[erase(make, user, task_no) for _ in range(8)])
    assert sorted(answer.status_code for answer in answers) == [200, *[404] * 7]
    assert [one["note"] for one in (await row(runtime, task_no))["history"]][-1] == "erased"


async def test_a_failed_task_leaves_no_file_behind(make: Maker, runtime: Runtime) -> None:
    """It had stored one picture when it failed, and no result names that file."""
    user = await make.user(points=100)
    task_no = await make.task_no(user)
    claimed = (await start(runtime))[task_no]
    left = f"results/{claimed.created_at:%Y/%m}/{task_no}-1.png"
    await runtime.store.put(left, b"a picture", "image/png")
    state = '{"urls":["https://see2ai.example.com/1.png"],"note":"secret words","accepted_age_seconds":1.5}'
    await fail(runtime, claimed)
    await execute(runtime, "UPDATE tasks SET upstream_state = :state", state=state)
    data(await erase(make, user, task_no))
    await delete_files(runtime)
    assert await stored(runtime, [left]) == [False]
    found = await row(runtime, task_no)
    assert (found["results"], found["upstream_state"]) == (None, {"accepted_age_seconds": 1.5})
    assert "secret" not in repr(found)
    assert await queued(runtime) == {}


async def test_a_late_repeat_of_its_submit_is_not_charged(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=100)
    body = {"modelName": "sc_soraimg_text_1x1", "prompt": "once"}
    headers = user.headers | {"Idempotency-Key": "k1"}
    task_no = data(await make.api.post("/user/ai/tasks/submit", json=body, headers=headers))["taskNo"]
    await complete(runtime, (await start(runtime))[task_no])
    data(await erase(make, user, task_no))
    again = await make.api.post("/user/ai/tasks/submit", json=body, headers=headers)
    assert refusal(again)[:2] == (409, "IDEMPOTENCY_CONFLICT")
    assert await make.balance(user) == (70, 0)


async def test_no_stream_shows_it(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=100)
    erased, _ = await completed(make, user)
    kept, _ = await completed(make, user)
    data(await erase(make, user, erased))
    stream = TaskStream(runtime, user.id, datetime(1970, 1, 1, tzinfo=UTC))
    changes = stream.changes()
    assert await anext(changes) is None
    runtime.pubsub.publish(user.id, erased)
    shown = await asyncio.wait_for(anext(changes), 30)
    assert shown is not None
    assert shown["task_no"] == kept
    await changes.aclose()


# ------------------------------------------------------------------ files


async def test_a_crash_between_commit_and_deletion_is_made_good(
    make: Maker, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await make.user(points=100)
    task_no, keys = await completed(make, user)
    data(await erase(make, user, task_no))
    assert sorted(await queued(runtime)) == sorted(keys), "committed with the erasure"

    async def dies(*_: Any) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(deletions, "_forget", dies)
        with pytest.raises(RuntimeError):
            await delete_files(runtime)
    assert sorted(await stored(runtime, keys)) == [False, True]
    assert len(await queued(runtime)) == 2
    assert await delete_files(runtime) == 2
    assert await stored(runtime, keys) == [False, False]
    assert await queued(runtime) == {}


async def test_a_storage_that_fails_is_tried_again_later(
    make: Maker, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await make.user(points=100)
    task_no, keys = await completed(make, user)
    data(await erase(make, user, task_no))
    tries: list[str] = []

    async def denied(key: str) -> None:
        tries.append(key)
        raise StorageError("delete: denied")

    with monkeypatch.context() as patch:
        patch.setattr(runtime.store, "delete", denied)
        assert await delete_files(runtime) == 0
        assert await delete_files(runtime) == 0, "not due yet"
        assert sorted(tries) == sorted(keys)
        await make_due(runtime)
        assert await delete_files(runtime) == 0
    assert await queued(runtime) == dict.fromkeys(keys, 2)
    await make_due(runtime)
    assert await delete_files(runtime) == 2


async def test_a_storage_that_is_away_ends_the_run(
    make: Maker, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletions, "MAX_FAILURES", 3)
    keys = [f"results/2026/11/{number}.png" for number in range(9)]
    async with runtime.database.begin() as connection:
        await deletions.queue_deletions(connection, keys)
        await deletions.queue_deletions(connection, keys)
    tries: list[str] = []

    async def away(key: str) -> None:
        tries.append(key)
        raise StorageError("delete: no answer")

    with monkeypatch.context() as patch:
        patch.setattr(runtime.store, "delete", away)
        await delete_files(runtime)
    assert len(tries) == 3
    assert await delete_files(runtime) == 6


async def test_a_file_that_a_running_task_uses_waits_for_its_end(make: Maker, runtime: Runtime) -> None:
    user, other = await make.user(points=100), await make.user(points=100)
    task_no, keys = await completed(make, user)
    link = (await make.task(user, task_no))["resultUrl"]
    running = await make.task_no(other, model=IMAGE_MODEL, imageUrl=link)
    data(await erase(make, user, task_no))
    later = await make.task_no(other, model=IMAGE_MODEL, imageUrl=link)
    assert await delete_files(runtime) == 1, "the thumbnail"
    assert await stored(runtime, keys) == [True, False]
    claimed = await start(runtime)
    await make_due(runtime)
    assert await delete_files(runtime) == 0
    await complete(runtime, claimed[running])
    await make_due(runtime)
    assert await delete_files(runtime) == 1, "a task that was submitted after the erasure holds up nothing"
    assert await stored(runtime, keys) == [False, False]
    assert (await make.task(other, later))["status"] == "processing"


async def test_an_upload_goes_with_the_last_work_that_shows_it(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=200)
    link = await upload(make, user)
    key = runtime.store.key_from_url(link) or ""
    first, _ = await completed(make, user, model=IMAGE_MODEL, imageUrl=link)
    second, _ = await completed(make, user, model=IMAGE_MODEL, imageUrl=[link])
    data(await erase(make, user, first))
    assert key in await queued(runtime)
    await delete_files(runtime)
    assert await stored(runtime, [key]) == [True]
    assert await queued(runtime) == {}
    assert (await make.task(user, second))["imageUrl"] == [link]
    data(await erase(make, user, second))
    await delete_files(runtime)
    assert await stored(runtime, [key]) == [False]
    refused = await make.submit(user, model=IMAGE_MODEL, imageUrl=link)
    assert refusal(refused)[:2] == (400, "INVALID_PARAMETER")
    async with runtime.database.read() as connection:
        assert await connection.scalar(select(func.count()).select_from(uploads)) == 1, "it counts for its day"


async def test_nobody_erases_anothers_upload(make: Maker, runtime: Runtime) -> None:
    owner, stranger = await make.user(), await make.user(points=100)
    link = await upload(make, owner)
    task_no, _ = await completed(make, stranger, model=IMAGE_MODEL, imageUrl=link)
    data(await erase(make, stranger, task_no))
    await delete_files(runtime)
    assert await stored(runtime, [runtime.store.key_from_url(link) or ""]) == [True]


async def test_an_upload_and_a_submit_at_once_leave_no_task_without_its_file(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=500)
    link = await upload(make, user)
    key = runtime.store.key_from_url(link) or ""
    task_no, _ = await completed(make, user, model=IMAGE_MODEL, imageUrl=link)
    data(await erase(make, user, task_no))
    submits = [make.submit(user, model=IMAGE_MODEL, imageUrl=link) for _ in range(4)]
    *answers, _ = await asyncio.gather(*submits, delete_files(runtime))
    is_accepted = {answer.status_code for answer in answers} & {200}
    if is_accepted:
        await make_due(runtime)
        await delete_files(runtime)
    assert await stored(runtime, [key]) == [bool(is_accepted)]


async def test_the_deliveries_of_others_stay(make: Maker, runtime: Runtime) -> None:
    user, other = await make.user(points=100), await make.user(points=100)
    task_no, _ = await completed(make, user, callbackUrl=HOOK)
    await completed(make, other, callbackUrl=HOOK)
    data(await erase(make, user, task_no))
    async with runtime.database.read() as connection:
        owners = list(await connection.scalars(select(webhook_deliveries.c.user_id)))
    assert owners == [other.id]
