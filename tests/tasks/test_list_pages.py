"""Pages of long lists: their totals are right, and a deep page reads no rows but its own."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import event, insert

from app.database import paging, utc_now
from app.database.paging import SettledCounts
from app.points import ledger
from app.runtime import Runtime
from app.tables import tasks
from tests.support.makers import Maker, User
from tests.support.responses import data

pytestmark = [pytest.mark.anyio, pytest.mark.both_worlds]
LIST, RECORDS = "/user/ai/tasks/list", "/user/points/consumption/records"
OLD = timedelta(hours=1)


async def make_tasks(runtime: Runtime, user: User, name: str, number: int, age: timedelta) -> None:
    """Ended tasks without a price, a second apart; the newest is `age` old."""
    now = datetime.now(UTC)
    common = {"user_id": user.id, "model_name": "m", "task_type": "text_to_image", "action": "a", "points_cost": 0}
    common |= {"params": {}, "upstream_request": {}, "status": "failed", "step": "done", "history": [], "prompt": name}
    common |= {"deadline_at": now, "completed_at": now, "error_code": "CANCELLED"}
    rows = [
        common | {"task_no": f"{name}-{place}", "created_at": now - age - timedelta(seconds=number - place)}
        for place in range(number)
    ]
    async with runtime.database.begin() as connection:
        await connection.execute(insert(tasks).values(updated_at=utc_now()), rows)


@contextmanager
def statements_of(runtime: Runtime) -> Iterator[list[tuple[str, Any]]]:
    """The SELECTs of the readers, with their parameters."""
    seen: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        seen.append((statement, parameters))

    event.listen(runtime.database.readers.sync_engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(runtime.database.readers.sync_engine, "before_cursor_execute", note)


async def total(make: Maker, user: User, **query: Any) -> int:
    return int(data(await make.api.get(LIST, params=query, headers=user.headers))["total"])


async def test_new_tasks_count_at_once_beside_old_ones_that_are_counted_once_a_minute(
    make: Maker, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SettledCounts, "MIN_ROWS", 5)
    user, other = await make.user(points=30), await make.user()
    await make_tasks(runtime, user, "old", 8, OLD)
    await make_tasks(runtime, other, "few", 3, OLD)
    await make_tasks(runtime, user, "recent", 2, timedelta(0))
    assert [await total(make, user), await total(make, other)] == [10, 3]
    known = runtime.database.task_counts.get(user.id)
    assert known is not None
    assert known[1] == 8  # the recent ones are not settled
    assert runtime.database.task_counts.get(other.id) is None
    newest = await make.task_no(user)
    assert [await total(make, user, page=page, size=4) for page in (1, 2, 3, 9)] == [11] * 4
    first = data(await make.api.get(LIST, headers=user.headers))["records"][0]
    assert first["taskNo"] == newest
    assert await total(make, user, taskType="text_to_image") == 11
    # A row that is written by hand with an old time counts when the number is forgotten.
    await make_tasks(runtime, user, "imported", 1, 2 * OLD)
    assert await total(make, user) == 11
    later = time.monotonic() + SettledCounts.KEPT_SECONDS
    monkeypatch.setattr(paging, "time", SimpleNamespace(monotonic=lambda: later))
    assert await total(make, user) == 12


def test_counts_of_few_users_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SettledCounts, "MAX_USERS", 2)
    counts, now = SettledCounts(), datetime.now(UTC)
    for user_id in (1, 2, 1, 3):
        counts.put(user_id, now, user_id)
    assert [counts.get(user_id) for user_id in (1, 2, 3)] == [(now, 1), None, (now, 3)]


async def test_a_page_is_one_statement(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=30)
    await make_tasks(runtime, user, "old", 5, OLD)
    for path in (LIST, f"{LIST}?status=failed&page=2&size=2", RECORDS, f"{RECORDS}?kind=grant"):
        with statements_of(runtime) as seen:
            assert data(await make.api.get(path, headers=user.headers))["records"]
        assert len([text for text, _ in seen if " users" not in text]) == 1, seen


@pytest.mark.worlds("real")
async def test_the_ids_of_a_deep_page_and_their_number_come_from_an_index_alone(
    make: Maker, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SettledCounts, "MIN_ROWS", 5)
    user = await make.user()
    for place in range(4):
        await make_tasks(runtime, user, f"many{place}", 100, OLD)
        await make_tasks(runtime, await make.user(), f"other{place}", 100, OLD)
    async with runtime.database.read() as connection:
        await connection.exec_driver_sql("ANALYZE TABLE tasks")
    with statements_of(runtime) as seen:
        for _ in range(2):
            await total(make, user, page=30, size=10)
    statements = [one for one in seen if "FROM tasks" in one[0]]
    assert len(statements) == 3  # a page that counts all, the count of the old ones, and a page that adds to it
    async with runtime.database.read() as connection:
        for text, parameters in statements:
            explained = await connection.exec_driver_sql(f"EXPLAIN FORMAT=TRADITIONAL {text}", parameters)
            rows = explained.mappings().all()
            plan = [row for row in rows if row["table"] == "tasks"]
            assert plan
            assert all("Using index" in (row["Extra"] or "") or row["key"] == "PRIMARY" for row in plan), (text, plan)
            erased = [row for row in rows if row["table"] == "erased"]
            assert erased, "the erased tasks are left out"
            assert {(row["key"], row["type"]) for row in erased} == {("ix_tasks_changed", "range")}, (text, erased)


async def test_each_page_of_records_begins_where_the_last_one_ended(make: Maker, runtime: Runtime) -> None:
    user, other = await make.user(), await make.user()
    for number in range(7):
        await ledger.grant(runtime.database, user_id=user.id, points=number + 1, ref=f"n{number}")
        await ledger.grant(runtime.database, user_id=other.id, points=1, ref=f"o{number}")
    pages = [
        data(await make.api.get(RECORDS, params={"page": page, "size": 3}, headers=user.headers))
        for page in range(1, 5)
    ]
    assert [[one["points"] for one in page["records"]] for page in pages] == [[7, 6, 5], [4, 3, 2], [1], []]
    assert {page["total"] for page in pages} == {7}
