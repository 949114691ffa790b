"""The database ends a statement that was given up, and lists of one user leave room for everybody else."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import insert, text

from app.database import Database, StatementTimeout, connections, engines, open_database, paging, utc_now
from app.database.paging import ReadShares
from app.errors import RateLimited, Unavailable
from app.points import balance
from app.runtime import Runtime
from app.settings import Settings
from app.tables import tasks
from app.tasks import queries
from tests.support.makers import Maker, User
from tests.support.responses import LIST, data, refusal
from tests.support.sql import run_sql
from tests.support.waiting import until
from tests.support.worlds import EMBEDDED, World

pytestmark = pytest.mark.anyio
both_worlds = pytest.mark.both_worlds
MAX_SECONDS = 10.0
RECORDS, DELIVERIES = "/user/points/consumption/records", "/user/webhooks/deliveries"
DIGITS = " UNION ALL ".join(f"SELECT {digit}" for digit in range(10))
ENDLESS = "SELECT COUNT(*) FROM " + ", ".join(f"(SELECT 0 AS n UNION ALL {DIGITS}) AS t{place}" for place in range(12))
"""It would run for days on any of the databases."""


@pytest.fixture
async def database(world: World, anyio_backend: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Database]:
    """Readers may take 0.2 s for a statement, writers 0.4 s."""
    monkeypatch.setattr(engines, "STATEMENT_SECONDS", 0.2)
    monkeypatch.setattr(engines, "TRANSACTION_TIMEOUT_SECONDS", 0.4)
    database = open_database(Settings(_env_file=None, **world.settings))
    yield database
    await database.close()


async def is_running(world: World) -> bool:
    if world.name == EMBEDDED:
        return False
    query = (
        "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE INFO LIKE 'SELECT COUNT(*) FROM (SELECT 0 AS n%%'"
    )
    return bool(await run_sql(world.settings["database_url"], query))


@both_worlds
async def test_a_statement_that_takes_too_long_is_ended(database: Database, world: World) -> None:
    began = time.monotonic()
    for opened in (database.read, database.begin):
        with pytest.raises(StatementTimeout):
            async with opened() as connection:
                await connection.scalar(text(ENDLESS))
        await until("the server has ended it", lambda: is_running_no_more(world))
        async with opened() as connection:
            assert await connection.scalar(text("SELECT 1")) == 1
    assert time.monotonic() - began < MAX_SECONDS


@both_worlds
async def test_a_statement_whose_caller_is_gone_ends_in_the_database(database: Database, world: World) -> None:
    with pytest.raises(Unavailable):
        async with database.read(0.1) as connection:
            await connection.scalar(text(ENDLESS))
    await until("the server has ended it", lambda: is_running_no_more(world))


async def is_running_no_more(world: World) -> bool:
    return not await is_running(world)


@both_worlds
async def test_a_long_read_may_take_longer_and_leaves_the_usual_limit(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "TRANSACTION_TIMEOUT_SECONDS", 0.1)
    for seconds, is_long in ((0.8, True), (0.1, False)):
        began = time.monotonic()
        with pytest.raises(Unavailable):
            async with database.read(seconds) as connection:
                await connection.scalar(text(ENDLESS))
        assert (time.monotonic() - began > 0.7) == is_long


# ------------------------------------------------------------------ the shares


async def test_one_user_has_a_share_and_the_lists_of_all_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "MAX_WAIT_SECONDS", 0.05)
    shares = ReadShares(16)
    release = asyncio.Event()

    async def hold(user_id: int) -> None:
        async with shares.take(user_id):
            await release.wait()

    async def refused(user_id: int) -> type[Exception] | None:
        try:
            async with shares.take(user_id):
                return None
        except (RateLimited, Unavailable) as error:
            return type(error)

    holding = [asyncio.create_task(hold(1)) for _ in range(2)]
    await asyncio.sleep(0)
    assert await refused(1) is RateLimited
    assert await refused(2) is None
    holding += [asyncio.create_task(hold(user_id)) for user_id in (2, 2, 3, 3, 4, 4)]
    await asyncio.sleep(0)
    assert await refused(5) is Unavailable
    release.set()
    await asyncio.gather(*holding)
    assert [await refused(user_id) for user_id in (1, 5)] == [None, None]
    assert shares._users == {}


async def test_waiting_lists_are_read_one_after_the_other(make: Maker) -> None:
    user = await make.user()
    answers = await asyncio.gather(*[make.api.get(path, headers=user.headers) for path in [LIST, RECORDS] * 20])
    assert {answer.status_code for answer in answers} == {200}


async def test_a_user_whose_lists_are_slow_is_refused_and_others_are_not(
    make: Maker, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paging, "MAX_WAIT_SECONDS", 0.05)
    user, other = await make.user(points=30), await make.user()
    task_no = await make.task_no(user)
    async with AsyncExitStack() as share:
        for _ in range(runtime.database._shares._for_user):
            await share.enter_async_context(runtime.database.read_list(user.id))
        for path in (LIST, f"{LIST}?keyword=x", RECORDS, DELIVERIES):
            answer = await make.api.get(path, headers=user.headers)
            assert refusal(answer) == (429, "RATE_LIMITED", "列表查询过多，请等待前面的查询完成")
            assert int(answer.headers["retry-after"]) > 0
            assert (await make.api.get(path, headers=other.headers)).status_code == 200
        assert (await make.task(user, task_no))["taskNo"] == task_no
    assert (await make.api.get(LIST, headers=user.headers)).status_code == 200


async def test_a_search_that_takes_too_long_says_what_to_do(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    async def too_slow(*_: Any) -> None:
        raise StatementTimeout

    monkeypatch.setattr(queries, "_search", too_slow)
    answer = await make.api.get(f"{LIST}?keyword=x", headers=(await make.user()).headers)
    assert refusal(answer) == (503, "UNAVAILABLE", "查询时间过长，请用 startTime 和 endTime 缩小范围")


# ------------------------------------------------------------------ the reach


async def make_tasks(runtime: Runtime, user: User, prompts: list[str]) -> None:
    """Ended tasks, the last prompt the newest; without a price, so that the books are right."""
    now = datetime.now(UTC)
    common = {"user_id": user.id, "model_name": "m", "task_type": "text_to_image", "action": "a", "points_cost": 0}
    common |= {"params": {}, "upstream_request": {}, "status": "failed", "step": "done", "history": []}
    common |= {"deadline_at": now, "completed_at": now, "error_code": "CANCELLED"}
    rows = [
        common | {"task_no": f"T-{user.id}-{number}", "prompt": prompt, "created_at": now + timedelta(seconds=number)}
        for number, prompt in enumerate(prompts)
    ]
    for start in range(0, len(rows), 100):
        async with runtime.database.begin() as connection:
            await connection.execute(insert(tasks).values(updated_at=utc_now()), rows[start : start + 100])


@both_worlds
async def test_pages_and_searches_reach_so_far(make: Maker, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((queries, "MAX_SEARCHED"), (balance, "MAX_RECORDS")):
        monkeypatch.setattr(module, name, 5)
    monkeypatch.setattr(paging, "MAX_REACH", 5)
    user = await make.user()
    await make_tasks(runtime, user, [f"猫 {number}" for number in range(8)])

    async def page(**query: Any) -> httpx.Response:
        return await make.api.get(LIST, params=query, headers=user.headers)

    newest = data(await page(size=3))
    assert (newest["total"], newest["pages"]) == (5, 2)
    assert [task["prompt"] for task in newest["records"]] == ["猫 7", "猫 6", "猫 5"]
    assert [task["prompt"] for task in data(await page(size=3, page=2))["records"]] == ["猫 4", "猫 3"]
    problem = "参数错误: page 超出范围，只能查看前 5 条，请缩小筛选范围"
    assert refusal(await page(size=3, page=3)) == (400, "INVALID_PARAMETER", problem)
    assert data(await page(keyword="猫", size=3, page=2))["total"] == 5
    assert data(await page(keyword="猫 1"))["total"] == 0
    older = data(await page(size=3))["records"][-1]["createTime"]
    assert data(await page(keyword="猫 1", endTime=older))["total"] == 1


@pytest.mark.full
@both_worlds
async def test_sixty_searches_in_long_prompts_hold_up_nobody(make: Maker, runtime: Runtime) -> None:
    hog, others = await make.user(), [await make.user(points=30) for _ in range(3)]
    await make_tasks(runtime, hog, [f"{number} " + "一只可爱的橘猫" * 2850 for number in range(3000)])
    searching = [
        asyncio.create_task(make.api.get(f"{LIST}?keyword=柴犬{number}", headers=hog.headers)) for number in range(60)
    ]
    while not all(search.done() for search in searching):
        for user in others:
            began = time.monotonic()
            for path in ("/user/points/consumption/balance", LIST, "/user/ai/models"):
                assert (await make.api.get(path, headers=user.headers)).status_code == 200
            assert time.monotonic() - began < MAX_SECONDS
    answers = [search.result() for search in searching]
    assert {answer.status_code for answer in answers} <= {200, 429, 503}
    assert any(answer.status_code != 429 for answer in answers), "no search ran"
    assert all(int(answer.headers["retry-after"]) > 0 for answer in answers if answer.status_code != 200)
    if "mysql" in runtime.settings.database_url:
        running = "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE INFO LIKE 'SELECT tasks.id%%柴犬%%'"
        assert await run_sql(runtime.settings.database_url, running) == 0
