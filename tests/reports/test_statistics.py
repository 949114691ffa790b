"""The overview of today, and the search for where a day begins among rows that have no index on their time."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update

from app.points import ledger
from app.reports.statistics import DISORDER, first_id_since, overview
from app.runtime import Runtime
from app.tables import tasks
from tests.support.ended_tasks import complete, fail, start
from tests.support.makers import Maker

pytestmark = [pytest.mark.anyio, pytest.mark.both_worlds]


async def test_the_overview_counts_today_and_what_runs(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=300)
    await ledger.grant(runtime.database, user_id=user.id, points=5, ref="more")
    numbers = [await make.task_no(user) for _ in range(4)]
    claimed = await start(runtime, 3)
    ended = [task_no for task_no in numbers if task_no in claimed]
    await complete(runtime, claimed[ended[0]])
    await fail(runtime, claimed[ended[1]])
    found = await overview(runtime.database, runtime.settings.zone)
    assert found.tasks_by_status == {"completed": 1, "failed": 1, "processing": 1, "created": 1}
    assert found.failures_by_code == {"UPSTREAM_FAILED": 1}
    assert {step: backlog.tasks for step, backlog in found.running_by_step.items()} == {"poll": 1, "submit": 1}
    assert found.points_by_kind == {"grant": 305, "deduct": 120, "settle": 30, "refund": 30}
    assert found.new_users == 1


async def test_what_is_from_yesterday_does_not_count(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=300)
    old = [await make.task_no(user) for _ in range(3)]
    new = await make.task_no(user)
    before = datetime.now(UTC) - timedelta(days=2)
    async with runtime.database.begin() as connection:
        await connection.execute(update(tasks).where(tasks.c.task_no.in_(old)).values(created_at=before))
    found = await overview(runtime.database, runtime.settings.zone)
    assert found.tasks_by_status == {"created": 1}
    assert sum(backlog.tasks for backlog in found.running_by_step.values()) == 4
    assert min(backlog.oldest for backlog in found.running_by_step.values()) <= before
    async with runtime.database.read() as connection:
        first = await first_id_since(connection, tasks, datetime.now(UTC) - timedelta(days=1))
        row = (await connection.execute(tasks.select().where(tasks.c.task_no == new))).one()
        assert first == row.id
        assert await first_id_since(connection, tasks, datetime.now(UTC) + DISORDER * 2) == row.id + 1


async def test_an_empty_installation_has_an_overview(runtime: Runtime) -> None:
    found = await overview(runtime.database, runtime.settings.zone)
    assert (found.tasks_by_status, found.points_by_kind, found.running_by_step) == ({}, {}, {})
