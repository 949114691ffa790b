"""Workers while the provider refuses the account: all tasks wait, one call probes, and all recover."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from app.engine.runner import TaskRunner
from app.runtime import Runtime, open_runtime
from app.upstreams import breaker
from app.upstreams.breaker import CircuitBreaker
from tests.support.breakers import breaker_of, end_pause, shorten_pauses, trip, workers
from tests.support.makers import Maker
from tests.support.sandbox_server import Server, directive
from tests.support.task_rows import row_of, shorten_delays, submits
from tests.support.waiting import until
from tests.support.worlds import execute

pytestmark = [pytest.mark.anyio]
PRICE = 30
REFUSED_PROMPT = directive({"fail": 403}) + " refused"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_delays(monkeypatch)
    shorten_pauses(monkeypatch)


@pytest.fixture
async def other(runtime: Runtime) -> AsyncIterator[Runtime]:
    """A second runtime on the same database, which stands for another process."""
    async with open_runtime(runtime.settings) as opened:
        yield opened


def refused_submits(upstream: Server) -> list[float]:
    return [entry["monotonic"] for entry in upstream.journal(outcome="refused") if entry["method"] == "POST"]


# ------------------------------------------------------------------ the whole account is refused


@pytest.mark.full
async def test_while_the_account_is_refused_all_tasks_wait_in_both_workers_and_then_all_complete(
    make: Maker, runtime: Runtime, other: Runtime, hurry: None, upstream: Server
) -> None:
    user = await make.user(points=PRICE * 41)
    upstream.control({"balance": "empty"})
    async with workers(runtime, other):
        numbers = [await make.task_no(user, directive({"take_seconds": 0}) + " 0")]
        await until("both have read it", lambda: breaker_of(runtime).is_open and breaker_of(other).is_open)
        numbers += [await make.task_no(user, directive({"take_seconds": 0}) + f" {n}") for n in range(1, 41)]
        await until("two probes", lambda: len(refused_submits(upstream)) >= 3)
        # One process opened it. The pauses are 1, 2 and 4 seconds, and after each one process sends one probe.
        gaps = [later - earlier for earlier, later in itertools.pairwise(refused_submits(upstream))]
        assert all(gap >= 0.9 * 2**number for number, gap in enumerate(gaps)), gaps
        assert {(await make.task(user, number))["status"] for number in numbers} == {"queued"}

        async def are_waiting() -> bool:  # all but the one that may probe
            held = await execute(runtime, "SELECT COUNT(*) FROM tasks WHERE lease_until IS NOT NULL")
            return bool(held.scalar() <= 1)

        await until("all wait again", are_waiting)
        upstream.control()
        ended = await asyncio.gather(*[make.ended(user, number) for number in numbers])
    assert {task["status"] for task in ended} == {"completed"}
    assert len(upstream.journal(outcome="accepted")) == 41
    assert not breaker_of(runtime).is_open
    assert await make.balance(user) == (0, 0)


@pytest.mark.both_worlds
async def test_with_an_empty_balance_running_jobs_are_still_polled(
    make: Maker, runtime: Runtime, hurry: None, upstream: Server
) -> None:
    user = await make.user(points=90)
    async with workers(runtime):
        running = await make.task_no(user, directive({"take_seconds": 2}) + " running")
        await until("sent", lambda: submits(upstream, directive({"take_seconds": 2}) + " running", "accepted"))
        upstream.control({"fail": 402, "where": "submit"})
        waiting = await make.task_no(user, directive({"take_seconds": 0}) + " waiting")
        await until("open", lambda: breaker_of(runtime).is_open)
        opened_at = breaker_of(runtime).state.opened_at
        assert (await make.ended(user, running))["status"] == "completed"
        assert breaker_of(runtime).is_open
        assert breaker_of(runtime).state.opened_at == opened_at, "the answer to a poll closed the breaker of jobs"
        upstream.control()
        assert (await make.ended(user, waiting))["status"] == "completed"


@pytest.mark.both_worlds
async def test_a_worker_that_lost_its_task_gives_the_probe_back(
    make: Maker, runtime: Runtime, hurry: None, upstream: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller cancels the task before its probe. Other tasks must not wait 70 s for a probe that is not sent."""
    user = await make.user(points=60)
    first = await make.task_no(user, directive({"take_seconds": 0}) + " lost")
    await trip(runtime, "HTTP 401")
    await end_pause(runtime)
    real = CircuitBreaker.change
    taken = asyncio.Event()

    async def change(one: CircuitBreaker, transition: Any) -> bool:
        changed = await real(one, transition)
        if one.state.probe_until is not None and not taken.is_set():
            taken.set()
            taken_back = "UPDATE tasks SET version = version + 1, lease_until = NULL, next_run_at = created_at"
            await execute(runtime, f"{taken_back} WHERE step = 'submit'")
        return changed

    monkeypatch.setattr(CircuitBreaker, "change", change)
    async with workers(runtime):
        await taken.wait()
        assert (await make.ended(user, first))["status"] == "completed"
    assert len(submits(upstream, directive({"take_seconds": 0}) + " lost")) == 1


@pytest.mark.settings(task_deadline_seconds=6)
@pytest.mark.both_worlds
async def test_an_outage_rejects_no_task_before_its_deadline(
    make: Maker, runtime: Runtime, hurry: None, upstream: Server
) -> None:
    user = await make.user(points=PRICE * 6)
    upstream.control({"fail": 403, "where": "submit"})
    async with workers(runtime):
        numbers = [await make.task_no(user, f"outage {n}") for n in range(6)]
        ended = await asyncio.gather(*[make.ended(user, number) for number in numbers])
    assert {task["errorCode"] for task in ended} == {"UPSTREAM_UNAVAILABLE"}
    assert await make.balance(user) == (PRICE * 6, 0)


# ------------------------------------------------------------------ one refused task


async def run_others(make: Maker, user: Any, name: str) -> float:
    """Twenty tasks at once. Returns the seconds until all have completed."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    numbers = [await make.task_no(user, directive({"take_seconds": 0}) + f" {name} {n}") for n in range(20)]
    ended = await asyncio.gather(*[make.ended(user, number) for number in numbers])
    assert {task["status"] for task in ended} == {"completed"}
    return loop.time() - began


async def test_a_task_that_alone_is_refused_is_rejected_and_holds_up_the_others_for_one_pause(
    make: Maker, runtime: Runtime, other: Runtime, hurry: None, upstream: Server
) -> None:
    user = await make.user(points=PRICE * 41)
    async with workers(runtime, other):
        usual_seconds = await run_others(make, user, "without")
        refused = await make.task_no(user, REFUSED_PROMPT)
        seconds = await run_others(make, user, "with")
        assert seconds < usual_seconds + 60  # before, it was the whole deadline of the refused task
        task = await make.ended(user, refused)
    assert (task["status"], task["errorCode"], task["pointsRefunded"]) == ("failed", "UPSTREAM_REJECTED", PRICE)
    row = await row_of(runtime, refused)
    assert row["operator_note"].startswith("only this task is refused: HTTP 403")
    assert not row["suspected_orphan"]
    assert 2 <= len(submits(upstream, REFUSED_PROMPT)) <= 3
    assert await make.balance(user) == (PRICE, 0)
    assert not breaker_of(runtime).is_open


@pytest.mark.both_worlds
async def test_a_refused_task_lets_others_probe_and_is_rejected_after_the_second_success(
    make: Maker, runtime: Runtime, other: Runtime, hurry: None, upstream: Server
) -> None:
    """Tasks come one after the other, so each finds the breaker open and becomes the probe."""
    user = await make.user(points=PRICE * 3)
    async with workers(runtime, other):
        refused = await make.task_no(user, REFUSED_PROMPT)
        for n in (1, 2):
            await until("open", lambda: breaker_of(runtime).is_open)
            assert (await make.task(user, refused))["status"] == "queued"
            good = await make.task_no(user, directive({"take_seconds": 0}) + f" {n}")
            assert (await make.ended(user, good))["status"] == "completed"
        assert (await make.ended(user, refused))["errorCode"] == "UPSTREAM_REJECTED"
    assert await make.balance(user) == (PRICE, 0)


async def test_a_user_with_many_refused_tasks_holds_up_nobody_else(
    make: Maker, runtime: Runtime, hurry: None, upstream: Server
) -> None:
    """Each of them would double the pause of all, if it were the probe."""
    many, other = await make.user(points=PRICE * 12), await make.user(points=PRICE)
    async with workers(runtime):
        for _ in range(12):
            await make.task_no(many, REFUSED_PROMPT)
        await until("refused", lambda: breaker_of(runtime).is_open and len(submits(upstream, REFUSED_PROMPT)) > 1)
        good = await make.task_no(other, prompt := directive({"take_seconds": 0}) + " good")
        before = len(submits(upstream, REFUSED_PROMPT))
        [sent] = await until("sent", lambda: submits(upstream, prompt))
        refused = [entry for entry in submits(upstream, REFUSED_PROMPT) if entry["number"] < sent["number"]]
        assert len(refused) <= before + 1, "one of them was on its way"
        assert (await make.ended(other, good))["status"] == "completed"


# ------------------------------------------------------------------ another provider


async def test_tasks_that_wait_for_one_provider_take_no_slots_of_another(
    make: Maker, runtime: Runtime, hurry: None, upstream: Server
) -> None:
    name = "see2ai_image_uniworld_v2"
    elsewhere = replace(runtime.actions[name], provider="elsewhere")
    closed = CircuitBreaker("elsewhere", runtime.database, 1000)
    two = replace(
        runtime,
        actions={**runtime.actions, name: elsewhere},
        breakers={**runtime.breakers, "elsewhere": closed},
        upstreams={**runtime.upstreams, "elsewhere": runtime.upstreams["see2ai"]},
    )
    await closed.trip(breaker.BreakerCall(False, 0.0), "HTTP 401: elsewhere")
    await closed.change(lambda state, now: replace(state, open_until=now.replace(year=now.year + 1)))
    user = await make.user(points=80 * 60 + PRICE * 20)
    waiting = [await make.task_no(user, f"waits {n}", model="sc_uniworld_text_1x1") for n in range(60)]
    runner = TaskRunner(two, idle_seconds=0.05)
    for pool in runner._pools:
        pool.size = min(pool.size, 4)
    work = asyncio.create_task(runner.run())
    try:
        numbers = [await make.task_no(user, directive({"take_seconds": 0}) + f" {n}") for n in range(20)]
        ended = await asyncio.gather(*[make.ended(user, number) for number in numbers])
        assert {task["status"] for task in ended} == {"completed"}
        assert not two.breakers["see2ai"].is_open

        async def all_wait() -> list[dict[str, Any]]:
            rows = [await row_of(runtime, number) for number in waiting]
            are_waiting = [row["lease_until"] is None and "elsewhere" in str(row["upstream_state"]) for row in rows]
            return rows if all(are_waiting) else []

        rows = await until("each was claimed and released", all_wait)
        assert {(row["status"], row["step"]) for row in rows} == {("queued", "submit")}
        await until("no slot is taken by a task that waits", lambda: not any(pool.used for pool in runner._pools))
    finally:
        runner.stop()
        await work
    assert not [entry for entry in upstream.journal(outcome="accepted") if entry["action"] == name]
