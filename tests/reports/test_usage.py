"""`GET /user/usage`: sums by day, model, key and end user, percentiles, bounds, and the same sums as the ledger."""

import csv
import io
import itertools
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import event, func, insert, select, update

from app.database import utc_now
from app.reports import usage as usage_module
from app.reports.period import Days
from app.reports.statistics import usage_of_all
from app.runtime import Runtime
from app.tables import api_keys, points_ledger, tasks
from tests.support.ended_tasks import complete, fail, start
from tests.support.makers import Maker, User
from tests.support.responses import data, refusal
from tests.support.worlds import execute

pytestmark = [pytest.mark.anyio, pytest.mark.both_worlds]
USAGE = "/user/usage"
_numbers = itertools.count(1)
NOON = datetime(2026, 11, 10, 4, tzinfo=UTC)  # 12:00 in Shanghai
PERIOD = {"from": "2026-11-01", "to": "2026-11-30"}


async def report(make: Maker, user: User, **query: Any) -> dict[str, Any]:
    return dict(data(await make.api.get(USAGE, params=PERIOD | query, headers=user.headers)))


async def add(runtime: Runtime, user: User, *rows: dict[str, Any]) -> None:
    """Tasks without ledger entries, hence without a price. `seconds`: completed after so many."""
    common = {"user_id": user.id, "model_name": "m", "task_type": "text_to_image", "action": "a", "points_cost": 0}
    common |= {"params": {}, "upstream_request": {}, "history": [], "prompt": "p", "deadline_at": NOON}
    common |= {"created_at": NOON, "key_id": None, "end_user": None}
    values = []
    for one in rows:
        row = common | one
        seconds = row.pop("seconds", None)
        is_completed = seconds is not None
        row |= {"status": "completed" if is_completed else "failed", "step": "done"}
        row |= {"completed_at": row["created_at"] + timedelta(seconds=seconds or 1)}
        row |= {"results": [{"key": "k"}] if is_completed else None, "error_code": None if is_completed else "INTERNAL"}
        values.append(row | {"task_no": f"U{next(_numbers)}"})
    async with runtime.database.begin() as connection:
        await connection.execute(insert(tasks).values(updated_at=utc_now()), values)


async def test_percentiles_are_the_nearest_ranks_of_completed_tasks(make: Maker, runtime: Runtime) -> None:
    user = await make.user()
    await add(runtime, user, *[{"seconds": float(seconds)} for seconds in range(1, 21)])
    await add(runtime, user, *[{"model_name": "n", "seconds": 100.25}], {"model_name": "o"})
    found = await report(make, user, by="model")
    by_name = {row["modelName"]: row for row in found["rows"]}
    assert [(row["tasks"], row["completed"], row["failed"]) for row in found["rows"]] == [
        (20, 20, 0),
        (1, 1, 0),
        (1, 0, 1),
    ]
    assert (by_name["m"]["secondsP50"], by_name["m"]["secondsP95"]) == (10.0, 19.0)
    assert (by_name["n"]["secondsP50"], by_name["n"]["secondsP95"]) == (100.25, 100.25)
    assert (by_name["o"]["secondsP50"], by_name["o"]["secondsP95"]) == (None, None)
    totals = found["totals"]
    assert (totals["tasks"], totals["completed"], totals["failed"], totals["running"]) == (22, 21, 1, 0)
    assert (totals["secondsP50"], totals["secondsP95"]) == (11.0, 20.0)  # ranks 11 and 20 of 21


async def test_a_task_belongs_to_its_local_day(make: Maker, runtime: Runtime) -> None:
    user = await make.user()
    midnight = datetime(2026, 11, 9, 16, tzinfo=UTC)  # 00:00 of the 10th in Shanghai
    for created_at in (midnight - timedelta(milliseconds=1), midnight, midnight + timedelta(hours=23)):
        await add(runtime, user, {"created_at": created_at, "seconds": 5.0})
    found = await report(make, user)
    assert [(row["day"], row["tasks"]) for row in found["rows"]] == [("2026-11-09", 1), ("2026-11-10", 2)]
    only = await report(make, user, **{"from": "2026-11-10", "to": "2026-11-10"})
    assert (only["from"], only["to"], only["by"], only["totals"]["tasks"]) == ("2026-11-10", "2026-11-10", ["day"], 2)
    await add(runtime, user, {"created_at": datetime(2026, 3, 28, 23, 30, tzinfo=UTC)})  # 00:30 in winter time
    await add(runtime, user, {"created_at": datetime(2026, 3, 29, 21, 59, tzinfo=UTC)})  # 23:59 in summer time
    await add(runtime, user, {"created_at": datetime(2026, 3, 29, 22, 1, tzinfo=UTC)})
    days = Days(date(2026, 3, 29), date(2026, 3, 30), ZoneInfo("Europe/Berlin"))
    by_day = await usage_module.usage_of_user(runtime.database, user.id, days, ["day"])
    assert [(row.day, row.usage.tasks) for row in by_day.rows] == [("2026-03-29", 2), ("2026-03-30", 1)]


async def test_keys_have_their_names_and_what_is_not_named_is_null(make: Maker, runtime: Runtime) -> None:
    user = await make.user()
    async with runtime.database.begin() as connection:
        mine = update(api_keys).where(api_keys.c.user_id == user.id)
        await connection.execute(mine.values(name="=shop"))
        key = (await connection.execute(select(api_keys).where(api_keys.c.user_id == user.id))).one()
    await add(runtime, user, {"key_id": key.id, "end_user": "ann"}, {"key_id": key.id, "end_user": "Ann"}, {})
    found = await report(make, user, by="endUser,key")
    assert found["by"] == ["key", "endUser"]
    named = [(row["keyId"], row["keyName"], row["keyPrefix"], row["endUser"], row["tasks"]) for row in found["rows"]]
    assert named == [
        (None, None, None, None, 1),
        (key.id, "=shop", key.prefix, "Ann", 1),
        (key.id, "=shop", key.prefix, "ann", 1),
    ]
    answer = await make.api.get(USAGE, params=PERIOD | {"by": "key", "format": "csv"}, headers=user.headers)
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert 'filename="usage-2026-11-01-2026-11-30.csv"' in answer.headers["content-disposition"]
    assert answer.content.startswith(b"\xef\xbb\xbf")
    lines = list(csv.reader(io.StringIO(answer.content.decode("utf-8-sig"))))
    assert lines[0][:4] == ["keyId", "keyName", "keyPrefix", "tasks"]
    assert [line[:4] for line in lines[1:]] == [
        ["", "", "", "1"],
        [str(key.id), "'=shop", key.prefix, "2"],
        ["total", "", "", "3"],
    ]
    await execute(runtime, "UPDATE tasks SET key_id = NULL, end_user = NULL")  # no budget counts these rows


async def test_totals_are_those_of_the_ledger(make: Maker, runtime: Runtime) -> None:
    user, other = await make.user(points=300), await make.user(points=300)
    numbers = [await make.task_no(user) for _ in range(5)]
    await make.task_no(other)
    claimed = await start(runtime)
    for task_no in numbers[:2]:
        await complete(runtime, claimed[task_no])
    await fail(runtime, claimed[numbers[2]])
    found = data(await make.api.get(USAGE, params={"by": "day,model"}, headers=user.headers))
    async with runtime.database.read() as connection:
        sums = select(points_ledger.c.kind, func.sum(points_ledger.c.points).label("points"))
        rows = await connection.execute(sums.where(points_ledger.c.user_id == user.id).group_by(points_ledger.c.kind))
        ledger = {row.kind: int(row.points) for row in rows}
    totals = found["totals"]
    assert (totals["pointsCharged"], totals["pointsRefunded"]) == (-ledger["deduct"], ledger["refund"]) == (150, 30)
    assert totals["pointsNet"] == 300 - (await make.balance(user))[0] == 120
    assert (totals["tasks"], totals["completed"], totals["failed"], totals["running"]) == (5, 2, 1, 2)
    for name in ("tasks", "pointsCharged", "pointsRefunded", "pointsNet", "running"):
        assert sum(row[name] for row in found["rows"]) == totals[name]
    days = Days(date.fromisoformat(found["to"]), date.fromisoformat(found["to"]), runtime.settings.zone)
    everybody = await usage_of_all(runtime.database, days, ["day", "model", "key"])
    assert (everybody.totals.tasks, everybody.totals.charged) == (6, 180)


async def test_without_tasks_it_is_empty(make: Maker) -> None:
    user = await make.user()
    found = await report(make, user, by="key,model")
    assert found["rows"] == []
    assert {value for name, value in found["totals"].items() if not name.startswith("seconds")} == {0}
    answer = await make.api.get(USAGE, params=PERIOD | {"format": "csv"}, headers=user.headers)
    assert len(answer.text.splitlines()) == 2


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"by": "user"}, "by"),
        ({"by": "day,day"}, "by"),
        ({"by": "day,model,key"}, "by"),
        ({"by": ""}, "by"),
        ({"by": "day,"}, "by"),
        ({"by": "x" * 41}, "by"),
        ({"from": "2026-08-01"}, "from"),
        ({"from": "2026-12-01"}, "from"),
        ({"from": "2026-11-01T00:00:00"}, "from"),
        ({"to": "soon"}, "to"),
        ({"to": "9999-12-31"}, "to"),
        ({"format": "xml"}, "format"),
    ],
)
@pytest.mark.worlds("embedded")
async def test_a_wrong_question_gets_a_clear_answer(make: Maker, query: dict[str, str], field: str) -> None:
    user = await make.user()
    answer = await make.api.get(USAGE, params=PERIOD | query, headers=user.headers)
    status, code, message = refusal(answer)
    assert (status, code) == (400, "INVALID_PARAMETER")
    assert field in message


async def test_too_many_groups_are_refused(make: Maker, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage_module, "MAX_ROWS", 3)
    user = await make.user()
    await add(runtime, user, *[{"end_user": f"u{number}"} for number in range(3)])
    assert len((await report(make, user, by="endUser"))["rows"]) == 3
    await add(runtime, user, {"end_user": "u4", "created_at": NOON + timedelta(hours=1)})
    answer = await make.api.get(USAGE, params=PERIOD | {"by": "endUser"}, headers=user.headers)
    assert refusal(answer) == (
        400,
        "INVALID_PARAMETER",
        "参数错误: by 的结果超过 3 行，请缩短 from 和 to 之间的时间，或减少分组",
    )


@pytest.mark.worlds("real")
async def test_only_the_users_own_tasks_of_the_period_are_read(make: Maker, runtime: Runtime) -> None:
    user = await make.user()
    for _ in range(3):
        stranger = await make.user()
        await add(runtime, stranger, *[{"end_user": f"{number}"} for number in range(200)])
    await add(runtime, user, *[{"created_at": NOON - timedelta(days=number)} for number in range(100)])
    seen: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        seen.append((statement, parameters))

    event.listen(runtime.database.readers.sync_engine, "before_cursor_execute", note)
    await report(make, user)
    text, parameters = next(one for one in seen if "read_tasks" in one[0])
    async with runtime.database.read() as connection:
        explained = await connection.exec_driver_sql(f"EXPLAIN FORMAT=TRADITIONAL {text}", parameters)
        (plan,) = [row for row in explained.mappings() if row["table"] == "tasks"]
    assert (plan["key"], plan["type"]) == ("ix_tasks_newest", "range")
