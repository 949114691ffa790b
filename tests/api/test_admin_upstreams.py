"""`/admin/upstreams`: the account, the breakers, the waiting tasks, and SEE2AI's bill beside what we charged."""

from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from app.admin.reports import PLACES
from app.admin.upstreams import bill as bills
from app.database import utc_after
from app.runtime import Runtime
from app.tables import tasks
from app.upstreams.see2ai.responses import HttpResponse
from app.upstreams.see2ai.usage import parse_usage
from tests.support.makers import IMAGE_MODEL, Maker
from tests.support.responses import data, refusal
from tests.support.sandbox_server import Server
from tests.support.task_rows import distinct, row_of
from tests.support.waiting import until

pytestmark = pytest.mark.anyio
embedded = pytest.mark.worlds("embedded")
both_worlds = pytest.mark.both_worlds
PATH = "/admin/upstreams"
FAST = "see2ai_image_generation_fast_v1"


async def read(make: Maker, path: str = PATH, **query: Any) -> dict[str, Any]:
    admin = await make.user(admin=True)
    return dict(data(await make.api.get(path, params=query, headers=admin.headers)))


@embedded
async def test_the_account_and_a_closed_breaker(make: Maker) -> None:
    view = await read(make)
    assert view["account"]["status"] == "ok"
    assert view["account"]["balanceTokens"] > 0
    assert view["account"]["balanceRmb"] == view["account"]["balanceTokens"] / 50_000
    assert [(one["provider"], one["state"]) for one in view["breakers"]] == [("see2ai", "closed")]
    assert (view["backlog"], view["unknownStates"]) == ([], [])


@embedded
@pytest.mark.settings(see2ai_base_url="http://127.0.0.1:1")
async def test_an_unreachable_see2ai_is_a_state_here_and_a_503_at_the_bill(make: Maker, api: httpx.AsyncClient) -> None:
    admin = await make.user(admin=True)
    assert (await read(make))["account"]["status"] == "unreachable"
    answer = await api.get(f"{PATH}/bill", headers=admin.headers)
    status, code, message = refusal(answer)
    assert (status, code) == (503, "UNAVAILABLE")
    assert "SEE2AI" in message
    assert answer.headers["retry-after"]


@embedded
@pytest.mark.usefixtures("working")
async def test_an_open_breaker_says_why_and_since_when(make: Maker, upstream: Server) -> None:
    upstream.control({"fail": 402, "text": "余额不足，请充值", "where": "submit"})
    user = await make.user(points=30)
    await make.task_no(user, distinct("余额"))

    async def opened() -> Any:
        (one,) = (await read(make))["breakers"]
        return one["state"] != "closed" and one

    breaker = await until("the breaker is open", opened)
    assert (breaker["blocksSubmits"], breaker["blocksPolls"]) == (True, False)
    assert "余额不足" in breaker["reason"]
    assert len(breaker["sinceTime"]) == 19


@both_worlds
async def test_the_backlog_counts_living_tasks_by_step(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=500)
    numbers = [await make.task_no(user) for _ in range(3)]
    await make.task_no(user, model=IMAGE_MODEL, imageUrl="https://example.com/a.jpg")
    async with runtime.database.begin() as connection:
        held = update(tasks).where(tasks.c.task_no == numbers[0])
        await connection.execute(held.values(lease_until=utc_after(30.0), next_run_at=utc_after(30.0)))
        old = update(tasks).where(tasks.c.task_no == numbers[1])
        await connection.execute(old.values(created_at=utc_after(-100.0)))
    by_step = {one["step"]: one for one in (await read(make))["backlog"]}
    assert sum(one["tasks"] for one in by_step.values()) == 4
    submit = by_step["submit"]
    assert (submit["held"], submit["due"]) == (1, submit["tasks"] - 1)
    assert 100 <= submit["oldestSeconds"] < 1000


@both_worlds
@pytest.mark.usefixtures("working")
async def test_an_unknown_word_of_a_running_job_is_shown(make: Maker, runtime: Runtime) -> None:
    user, admin = await make.user(points=60), await make.user(admin=True)
    task_no = await make.task_no(user, distinct('[[sandbox: {"state": "Simmering", "take_seconds": 600}]]'))
    await make.task_no(user, distinct('[[sandbox: {"take_seconds": 600}]]'))

    async def seen() -> Any:
        return (await read(make))["unknownStates"]

    assert await until("the word is seen", seen) == [{"state": "simmering", "tasks": 1}]
    detail = data(await make.api.get(f"/admin/tasks/{task_no}", headers=admin.headers))
    assert detail["unknownState"] == "simmering"
    assert (await row_of(runtime, task_no))["step"] == "poll"


@both_worlds
async def test_an_open_breaker_is_read_from_its_row(make: Maker, runtime: Runtime) -> None:
    breaker = runtime.breakers["see2ai"]
    async with breaker.call(waits=False) as call:
        await breaker.trip(call, "余额不足")
    (shown,) = (await read(make))["breakers"]
    assert (shown["state"], shown["reason"], shown["blocksSubmits"]) == ("open", "余额不足", True)
    assert shown["untilTime"]
    await breaker.change(lambda state, now: state.half_open(now, admits_trial=True))
    assert (await read(make))["breakers"][0]["state"] == "trial"
    await breaker.change(lambda state, now: state.closed(now, is_free=False, is_accepted=True))
    assert (await read(make))["breakers"][0]["state"] == "closed"


# ------------------------------------------------------------------ the bill


@both_worlds
@pytest.mark.usefixtures("working")
async def test_the_bill_of_today_has_our_charges_beside_see2ais_figures(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=1000)
    before = await read(make, f"{PATH}/bill")
    done = [await make.task_no(user, distinct('[[sandbox: {"take_seconds": 0}]]')) for _ in range(2)]
    failed = await make.task_no(user, distinct('[[sandbox: {"take_seconds": 0, "end": "failed"}]]'))
    for task_no in (*done, failed):
        await make.ended(user, task_no)
    bill = await read(make, f"{PATH}/bill")
    assert bill["date"] == datetime.now(runtime.settings.zone).date().isoformat()
    assert bill["isDated"] is True
    (model,) = bill["models"]
    assert (model["tasks"], model["completed"], model["failed"], model["running"], model["jobs"]) == (3, 2, 1, 0, 3)
    assert (model["pointsSettled"], model["pointsRefunded"], model["pointsHeld"]) == (60, 30, 0)
    assert model["incomeRmb"] == bill["incomeRmb"] == 1.2
    known = {one["action"]: one for one in before["actions"]}.get(FAST, {"upstreamCalls": 0, "upstreamCostTokens": 0})
    (action,) = [one for one in bill["actions"] if one["action"] == FAST]
    assert action["upstreamCalls"] - known["upstreamCalls"] == 3
    assert action["upstreamCostTokens"] > known["upstreamCostTokens"]
    assert action["unowned"] == action["upstreamCalls"] - 3, "the sandbox serves other tests, too"
    assert model["costTokens"] == action["upstreamCostTokens"]
    assert model["marginPercent"] == round((1.2 - model["costRmb"]) / 1.2 * 100, 1)
    priced = await read(make, f"{PATH}/bill", rmbPerPoint=0.5)
    assert priced["incomeRmb"] == 30


@both_worlds
async def test_another_day_has_no_tasks_of_today(make: Maker, runtime: Runtime) -> None:
    await make.task_no(await make.user(points=30))
    for days in (-1, 1):
        day = datetime.now(runtime.settings.zone).date() + timedelta(days=days)
        bill = await read(make, f"{PATH}/bill", date=day.isoformat())
        assert (bill["models"], bill["incomeRmb"]) == ([], 0)
    for day in ("0001-01-01", "9999-12-31"):
        assert (await read(make, f"{PATH}/bill", date=day))["models"] == []


@embedded
async def test_a_wrong_day_or_price_is_named(make: Maker, api: httpx.AsyncClient) -> None:
    admin = await make.user(admin=True)
    for query, field in (
        ("date=gestern", "date"),
        ("date=2026-02-30", "date"),
        ("date=20261128", "date"),
        ("date=2026-W48-6", "date"),
        ("rmbPerPoint=-1", "rmbPerPoint"),
        ("rmbPerPoint=nan", "rmbPerPoint"),
        ("rmbPerPoint=1e9", "rmbPerPoint"),
    ):
        status, code, message = refusal(await api.get(f"{PATH}/bill?{query}", headers=admin.headers))
        assert (status, code) == (400, "INVALID_PARAMETER"), query
        assert field in message


@both_worlds
async def test_models_share_the_cost_of_their_action_and_jobs_without_a_task_are_listed(
    make: Maker, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await make.user(points=1000)
    numbers = [await make.task_no(user) for _ in range(3)]
    numbers.append(await make.task_no(user, model=IMAGE_MODEL, imageUrl="https://example.com/a.jpg"))
    async with runtime.database.begin() as connection:
        for place, task_no in enumerate(numbers):
            job = update(tasks).where(tasks.c.task_no == task_no)
            await connection.execute(job.values(upstream_task_id=f"job-{place}", step="poll", status="processing"))
    day = datetime.now(runtime.settings.zone).date()
    jobs = [f'{{"action": "{FAST}", "task_id": "job-{place}", "cost": 1000}}' for place in (0, 1, 2, 3, 8, 9)]
    usage = parse_usage(HttpResponse(200, f'{{"records": [{", ".join(jobs)}]}}'.encode()), day)

    async def get_usage(*_: Any) -> Any:
        return usage

    monkeypatch.setattr(bills, "get_usage", get_usage)
    bill = await read(make, f"{PATH}/bill")
    assert bill["isDated"] is False
    assert {one["modelName"]: (one["costTokens"], one["isShare"]) for one in bill["models"]} == {
        "sc_soraimg_text_1x1": (4500, True),
        IMAGE_MODEL: (1500, True),
    }
    assert bill["actions"] == [
        {"action": FAST, "upstreamCalls": 6, "upstreamCostTokens": 6000, "jobs": 4, "unowned": 2}
    ]
    assert bill["unownedJobs"] == [{"action": FAST, "upstreamTaskId": f"job-{place}"} for place in (8, 9)]


@embedded
async def test_few_reports_run_at_once(make: Maker, api: httpx.AsyncClient) -> None:
    admin = await make.user(admin=True)
    with PLACES.take(), PLACES.take():
        answer = await api.get(f"{PATH}/bill", headers=admin.headers)
        assert refusal(answer)[:2] == (429, "RATE_LIMITED")
    assert (await api.get(f"{PATH}/bill", headers=admin.headers)).status_code == 200
