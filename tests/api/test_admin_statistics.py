"""`/admin/statistics` and `/admin/overview`: the sums of all users, as an admin reads them."""

from datetime import datetime
from typing import Any

import httpx
import pytest

from app.admin.actions import COMMAND_LINE
from app.admin.reports import PLACES
from app.admin.tasks.changes import end_task
from app.runtime import Runtime
from tests.support.makers import IMAGE_MODEL, TEXT_MODEL, Maker, User
from tests.support.responses import data, refusal

pytestmark = [pytest.mark.anyio, pytest.mark.worlds("embedded")]
STATISTICS, OVERVIEW = "/admin/statistics", "/admin/overview"


async def read(make: Maker, path: str, **query: Any) -> dict[str, Any]:
    admin = await make.user(admin=True)
    return dict(data(await make.api.get(path, params=query, headers=admin.headers)))


async def some_tasks(make: Maker, runtime: Runtime) -> tuple[User, User]:
    """Two users with two tasks of one model, one of another, and one that was ended and refunded."""
    one, other = await make.user(points=500), await make.user(points=500)
    await make.task_no(one)
    await make.task_no(other)
    await make.task_no(one, model=IMAGE_MODEL, imageUrl="https://example.com/a.jpg")
    ended = await make.task_no(other)
    await end_task(runtime, COMMAND_LINE, ended, may_run_upstream=False, reason="测试", ref=None)
    return one, other


async def test_all_users_are_in_the_sums_of_a_model_and_a_day(make: Maker, runtime: Runtime) -> None:
    await some_tasks(make, runtime)
    report = await read(make, STATISTICS)
    today = datetime.now(runtime.settings.zone).date().isoformat()
    assert (report["to"], report["by"]) == (today, ["day", "model", "key"])
    by_model = {row["modelName"]: row for row in report["rows"]}
    text = by_model[TEXT_MODEL]
    assert (text["day"], text["tasks"], text["failed"], text["running"]) == (today, 3, 1, 2)
    assert (text["pointsCharged"], text["pointsRefunded"], text["pointsNet"]) == (90, 30, 60)
    assert by_model[IMAGE_MODEL]["pointsCharged"] == 35
    assert report["totals"]["pointsNet"] == 95
    assert report["totals"]["tasks"] == 4
    (whole,) = (await read(make, STATISTICS, by="day"))["rows"]
    assert (whole["modelName"], whole["tasks"]) == (None, 4)


async def test_the_overview_is_of_today_and_of_what_runs(make: Maker, runtime: Runtime) -> None:
    await some_tasks(make, runtime)
    view = await read(make, OVERVIEW)
    assert view["startTime"] == f"{datetime.now(runtime.settings.zone).date()}T00:00:00"
    assert view["tasksByStatus"] == {"created": 3, "failed": 1}
    assert view["failuresByCode"] == {"ENDED_BY_PLATFORM": 1}
    assert sum(one["tasks"] for one in view["runningByStep"]) == 3
    assert view["pointsByKind"] == {"grant": 1000, "deduct": 125, "refund": 30}
    assert view["newUsers"] == 3


async def test_a_gateway_without_tasks_has_empty_statistics(make: Maker) -> None:
    assert (await read(make, STATISTICS))["rows"] == []
    assert (await read(make, OVERVIEW))["tasksByStatus"] == {}


async def test_wrong_periods_and_groups_are_named(make: Maker, api: httpx.AsyncClient) -> None:
    admin = await make.user(admin=True)
    for query, field in (
        ("from=gestern", "from"),
        ("to=2026-02-30", "to"),
        ("from=2026-01-02&to=2026-01-01", "from"),
        ("from=2020-01-01&to=2026-01-01", "from"),
        ("by=", "by"),
        ("by=week", "by"),
        ("by=day,day", "by"),
    ):
        status, code, message = refusal(await api.get(f"{STATISTICS}?{query}", headers=admin.headers))
        assert (status, code) == (400, "INVALID_PARAMETER"), query
        assert field in message, query


async def test_few_statistics_run_at_once(make: Maker, api: httpx.AsyncClient) -> None:
    admin = await make.user(admin=True)
    with PLACES.take(), PLACES.take():
        for path in (STATISTICS, OVERVIEW):
            assert refusal(await api.get(path, headers=admin.headers))[:2] == (429, "RATE_LIMITED")
