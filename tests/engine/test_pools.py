"""Slow work delays no other work: slow downloads, hanging submits, another provider."""

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from app.aio import cancel_and_wait
from app.egress import client as fetch
from app.engine import pools
from app.engine import runner as runner_module
from app.engine.runner import TaskRunner
from app.runtime import Runtime
from app.tasks.submit import submit_task
from app.tasks.validation import Submission
from app.upstreams.breaker import CircuitBreaker
from tests.support import workers
from tests.support.makers import IMAGE_MODEL, Maker, User
from tests.support.sandbox_server import Server, directive
from tests.support.waiting import until
from tests.support.worlds import execute

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("hurry")]
SLOW = 40


@asynccontextmanager
async def stepping(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TaskRunner]:
    monkeypatch.setattr(runner_module, "OTHERS_GRACE_SECONDS", 0.1)
    monkeypatch.setattr(fetch, "MIN_RATE_SECONDS", 600)  # a drip goes on, however slow the machine is
    async with workers.stepping(runtime) as [runner]:
        yield runner


def held(runner: TaskRunner, step: str) -> int:
    return sum(task.step == step for task in runner._running.values())


async def until_held(runner: TaskRunner, step: str, number: int) -> None:
    async with asyncio.timeout(120):
        while held(runner, step) < number:
            await asyncio.sleep(0.05)


def polls_of(upstream: Server, task_id: str) -> list[float]:
    return [entry["monotonic"] for entry in upstream.journal() if entry["path"].endswith(f"/status/{task_id}")]


async def until_polled(runtime: Runtime, upstream: Server, task_no: str, more: int) -> None:
    """Waits for so many further polls of this task's job. What is slow meanwhile is slow for minutes."""
    select = "SELECT upstream_task_id FROM tasks WHERE task_no = :no"

    async def upstream_task_id() -> Any:
        return (await execute(runtime, select, no=task_no)).scalar()

    task_id = await until("its job is submitted", upstream_task_id, 60)
    before = len(polls_of(upstream, task_id))
    async with asyncio.timeout(60):
        while len(polls_of(upstream, task_id)) < before + more:
            await asyncio.sleep(0.05)


async def other_work_goes_on(
    make: Maker, user: User, runtime: Runtime, upstream: Server, advance_sandbox: Callable[[float], None]
) -> None:
    """A running job is polled again and again, and new tasks complete."""
    watched = await make.task_no(user, '[[sandbox: {"take_seconds": 600}]] watched')
    fast = [await make.task_no(user, f'[[sandbox: {{"take_seconds": 0}}]] fast {n}') for n in range(10)]
    await until_polled(runtime, upstream, watched, 3)
    advance_sandbox(600)
    ended = await asyncio.gather(*[make.ended(user, number) for number in [*fast, watched]])
    assert {task["status"] for task in ended} == {"completed"}


@pytest.mark.full
async def test_forty_slow_downloads_delay_no_other_task(
    make: Maker,
    runtime: Runtime,
    upstream: Server,
    monkeypatch: pytest.MonkeyPatch,
    advance_sandbox: Callable[[float], None],
) -> None:
    user = await make.user(points=30 * (SLOW + 11))
    for n in range(SLOW):
        await make.task_no(user, directive({"take_seconds": 0}, {"where": "result", "fault": "drip"}) + f" {n}")
    async with stepping(runtime, monkeypatch) as runner:
        await until_held(runner, "rehost", SLOW)
        assert [pool.used for pool in runner._pools if "rehost" in pool.task_filter.steps] == [SLOW, 0]
        await other_work_goes_on(make, user, runtime, upstream, advance_sandbox)
        assert held(runner, "rehost") == SLOW


async def test_results_wait_for_a_slot_and_polls_do_not(
    make: Maker, runtime: Runtime, upstream: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "SLOW_CONCURRENCY", 3)
    user = await make.user(points=30 * 21)
    for n in range(20):
        await make.task_no(user, directive({"take_seconds": 0}, {"where": "result", "fault": "drip"}) + f" {n}")
    async with stepping(runtime, monkeypatch) as runner:
        await until_held(runner, "rehost", 3)
        watched = await make.task_no(user, '[[sandbox: {"end": "never"}]] watched')
        where = "FROM tasks WHERE step = 'rehost' AND lease_until IS NULL AND crashes = 0"

        async def waiting() -> bool:
            return (await execute(runtime, f"SELECT COUNT(*) {where}")).scalar() == 17

        await until("the others wait for a slot", waiting, 120)
        maximum = 0
        for _ in range(60):
            await asyncio.sleep(0.05)
            maximum = max(maximum, held(runner, "rehost"))
        assert maximum == 3, "a poll went on to a download without a free slot"
        assert await waiting()
        await until_polled(runtime, upstream, watched, 3)


async def test_the_slots_of_a_claim_are_reserved_while_it_runs(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = TaskRunner(runtime)
    pool = next(pool for pool in runner._pools if "rehost" in pool.task_filter.steps)
    free: list[int] = []

    async def claim_due(*_: Any, **_options: Any) -> list[Any]:
        free.append(pool.free)
        return []

    monkeypatch.setattr(runner_module, "claim_due", claim_due)
    await runner._claim(pool)
    assert (free, pool.free) == ([0], pools.SLOW_CONCURRENCY)


@pytest.mark.settings(see2ai_uploads="always")
async def test_forty_slow_uploads_of_references_delay_no_other_task(
    make: Maker,
    runtime: Runtime,
    upstream: Server,
    monkeypatch: pytest.MonkeyPatch,
    advance_sandbox: Callable[[float], None],
) -> None:
    user = await make.user(points=35 * SLOW + 30 * 11)
    reference = await upload(make, user)
    upstream.control({"where": "upload", "fault": "hang", "seconds": 60})
    for n in range(SLOW):
        await make.task_no(user, f'[[sandbox: {{"take_seconds": 0}}]] slow {n}', model=IMAGE_MODEL, imageUrl=reference)
    async with stepping(runtime, monkeypatch) as runner:
        await until_held(runner, "prepare", SLOW)
        assert [pool.used for pool in runner._pools if "prepare" in pool.task_filter.steps] == [SLOW, 0]
        await other_work_goes_on(make, user, runtime, upstream, advance_sandbox)
        assert held(runner, "prepare") == SLOW
    upstream.control()
    async with stepping(runtime, monkeypatch):  # it is released and uploaded again, which is harmless and no crash
        await until_all_completed(runtime, SLOW + 11)
    assert (await execute(runtime, "SELECT SUM(crashes) FROM tasks")).scalar() == 0
    assert await make.balance(user) == (0, 0)


async def upload(make: Maker, user: User) -> str:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "navy").save(file, "PNG")
    answer = await make.api.post(
        "/user/files/upload", files={"file": ("reference.png", file.getvalue())}, headers=user.headers
    )
    data: dict[str, Any] = answer.json()["data"]
    return str(data["url"])


async def until_all_completed(runtime: Runtime, number: int) -> None:
    async with asyncio.timeout(120):
        while (await execute(runtime, "SELECT COUNT(*) FROM tasks WHERE status = 'completed'")).scalar() < number:
            await asyncio.sleep(0.1)


# ------------------------------------------------------------------ hanging submits, and other providers


FEW = 3  # so few that none is kept for other users
HANG = {"where": "submit", "fault": "hang", "seconds": 60}  # the maximum for a submit
ELSEWHERE = "see2ai_image_uniworld_v2"  # in these tests, an action of another provider


@asynccontextmanager
async def few_running(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TaskRunner]:
    """Few slots in each pool. Calls that still hang at the end are cancelled."""
    monkeypatch.setattr(pools, "FAST_CONCURRENCY", FEW)
    monkeypatch.setattr(pools, "SLOW_CONCURRENCY", FEW)
    monkeypatch.setattr(runner_module, "SUBMIT_GRACE_SECONDS", 0.1)
    async with stepping(runtime, monkeypatch) as runner:
        yield runner
    await cancel_and_wait(*runner._running)


async def test_submits_that_hang_delay_no_poll(
    make: Maker, runtime: Runtime, upstream: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A normalize call may take a minute. There are more of them than slots for submits."""
    user = await make.user(points=30 + 3 * FEW)
    async with few_running(runtime, monkeypatch) as runner:
        watched = await make.task_no(user, '[[sandbox: {"end": "never"}]] watched')
        await until_polled(runtime, upstream, watched, 1)
        upstream.control(HANG)
        for n in range(3 * FEW):
            image = f"https://example.com/{n}.jpg"
            await submit_task(runtime, user.id, Submission("sc_image_normalize", "", image))
        await until_held(runner, "submitting", FEW)
        await until_polled(runtime, upstream, watched, 20)
        assert held(runner, "submitting") == FEW
    upstream.control()


@pytest.mark.parametrize(
    ("rules", "step"),
    [([HANG], "submitting"), ([{"take_seconds": 0}, {"where": "result", "fault": "drip"}], "rehost")],
)
async def test_outages_of_a_provider_take_no_slots_of_another(
    make: Maker,
    runtime: Runtime,
    upstream: Server,
    monkeypatch: pytest.MonkeyPatch,
    advance_sandbox: Callable[[float], None],
    rules: list[dict[str, Any]],
    step: str,
) -> None:
    user = await make.user(points=80 * 3 * FEW + 30 * 11)
    for n in range(3 * FEW):
        await make.task_no(user, f"{directive(*rules)} {n}", model="sc_uniworld_text_1x1")
    async with few_running(with_two_providers(runtime), monkeypatch) as runner:
        await until_held(runner, step, FEW)
        await other_work_goes_on(make, user, runtime, upstream, advance_sandbox)
        pool = runner.pool_for(step, ELSEWHERE)
        assert "see2ai_image_generation_fast_v1" in pool.task_filter.not_actions
        assert (pool.used, pool.free) == (FEW, 0)
        assert held(runner, step) == FEW


async def test_a_task_of_an_unknown_action_still_ends(
    make: Maker, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await make.user(points=30)
    task_no = await make.task_no(user)
    await execute(runtime, "UPDATE tasks SET action = 'of a release before'")
    async with few_running(with_two_providers(runtime), monkeypatch):
        assert (await make.ended(user, task_no))["errorCode"] == "INTERNAL"
    assert await make.balance(user) == (30, 0)


async def test_an_idle_worker_sends_one_query_for_all_pools(
    make: Maker, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested: list[tuple[int, bool]] = []
    real_find, real_claim = runner_module.has_due, runner_module.claim_due

    async def has_due(database: Any, shares: Any) -> Any:
        found = await real_find(database, shares)
        requested.append((len(found), any(found)))
        return found

    async def claim_due(*args: Any, **options: Any) -> Any:
        claimed.append(args)
        return await real_claim(*args, **options)

    claimed: list[Any] = []
    monkeypatch.setattr(runner_module, "has_due", has_due)
    monkeypatch.setattr(runner_module, "claim_due", claim_due)
    async with few_running(with_two_providers(runtime), monkeypatch):
        async with asyncio.timeout(60):
            while len(requested) < 3:
                await asyncio.sleep(0.05)
        assert (set(requested), claimed) == ({(9, False)}, [])
        user = await make.user(points=30)
        assert (await make.ended(user, await make.task_no(user)))["status"] == "completed"
    assert claimed


def with_two_providers(runtime: Runtime) -> Runtime:
    elsewhere = replace(runtime.actions[ELSEWHERE], provider="elsewhere")
    upstreams = {**runtime.upstreams, "elsewhere": runtime.upstreams["see2ai"]}
    breakers = {**runtime.breakers, "elsewhere": CircuitBreaker("elsewhere", runtime.database, 1000)}
    return replace(runtime, actions={**runtime.actions, ELSEWHERE: elsewhere}, upstreams=upstreams, breakers=breakers)
