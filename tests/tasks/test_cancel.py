"""Cancel: only before the first billable call, refunded in the same transaction, never both cancelled and sent."""

import asyncio
import contextlib
from typing import Any

import pytest
from prometheus_client import REGISTRY

from app.catalog.models import set_model
from app.database import utc_after
from app.engine.claim import TaskFilter, claim_due
from app.engine.execute import LostLease, run_steps
from app.engine.finish import finish_task
from app.engine.transitions import Fail
from app.errors import TaskFailure
from app.runtime import Runtime
from app.tables import tasks
from tests.support.makers import IMAGE_MODEL, TEXT_MODEL, Maker, User
from tests.support.responses import data, refusal
from tests.support.run import full
from tests.support.sandbox_server import Server
from tests.support.task_rows import row_of, submits
from tests.support.waiting import until
from tests.support.workers import stepping
from tests.support.worlds import REAL, execute

pytestmark = [pytest.mark.anyio, pytest.mark.both_worlds(usually=REAL)]


async def cancel(make: Maker, user: User, task_no: str):
    return await make.api.post(f"/user/ai/tasks/{task_no}/cancel", headers=user.headers)


async def test_a_task_that_is_not_sent_yet_is_cancelled_and_refunded(make: Maker, upstream: Server) -> None:
    user = await make.user(points=100)
    for model, image in (("sc_soraimg_text_1x1", None), ("sc_soraimg_img2img_auto", "https://example.com/a.jpg")):
        task_no = await make.task_no(user, model=model, imageUrl=image)
        task = data(await cancel(make, user, task_no))
        assert (task["status"], task["errorCode"]) == ("failed", "CANCELLED")
        assert task["pointsRefunded"] == task["pointsCost"] > 0
        assert "取消" in task["errorMessage"]
        assert await make.balance(user) == (100, 0)
        assert data(await cancel(make, user, task_no)) == task, "a second cancel has the same answer"
    assert await make.balance(user) == (100, 0)
    async with stepping(make.runtime):
        await asyncio.sleep(0.3)
    assert upstream.journal(outcome="accepted") == []


async def test_once_sent_it_runs_to_its_end(make: Maker, working: None) -> None:
    user = await make.user(points=30)
    task_no = await make.task_no(user, '[[sandbox: {"take_seconds": 2}]]')
    while (await make.task(user, task_no))["status"] != "processing":
        await asyncio.sleep(0.02)
    assert refusal(await cancel(make, user, task_no))[:2] == (409, "NOT_CANCELLABLE")
    assert (await make.ended(user, task_no))["status"] == "completed"
    assert refusal(await cancel(make, user, task_no))[:2] == (409, "NOT_CANCELLABLE")
    assert await make.balance(user) == (0, 0)


async def test_a_task_that_waits_for_see2ai_may_be_cancelled(make: Maker, upstream: Server, working: None) -> None:
    upstream.control({"fail": 401, "where": "submit"})
    user = await make.user(points=30)
    task_no = await make.task_no(user, "等待")
    while not submits(upstream, "等待"):
        await asyncio.sleep(0.02)

    async def taken_back() -> bool:
        return (await cancel(make, user, task_no)).status_code == 200

    await until("the task waits again and is cancelled", taken_back)
    assert (await make.task(user, task_no))["errorCode"] == "CANCELLED"
    upstream.control()
    await asyncio.sleep(0.5)
    assert upstream.journal(outcome="accepted") == []
    assert await make.balance(user) == (30, 0)


async def test_another_users_task_is_not_found(make: Maker) -> None:
    owner, other = await make.user(points=30), await make.user()
    task_no = await make.task_no(owner)
    stranger, nothing = await cancel(make, other, task_no), await cancel(make, other, "TASK-1")
    assert refusal(stranger) == refusal(nothing) == (404, "NOT_FOUND", "任务不存在")
    assert refusal(await cancel(make, other, "T" * 100))[0] == 404
    assert await make.balance(owner) == (0, 30)
    assert (await make.api.post(f"/user/ai/tasks/{task_no}/cancel")).status_code == 401


@pytest.mark.parametrize("round_", [0, *full(1, 2)])
async def test_cancelled_or_sent_but_never_both(
    make: Maker, runtime: Runtime, upstream: Server, working: None, round_: int
) -> None:
    """Forty tasks, eight at a time, each cancelled while a worker begins it."""
    user = await make.user(points=40 * 35)
    prompts = [f'赛跑 {round_} {number} [[sandbox: {{"take_seconds": 0}}]]' for number in range(40)]

    room = asyncio.Semaphore(8)

    async def race(number: int) -> str:
        fields = {"model": IMAGE_MODEL, "imageUrl": "https://example.com/a.jpg"}
        async with room:
            task_no = await make.task_no(user, prompts[number], **fields)
            await asyncio.sleep(number % 8 * 0.03)
            await asyncio.gather(*(cancel(make, user, task_no) for _ in range(2)))
        return task_no

    tasks = [await make.ended(user, task_no) for task_no in await asyncio.gather(*map(race, range(40)))]
    for prompt, task in zip(prompts, tasks, strict=True):
        is_sent = bool(submits(upstream, prompt))
        assert is_sent == (task["errorCode"] != "CANCELLED"), task
    taken_back = sum(task["errorCode"] == "CANCELLED" for task in tasks)
    assert await make.balance(user) == (taken_back * 35, 0)


async def test_a_free_task_may_be_cancelled_too(make: Maker, runtime: Runtime) -> None:
    await execute(runtime, "UPDATE points_config SET points_cost = 0 WHERE model_name = 'sc_soraimg_text_1x1'")
    user = await make.user()
    task = data(await cancel(make, user, await make.task_no(user)))
    assert (task["errorCode"], task["pointsCost"]) == ("CANCELLED", 0)


async def test_a_worker_that_holds_the_task_sends_nothing_after_a_cancel(
    make: Maker, runtime: Runtime, upstream: Server
) -> None:
    user = await make.user(points=30)
    task_no = await make.task_no(user)
    (worker,) = await claim_due(runtime.database, TaskFilter(("submit",)), 1, 60)
    assert (await cancel(make, user, task_no)).status_code == 200
    with pytest.raises(LostLease):
        await run_steps(runtime, worker)
    assert upstream.journal(outcome="accepted") == []
    assert (await make.task(user, task_no))["errorCode"] == "CANCELLED"


async def test_a_cancel_is_reported_and_counted(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=30)
    task_no = await make.task_no(user)
    ended = ("gateway_tasks_ended_total", {"model": TEXT_MODEL, "outcome": "CANCELLED"})
    before = REGISTRY.get_sample_value(*ended) or 0
    async with runtime.pubsub.subscribe(user.id) as changed:

        async def is_received() -> bool:
            runtime.pubsub.publish(user.id, "probe")
            return "probe" in changed.drain()[0]

        await until("the subscription is connected", is_received)
        for _ in range(2):
            assert (await cancel(make, user, task_no)).status_code == 200
        async with asyncio.timeout(60):
            while task_no not in changed.drain()[0]:
                await changed.wait(5)
    assert REGISTRY.get_sample_value(*ended) == before + 1


# ------------------------------------------------------------------ billable calls before the submit


@pytest.fixture
async def normalizing(make: Maker, upstream: Server, hurry: None) -> tuple[User, str]:
    """A user's task with a reference that must be normalized first."""
    fixed = {"aspectRatio": "1:1", "normalizeReferences": True}
    await set_model(make.runtime.database, IMAGE_MODEL, {"params": fixed})
    user = await make.user(points=35)
    return user, await make.task_no(user, model=IMAGE_MODEL, imageUrl="https://example.com/a.jpg")


def normalize_calls(upstream: Server) -> list[dict[str, Any]]:
    return [entry for entry in upstream.journal() if "normalize" in entry["path"]]


async def test_before_its_reference_is_normalized_a_task_can_be_cancelled(
    make: Maker, upstream: Server, normalizing: tuple[User, str]
) -> None:
    user, task_no = normalizing
    (worker,) = await claim_due(make.runtime.database, TaskFilter(("prepare",)), 1, 60)
    assert data(await cancel(make, user, task_no))["errorCode"] == "CANCELLED"
    with pytest.raises(LostLease):
        await run_steps(make.runtime, worker)
    assert normalize_calls(upstream) == []
    assert await make.balance(user) == (35, 0)


async def test_from_the_normalize_call_on_a_task_cannot_be_cancelled(
    make: Maker, upstream: Server, normalizing: tuple[User, str]
) -> None:
    user, task_no = normalizing
    upstream.control({"where": "submit", "fault": "hang", "seconds": 2})
    (worker,) = await claim_due(make.runtime.database, TaskFilter(("prepare",)), 1, 60)
    work = asyncio.create_task(run_steps(make.runtime, worker, lambda step: step == "prepare"))
    await until("SEE2AI is called", lambda: asyncio.to_thread(normalize_calls, upstream))
    assert refusal(await cancel(make, user, task_no))[:2] == (409, "NOT_CANCELLABLE")
    upstream.control()
    await work
    assert (await row_of(make.runtime, task_no))["step"] == "submit"
    assert refusal(await cancel(make, user, task_no))[:2] == (409, "NOT_CANCELLABLE")
    async with stepping(make.runtime):
        assert (await make.ended(user, task_no))["status"] == "completed"
    assert len(normalize_calls(upstream)) == 1
    assert await make.balance(user) == (0, 0)


async def test_after_a_crash_in_the_normalize_call_a_task_cannot_be_cancelled(
    make: Maker, upstream: Server, normalizing: tuple[User, str]
) -> None:
    user, task_no = normalizing
    upstream.control({"where": "submit", "fault": "hang", "seconds": 60})
    (worker,) = await claim_due(make.runtime.database, TaskFilter(("prepare",)), 1, 60)
    work = asyncio.create_task(run_steps(make.runtime, worker))
    await until("SEE2AI is called", lambda: asyncio.to_thread(normalize_calls, upstream))
    work.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await work
    await execute(make.runtime, "UPDATE tasks SET next_run_at = created_at, lease_until = created_at")  # it has expired
    assert refusal(await cancel(make, user, task_no))[:2] == (409, "NOT_CANCELLABLE")
    upstream.control({"fail": 401, "where": "submit"})
    async with stepping(make.runtime):
        await until("SEE2AI is called again", lambda: asyncio.to_thread(lambda: len(normalize_calls(upstream)) > 1))
    assert refusal(await cancel(make, user, task_no))[:2] == (409, "NOT_CANCELLABLE")


async def test_after_a_refused_normalize_call_a_task_can_be_cancelled(
    make: Maker, upstream: Server, normalizing: tuple[User, str]
) -> None:
    user, task_no = normalizing
    upstream.control({"fail": 401, "where": "submit"})
    async with stepping(make.runtime):
        await until("the breaker is open", lambda: make.runtime.breakers["see2ai"].is_open)
    assert normalize_calls(upstream)
    assert data(await cancel(make, user, task_no))["errorCode"] == "CANCELLED"
    assert await make.balance(user) == (35, 0)


# ------------------------------------------------------------------ what costs nothing is counted


async def end_all(make: Maker, code: str) -> None:
    """As a worker ends tasks, but at once."""
    for task in await claim_due(make.runtime.database, TaskFilter(("submit",)), 9, 60):
        assert await finish_task(make.runtime, task, Fail(TaskFailure[code]), task.history)


@pytest.mark.settings(max_free_tasks_per_hour=3)
async def test_so_many_free_tasks_an_hour_and_no_more(make: Maker, runtime: Runtime) -> None:
    user, other = await make.user(points=60), await make.user(points=30)
    data(await cancel(make, user, await make.task_no(user)))
    for code in ("UPSTREAM_REJECTED", "UPSTREAM_FAILED"):
        await make.task_no(user)
        await end_all(make, code)
    refused = await make.submit(user)
    text = "最近一小时内取消或未成功的任务过多，最多 3 个，请稍后再试"
    assert (refusal(refused), refused.headers["retry-after"]) == ((429, "RATE_LIMITED", text), "60")
    assert await make.balance(user) == (60, 0)
    assert (await execute(runtime, "SELECT COUNT(*) FROM tasks")).scalar() == 3
    assert await make.task_no(other)
    async with runtime.database.begin() as connection:
        ended = tasks.update().where(tasks.c.step == "done")
        await connection.execute(ended.values(completed_at=utc_after(-3601)))
    assert await make.task_no(user), "an hour later"


@pytest.mark.settings(max_free_tasks_per_hour=1)
async def test_ends_that_the_user_cannot_bring_about_are_not_counted(make: Maker) -> None:
    user = await make.user(points=30)
    for code in ("UPSTREAM_UNAVAILABLE", "UPSTREAM_UNCERTAIN", "TIMED_OUT", "RESULT_LOST", "INTERNAL"):
        await make.task_no(user)
        await end_all(make, code)
    data(await cancel(make, user, await make.task_no(user)))
    assert refusal(await make.submit(user))[1] == "RATE_LIMITED"
