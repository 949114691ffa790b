"""Results that are stored again: a completed task gets its files back, and a refunded one never becomes completed."""

from typing import Any

import httpx
import pytest
from sqlalchemy import select, update

from app.admin.actions import Admin
from app.admin.tasks import rehost
from app.admin.tasks.rehost import rehost_again
from app.errors import ActionConflict, InvalidParameter, NotFound, RateLimited, Unavailable
from app.runtime import Runtime
from app.storage import StorageError
from app.tables import admin_actions, tasks
from tests.support.makers import Maker, User
from tests.support.sandbox_server import Server
from tests.support.task_rows import distinct, fetches, polls, row_of, set_deadline
from tests.support.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.worlds("embedded")]
ADMIN = Admin(1, "request-1")
working = pytest.mark.usefixtures("working")


async def again(runtime: Runtime, task_no: str, *, gives_away: bool = False, ref: str | None = None) -> Any:
    return await rehost_again(runtime, ADMIN, task_no, gives_away=gives_away, reason="文件丢失", ref=ref)


async def completed(make: Maker, user: User) -> str:
    task_no = await make.task_no(user, distinct('[[sandbox: {"take_seconds": 0}]] 保存'))
    assert (await make.ended(user, task_no))["status"] == "completed"
    return task_no


async def lose_files(runtime: Runtime, task_no: str) -> list[str]:
    keys = []
    for one in (await row_of(runtime, task_no))["results"]:
        keys += [one["key"], one["thumbnailKey"]]
    for key in keys:
        await runtime.store.delete(key)
    return keys


async def set_erased(runtime: Runtime, task_no: str, *, erased: bool) -> None:
    """Only marks the task. The audit after the test wants the mark taken back, because the row keeps its results."""
    async with runtime.database.begin() as connection:
        values = {"version": tasks.c.version + 1, "erased_at": tasks.c.updated_at if erased else None}
        await connection.execute(update(tasks).where(tasks.c.task_no == task_no).values(**values))


async def lost_result(make: Maker, user: User, upstream: Server) -> str:
    """A task whose result could not be stored until its hosting deadline."""
    upstream.control({"where": "result", "fail": 500})
    task_no = await make.task_no(user, distinct('[[sandbox: {"take_seconds": 0}]] 丢失'))

    async def is_tried() -> bool:
        row = await row_of(make.runtime, task_no)
        return bool(row["step"] == "rehost" and row["upstream_state"].get("is_refreshed"))

    await until("the result is tried again", is_tried)
    await set_deadline(make.runtime, task_no, -1)
    assert (await make.ended(user, task_no))["errorCode"] == "RESULT_LOST"
    upstream.control()
    return task_no


@working
async def test_the_lost_files_of_a_completed_task_come_back(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=30)
    task_no = await completed(make, user)
    with pytest.raises(ActionConflict, match="文件都在"):
        await again(runtime, task_no)
    keys = await lose_files(runtime, task_no)
    before = await make.task(user, task_no)
    result = await again(runtime, task_no, ref="lost-1")
    assert result.applied
    assert [await runtime.store.exists(key) for key in keys] == [True] * len(keys)
    after = await make.task(user, task_no)
    assert {**after, "updateTime": before["updateTime"]} == before
    assert await make.balance(user) == (0, 0)
    assert result.after["resultUrls"] == after["resultUrls"]
    assert (await row_of(runtime, task_no))["history"][-1]["note"].startswith("results stored again by an admin")


@working
async def test_a_repeat_with_a_reference_downloads_nothing(make: Maker, runtime: Runtime, upstream: Server) -> None:
    user = await make.user(points=60)
    task_no, other = await completed(make, user), await completed(make, user)
    await lose_files(runtime, task_no)
    await again(runtime, task_no, ref="lost-1")
    number = len(fetches(upstream, await row_of(runtime, task_no)))
    repeated = await again(runtime, task_no, ref="lost-1")
    assert repeated.applied is False
    assert repeated.after["resultUrls"] == (await make.task(user, task_no))["resultUrls"]
    assert len(fetches(upstream, await row_of(runtime, task_no))) == number
    await lose_files(runtime, other)
    with pytest.raises(ActionConflict):
        await again(runtime, other, ref="lost-1")
    with pytest.raises(InvalidParameter):
        await again(runtime, other, ref=" lost-2")
    assert len(fetches(upstream, await row_of(runtime, other))) == 1


@working
async def test_expired_urls_are_replaced_by_a_poll(make: Maker, runtime: Runtime, upstream: Server) -> None:
    user = await make.user(points=30)
    task_no = await completed(make, user)
    await lose_files(runtime, task_no)
    async with runtime.database.begin() as connection:
        state = {"urls": [f"{upstream.origin}/results/expired.jpg"]}
        await connection.execute(update(tasks).where(tasks.c.task_no == task_no).values(upstream_state=state))
    number = len(polls(upstream, await row_of(runtime, task_no)))
    assert (await again(runtime, task_no)).applied
    assert len(polls(upstream, await row_of(runtime, task_no))) == number + 1


@working
async def test_a_refunded_task_stays_failed_and_its_work_is_given_away_only_on_demand(
    make: Maker, runtime: Runtime, upstream: Server, api: httpx.AsyncClient
) -> None:
    user = await make.user(points=30)
    task_no = await lost_result(make, user, upstream)
    with pytest.raises(ActionConflict, match="givesAway"):
        await again(runtime, task_no)
    shown = await make.task(user, task_no)
    result = await again(runtime, task_no, gives_away=True, ref="gift-1")
    assert result.applied
    (url,) = result.after["resultUrls"]
    assert (await api.get(url)).status_code == 200
    assert await make.task(user, task_no) == shown
    assert (shown["status"], shown["resultUrls"], shown["pointsRefunded"]) == ("failed", [], 30)
    assert await make.balance(user) == (30, 0)
    async with runtime.database.read() as connection:
        written = (await connection.execute(select(admin_actions))).one()
    assert (written.action, written.target, written.after["givesAway"]) == ("task.rehost", task_no, True)
    assert written.after["status"] == "failed"


@working
async def test_only_a_lost_result_can_be_stored_again(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=90)
    running = await make.task_no(user, distinct('[[sandbox: {"end": "never"}]]'))
    failed = await make.task_no(user, distinct('[[sandbox: {"end": "failed", "take_seconds": 0}]]'))
    await make.ended(user, failed)
    for task_no in (running, failed):
        for gives_away in (False, True):
            with pytest.raises(ActionConflict):
                await again(runtime, task_no, gives_away=gives_away)
    done = await completed(make, user)
    await lose_files(runtime, done)
    with pytest.raises(ActionConflict, match="无需 givesAway"):
        await again(runtime, done, gives_away=True)
    await set_erased(runtime, done, erased=True)
    with pytest.raises(ActionConflict, match="已删除"):
        await again(runtime, done)
    await set_erased(runtime, done, erased=False)
    with pytest.raises(NotFound):
        await again(runtime, "TASK-1")


@working
async def test_a_lost_result_and_an_absent_store_have_different_errors(
    make: Maker, runtime: Runtime, upstream: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await make.user(points=30)
    task_no = await completed(make, user)
    await lose_files(runtime, task_no)
    upstream.control({"where": "result", "fail": 404})
    with pytest.raises(ActionConflict, match="无法取回"):
        await again(runtime, task_no)
    upstream.control()

    async def away(*_: Any) -> None:
        raise StorageError("put: away")

    with monkeypatch.context() as patch:
        patch.setattr(runtime.store, "put_file", away)
        with pytest.raises(Unavailable, match="存储"):
            await again(runtime, task_no)
    monkeypatch.setattr(rehost, "REHOST_SECONDS", 0.2)
    upstream.control({"where": "result", "fault": "hang"})
    with pytest.raises(Unavailable, match="秒内"):
        await again(runtime, task_no)
    async with runtime.database.read() as connection:
        assert (await connection.execute(select(admin_actions))).all() == []
    assert not rehost._running


@working
async def test_few_run_at_once_and_a_change_in_between_is_noticed(
    make: Maker, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await make.user(points=30)
    task_no = await completed(make, user)
    await lose_files(runtime, task_no)
    with monkeypatch.context() as patch:
        patch.setattr(rehost, "_running", {"TASK-1", "TASK-2"})
        with pytest.raises(RateLimited):
            await again(runtime, task_no)
    store = rehost._store_bounded

    async def interrupted(*arguments: Any) -> Any:
        results = await store(*arguments)
        async with runtime.database.begin() as connection:
            await connection.execute(
                update(tasks).where(tasks.c.task_no == task_no).values(version=tasks.c.version + 1)
            )
        return results

    monkeypatch.setattr(rehost, "_store_bounded", interrupted)
    with pytest.raises(ActionConflict, match="其他操作"):
        await again(runtime, task_no)


@working
async def test_the_files_of_a_task_that_was_erased_meanwhile_do_not_come_back(
    make: Maker, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await make.user(points=30)
    task_no = await completed(make, user)
    keys, store = await lose_files(runtime, task_no), rehost._store_bounded

    async def interrupted(*arguments: Any) -> Any:
        stored = await store(*arguments)
        assert await runtime.store.exists(keys[0])
        await set_erased(runtime, task_no, erased=True)
        return stored

    monkeypatch.setattr(rehost, "_store_bounded", interrupted)
    with pytest.raises(ActionConflict):
        await again(runtime, task_no)
    assert [await runtime.store.exists(key) for key in keys] == [False] * len(keys)
    await set_erased(runtime, task_no, erased=False)
