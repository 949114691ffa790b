"""`GET /user/ai/tasks/{taskNo}/points`: where the points of a task went, entry by entry."""

from typing import Any

import pytest

from app.runtime import Runtime
from app.tasks.cancel import cancel_task
from tests.support.ended_tasks import complete, start
from tests.support.lots import lot
from tests.support.makers import Maker, User
from tests.support.responses import data, refusal

pytestmark = [pytest.mark.anyio, pytest.mark.both_worlds]


async def path(make: Maker, user: User, task_no: str) -> dict[str, Any]:
    return dict(data(await make.api.get(f"/user/ai/tasks/{task_no}/points", headers=user.headers)))


async def test_held_then_settled_or_refunded(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=100)
    await lot(runtime.database, user.id, 10, 24, "lot")
    good, bad = await make.task_no(user), await make.task_no(user)
    found = await path(make, user, good)
    assert (found["taskNo"], found["pointsCost"], found["state"]) == (good, 30, "held")
    (entry,) = found["entries"]
    assert (entry["kind"], entry["points"], entry["held"], entry["balanceAfter"]) == ("deduct", -30, 30, 80)
    assert [used["points"] for used in found["lots"]] == [10]
    await cancel_task(runtime, user.id, bad)
    await complete(runtime, (await start(runtime))[good])
    found = await path(make, user, good)
    assert (found["state"], found["status"]) == ("settled", "completed")
    assert [(one["kind"], one["points"], one["held"]) for one in found["entries"]] == [
        ("deduct", -30, 30),
        ("settle", 0, -30),
    ]
    found = await path(make, user, bad)
    assert (found["state"], found["lots"]) == ("refunded", [])
    assert [one["seq"] for one in found["entries"]] == [4, 5]
    assert found["entries"][-1]["balanceAfter"] == 80


async def test_anothers_task_is_like_none(make: Maker) -> None:
    owner, stranger = await make.user(points=100), await make.user()
    task_no = await make.task_no(owner)
    answers = [
        refusal(await make.api.get(f"/user/ai/tasks/{name}/points", headers=stranger.headers))
        for name in (task_no, "TASK-1", "x" * 41, task_no.lower(), "%", "a%00b", "猫")
    ]
    assert set(answers) == {(404, "NOT_FOUND", "任务不存在")}
    assert (await path(make, owner, task_no))["state"] == "held"
    assert (await make.task(owner, task_no))["taskNo"] == task_no, "the route of the task itself is as before"
