"""The search of all tasks: each filter, pages without gaps, and a bound on what one request reads."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update

from app.admin.actions import COMMAND_LINE
from app.admin.tasks import search
from app.admin.tasks.changes import end_task
from app.admin.tasks.search import TaskFilters, get_task_record, search_tasks
from app.errors import InvalidParameter, NotFound
from app.runtime import Runtime
from app.tables import tasks
from tests.support.makers import IMAGE_MODEL, Maker, User
from tests.support.task_rows import row_of

pytestmark = [pytest.mark.anyio, pytest.mark.both_worlds]


async def found(runtime: Runtime, *, size: int = 100, before: str | None = None, **filters: Any) -> list[str]:
    result = await search_tasks(
        runtime.database,
        1,
        runtime.settings.zone,
        runtime.actions,
        TaskFilters(**filters),
        before=before,
        size=size,
    )
    return [str(row["task_no"]) for row in result.rows]


async def all_pages(runtime: Runtime, *, size: int, **filters: Any) -> tuple[list[str], int]:
    """The numbers of all pages, and how many requests they took."""
    numbers: list[str] = []
    before, requests = None, 0
    while True:
        result = await search_tasks(
            runtime.database,
            1,
            runtime.settings.zone,
            runtime.actions,
            TaskFilters(**filters),
            before=before,
            size=size,
        )
        requests += 1
        numbers += [str(row["task_no"]) for row in result.rows]
        before = result.next_before
        if before is None:
            return numbers, requests
        assert requests < 100


async def change(runtime: Runtime, task_no: str, **values: Any) -> None:
    async with runtime.database.begin() as connection:
        await connection.execute(update(tasks).where(tasks.c.task_no == task_no).values(**values))


async def submit_many(make: Maker, user: User, number: int) -> list[str]:
    return [await make.task_no(user, f"猫 {place}") for place in range(number)]


async def test_each_filter_finds_its_tasks_alone(make: Maker, runtime: Runtime) -> None:
    one, other = await make.user(points=500), await make.user(points=500)
    mine, theirs = await submit_many(make, one, 3), await submit_many(make, other, 2)
    image = await make.task_no(one, model=IMAGE_MODEL, imageUrl="https://example.com/a.jpg")
    await change(runtime, mine[0], key_id=7, end_user="顾客-1", upstream_task_id="job-1")
    await change(runtime, mine[1], step="submitting", status="queued")
    await end_task(runtime, COMMAND_LINE, mine[1], may_run_upstream=True, reason="测试", ref=None)
    everything = {*mine, *theirs, image}
    expected: list[tuple[dict[str, Any], set[str]]] = [
        ({}, everything),
        ({"task_no": mine[2]}, {mine[2]}),
        ({"user_id": one.id}, {*mine, image}),
        ({"user_id": other.id}, {*theirs}),
        ({"key_id": 7}, {mine[0]}),
        ({"end_user": "顾客-1"}, {mine[0]}),
        ({"user_id": one.id, "end_user": "顾客-1"}, {mine[0]}),
        ({"status": "failed"}, {mine[1]}),
        ({"step": "done"}, {mine[1]}),
        ({"model_name": IMAGE_MODEL}, {image}),
        ({"error_code": "ENDED_BY_PLATFORM"}, {mine[1]}),
        ({"suspected_orphan": True}, {mine[1]}),
        ({"suspected_orphan": False}, everything - {mine[1]}),
        ({"upstream_task_id": "job-1"}, {mine[0]}),
        ({"upstream_task_id": "job-1", "user_id": other.id}, set()),
        ({"task_no": mine[2], "user_id": other.id}, set()),
        ({"task_no": "TASK-1"}, set()),
        ({"user_id": 2**62}, set()),
    ]
    for filters, numbers in expected:
        shown = await found(runtime, **filters)
        assert set(shown) == numbers, filters
        assert len(shown) == len(numbers), filters
    await change(runtime, mine[0], key_id=None, end_user=None)  # there is no such key


@pytest.mark.parametrize("by_user", [False, True])
async def test_pages_hold_each_task_once_newest_first(make: Maker, runtime: Runtime, by_user: bool) -> None:
    user = await make.user(points=500)
    numbers = await submit_many(make, user, 7)
    filters = {"user_id": user.id} if by_user else {}
    for size in (1, 2, 3, 7, 100):
        shown, requests = await all_pages(runtime, size=size, **filters)
        assert shown == sorted(numbers, reverse=True)
        assert requests <= 7 // size + 1


@pytest.mark.parametrize("by_user", [False, True])
async def test_one_request_reads_a_bounded_number_of_tasks(
    make: Maker, runtime: Runtime, monkeypatch: pytest.MonkeyPatch, by_user: bool
) -> None:
    """The wanted task is the oldest of nine. Each request searches two and says where the next one goes on."""
    monkeypatch.setattr(search, "MAX_SEARCHED", 2)
    user = await make.user(points=500)
    oldest = await make.task_no(user, model=IMAGE_MODEL, imageUrl="https://example.com/a.jpg")
    await submit_many(make, user, 8)
    filters = {"user_id": user.id} if by_user else {}
    shown, requests = await all_pages(runtime, size=10, model_name=IMAGE_MODEL, **filters)
    assert shown == [oldest]
    assert requests == 5


async def test_a_time_finds_the_tasks_of_exactly_that_time(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=500)
    numbers = await submit_many(make, user, 3)
    times = [(await row_of(runtime, number))["created_at"].replace(microsecond=0) for number in numbers]
    now, hour = times[0], timedelta(hours=1)
    for filters in ({}, {"user_id": user.id}):
        assert set(await found(runtime, start=now - hour, end=times[2], **filters)) == set(numbers)
        assert await found(runtime, start=now + hour, **filters) == []
        assert await found(runtime, end=now - hour, **filters) == []
        same_second = {number for number, time in zip(numbers, times, strict=True) if time == now}
        assert set(await found(runtime, start=now, end=now, **filters)) == same_second
        old = now.replace(year=1)
        assert set(await found(runtime, start=old, **filters)) == set(numbers)
        assert set(await found(runtime, end=now.replace(year=9999, month=12, day=31), **filters)) == set(numbers)


async def test_a_page_begins_at_a_known_task(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=500)
    first, second = await submit_many(make, user, 2)
    assert await found(runtime, before=second) == [first]
    assert await found(runtime, before=second, user_id=user.id) == [first]
    for wrong in ("", "猫", "T" * 41, "TASK-\x00"):
        with pytest.raises(InvalidParameter):
            await found(runtime, before=wrong)
    with pytest.raises(InvalidParameter):
        await found(runtime, before="TASK-1", user_id=user.id)


async def test_one_task_is_found_by_its_exact_number(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=30)
    task_no = await make.task_no(user)
    assert (await get_task_record(runtime.database, task_no))["user_id"] == user.id
    for unknown in (f"{task_no} ", task_no.lower(), "TASK-1", "", "猫", "T" * 100):
        with pytest.raises(NotFound):
            await get_task_record(runtime.database, unknown)
