"""Submits while the provider refuses the account: first accepted, then refused, then one at a time as a trial."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import pytest
from prometheus_client import REGISTRY, generate_latest

from app.runtime import Runtime, open_runtime
from app.upstreams import breaker_monitor
from tests.support.breakers import admit, age, breaker_of, close, shorten_pauses, trip, workers
from tests.support.makers import Maker
from tests.support.run import full
from tests.support.sandbox_server import Server, directive
from tests.support.task_rows import shorten_delays
from tests.support.waiting import until
from tests.support.worlds import REAL, execute

pytestmark = [pytest.mark.anyio, pytest.mark.both_worlds]
UNAVAILABLE_TEXT = "生成服务暂时不可用，请稍后重试"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_delays(monkeypatch)
    shorten_pauses(monkeypatch)


@pytest.fixture
async def other(runtime: Runtime) -> AsyncIterator[Runtime]:
    """A second runtime on the same database, which stands for another process."""
    async with open_runtime(runtime.settings) as opened:
        yield opened


async def readiness(make: Maker) -> Any:
    return (await make.api.get("/readyz")).json()["data"]["circuit"]


async def test_submits_are_refused_without_a_deduction_after_an_outage_of_a_whole_deadline(
    make: Maker, runtime: Runtime, other: Runtime
) -> None:
    """The API refuses submits because of a worker's observation, and every endpoint shows it."""
    user = await make.user(points=1000)
    assert await readiness(make) == "ok"
    await trip(other, "HTTP 401: 余额不足，请充值")
    await age(other, runtime.settings.task_deadline_seconds - 60)
    await until("the API knows", lambda: breaker_of(runtime).is_open)
    assert (await make.submit(user, "may still wait")).status_code == 200
    await age(other, 61)
    deadline_seconds = runtime.settings.task_deadline_seconds
    await until("a whole deadline", lambda: breaker_of(runtime).open_seconds() > deadline_seconds)
    counted = REGISTRY.get_sample_value("gateway_submits_refused_total", {"provider": "see2ai"}) or 0
    refused = await make.submit(user, "too late")
    body = refused.json()
    assert (refused.status_code, body["errorCode"], body["message"]) == (503, "UNAVAILABLE", UNAVAILABLE_TEXT)
    assert 1 <= int(refused.headers["Retry-After"]) <= 70
    assert (await execute(runtime, "SELECT COUNT(*) FROM tasks")).scalar() == 1
    assert (await execute(runtime, "SELECT COUNT(*) FROM points_ledger WHERE kind = 'deduct'")).scalar() == 1
    assert await make.balance(user) == (970, 30)
    body = {"modelName": "sc_soraimg_text_1x1", "prompt": "x"}
    quote = await make.api.post("/user/ai/tasks/quote", json=body, headers=user.headers)
    assert quote.json()["data"]["pointsCost"] == 30
    video = await make.submit(user, "a video may wait longer", model="sc_video_text_fast")
    assert video.status_code == 200, video.text
    assert re.match(r"warning: open \(see2ai for 6\d\d ", await readiness(make))
    assert "余额" not in (await make.api.get("/readyz")).text
    metrics = generate_latest().decode()
    assert 'gateway_breaker_open{provider="see2ai"} 1.0' in metrics
    assert f'gateway_submits_refused_total{{provider="see2ai"}} {counted + 1}' in metrics
    await close(other)
    await until("recovered", lambda: not breaker_of(runtime).is_open)
    assert (await make.submit(user, "again")).status_code == 200
    assert await readiness(make) == "ok"
    assert 'gateway_breaker_open{provider="see2ai"} 0.0' in generate_latest().decode()


@pytest.mark.both_worlds(usually=REAL)
@pytest.mark.settings(task_deadline_seconds=5)
async def test_from_the_first_refusal_to_refused_submits_and_back_while_no_task_is_left(
    make: Maker, runtime: Runtime, other: Runtime, hurry: None, upstream: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All waiting tasks are refunded and no new one is accepted. The worker probes, then one submit is admitted."""
    monkeypatch.setattr(breaker_monitor, "OVERDUE_SECONDS", 1.0)
    user = await make.user(points=60)
    upstream.control({"balance": "empty"})
    async with workers(other):
        task = await make.ended(user, await make.task_no(user, "in vain"))
        assert (task["status"], task["errorCode"]) == ("failed", "UPSTREAM_UNAVAILABLE")

        async def is_refused() -> bool:
            return (await make.submit(user, "refused", model="sc_uniworld_text_1x1")).status_code == 503

        await until("submits are refused", is_refused)
        assert await make.balance(user) == (60, 0)
        upstream.control()
        # The pause is 4 or 8 seconds by now.
        await until("a trial is admitted", lambda: breaker_of(runtime).state.admits_trial)
        task = await make.ended(user, await make.task_no(user, directive({"take_seconds": 0}) + " again"))
        assert task["status"] == "completed"
        await until("closed", lambda: not breaker_of(runtime).is_open)


@pytest.mark.both_worlds(usually=REAL)
@pytest.mark.parametrize("are_apart", [True, *full(False)])
@pytest.mark.settings(task_deadline_seconds=5)
async def test_while_only_jobs_are_refused_one_submit_at_a_time_is_accepted(
    make: Maker,
    runtime: Runtime,
    other: Runtime,
    hurry: None,
    upstream: Server,
    monkeypatch: pytest.MonkeyPatch,
    are_apart: bool,
) -> None:
    """`GET /me` succeeds but closes no breaker of jobs. While no task waits, one submit is admitted."""
    monkeypatch.setattr(breaker_monitor, "OVERDUE_SECONDS", 0.2)
    user = await make.user(points=3000)
    upstream.control({"fail": 403, "where": "submit"})

    async def is_accepted() -> bool:
        return (await make.submit(user, directive({"take_seconds": 0}))).status_code == 200

    async def count_waiting() -> int:
        return int((await execute(runtime, "SELECT COUNT(*) FROM tasks WHERE step <> 'done'")).scalar() or 0)

    async with workers(other) if are_apart else workers(runtime):
        assert (await make.ended(user, await make.task_no(user, "in vain")))["status"] == "failed"
        deadline_seconds = runtime.settings.task_deadline_seconds
        await until("a whole deadline", lambda: breaker_of(runtime).open_seconds() > deadline_seconds)
        taken = refused = 0
        opened_at = breaker_of(runtime).state.opened_at
        while taken < 2 or refused < 20:
            if await is_accepted():
                taken += 1
                assert await count_waiting() == 1
            else:
                refused += 1
            await asyncio.sleep(0.05)
        assert breaker_of(runtime).state.opened_at == opened_at
        assert [one for one in upstream.journal() if one["path"] == "/api/v1/me"]
        upstream.control()
        await until("a job is accepted", is_accepted)  # this submit, or the waiting task
        await until("closed", lambda: not breaker_of(runtime).is_open)
        assert await is_accepted()
        await until("all have ended", lambda: is_zero(count_waiting()))


async def is_zero(number: Awaitable[int]) -> bool:
    return await number == 0


async def test_of_all_submits_one_is_the_trial(make: Maker, runtime: Runtime) -> None:
    """A submit that fails for lack of points does not use up the trial."""
    await trip(runtime, "HTTP 403")
    await age(runtime, 10_000)
    await admit(runtime)
    poor, rich = await make.user(), await make.user(points=3000)
    assert [(await make.submit(poor, "poor")).json()["errorCode"] for _ in range(3)] == ["INSUFFICIENT_POINTS"] * 3
    answers = await asyncio.gather(*[make.submit(rich, f"rich {n}") for n in range(8)])
    assert sorted(answer.status_code for answer in answers) == [200] + [503] * 7
    assert await make.balance(rich) == (2970, 30)
    async with breaker_of(runtime).call() as call:
        assert (call.wait_seconds, breaker_of(runtime).is_open) == (0.0, True)
