"""A provider's circuit between processes: two runtimes on one database, as an API and workers have it."""

import asyncio
import itertools
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import REGISTRY, generate_latest

from app.aio import cancel_and_wait
from app.engine import breaker_sync as providers
from app.engine.breaker_sync import BreakerSync, acquire_permission, pull_states, push_state
from app.engine.runner import TaskRunner
from app.errors import Unavailable
from app.runtime import Runtime, open_runtime
from app.upstreams import breaker as circuit_module
from app.upstreams.breaker import CircuitBreaker
from tests.support.makers import Maker
from tests.support.sandbox_server import Server
from tests.support.task_rows import hasten, row_of, submits
from tests.support.waiting import until
from tests.support.worlds import execute
from worker.main import run_worker

pytestmark = [pytest.mark.anyio, pytest.mark.both_worlds]
SEE2AI = "see2ai"
UNAVAILABLE_TEXT = "生成服务暂时不可用，请稍后重试"


@pytest.fixture(autouse=True)
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    hasten(monkeypatch)
    monkeypatch.setattr(circuit_module, "FIRST_PAUSE_SECONDS", 1.0)
    monkeypatch.setattr(circuit_module, "JITTER_SECONDS", 0.1)
    monkeypatch.setattr(circuit_module, "PROBE_WAIT_SECONDS", 0.1)


@pytest.fixture
async def other(runtime: Runtime) -> AsyncIterator[Runtime]:
    """Another process, as far as the database is concerned."""
    async with open_runtime(runtime.settings) as opened:
        yield opened


@asynccontextmanager
async def watching(*runtimes: Runtime, asks: bool = False) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(BreakerSync(runtime, probes=asks).run()) for runtime in runtimes]
    try:
        yield
    finally:
        await cancel_and_wait(*tasks)


@asynccontextmanager
async def workers(*runtimes: Runtime) -> AsyncIterator[None]:
    stop = asyncio.Event()
    tasks = [asyncio.create_task(run_worker(runtime, stop)) for runtime in runtimes]
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*tasks)


def of(runtime: Runtime) -> CircuitBreaker:
    return runtime.breakers[SEE2AI]


async def agree(first: Runtime, second: Runtime) -> None:
    """Both know the same state, as after the next looks of both."""
    await push_state(first.database, of(first))
    for runtime in (first, second):
        runtime.breakers.read_at = float("-inf")
        await pull_states(runtime)
    assert of(first).version == of(second).version


async def age(runtime: Runtime, seconds: float) -> None:
    """As if the circuit had been open for so long already."""
    of(runtime)._opened_at -= seconds
    of(runtime)._note()
    await push_state(runtime.database, of(runtime))


# ------------------------------------------------------------------ what one finds out, all heed


async def test_what_one_process_learns_the_other_heeds_with_its_next_look(
    runtime: Runtime, other: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(circuit_module, "FIRST_PAUSE_SECONDS", 20.0)
    async with watching(runtime, other):
        began = time.monotonic()
        of(runtime).trip("HTTP 401: 余额不足，请充值")
        await until("it is open there, too", lambda: of(other).is_open)
        assert of(other).reason == "HTTP 401: 余额不足，请充值"
        assert 0 < of(other).open_seconds() < time.monotonic() - began + 0.5
        assert of(other).wait_seconds() > 0
        of(other).reset()
        await until("it is closed here, too", lambda: not of(runtime).is_open)
    assert providers.SYNC_SECONDS <= 1
    rows = (await execute(runtime, "SELECT provider, version, opened_at FROM circuit_breakers")).all()
    assert [tuple(row) for row in rows] == [(SEE2AI, 2, None)]


async def test_a_process_that_begins_knows_what_the_others_know(
    runtime: Runtime, other: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(circuit_module, "FIRST_PAUSE_SECONDS", 50.0)
    of(runtime).trip("HTTP 403: banned")
    await age(runtime, 100)
    await pull_states(other)
    assert 100 <= of(other).open_seconds() < 120
    assert of(other).seconds_until_probe() == pytest.approx(of(runtime).seconds_until_probe(), abs=10)


async def test_a_process_reads_at_most_once_a_second_and_writes_only_news(
    runtime: Runtime, other: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`gateway up` has two watches in one process."""
    asked: list[str] = []
    for name in ("_read", "_write"):
        real = getattr(providers, name)

        async def counted(*args: Any, name: str = name, real: Callable[..., Any] = real) -> Any:
            asked.append(name)
            return await real(*args)

        monkeypatch.setattr(providers, name, counted)
    async with watching(runtime), watching(runtime):
        began = time.monotonic()
        await until("four looks", lambda: len(asked) >= 4)
        assert time.monotonic() - began >= 3 * 0.9 * providers.SYNC_SECONDS
    assert set(asked) == {"_read"}


async def test_of_two_that_open_at_once_one_is_first_and_the_other_adopts(runtime: Runtime, other: Runtime) -> None:
    of(runtime).trip("HTTP 401: first")
    of(other).trip("HTTP 401: second")
    await push_state(runtime.database, of(runtime))
    await push_state(other.database, of(other))
    assert (of(other).reason, of(other).version) == ("HTTP 401: first", 1)


# ------------------------------------------------------------------ half open


async def test_exactly_one_visit_of_two_workers_is_the_probe(
    runtime: Runtime, other: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(circuit_module, "FIRST_PAUSE_SECONDS", 30.0)  # no pause ends by itself
    for round_ in range(1, 4):
        of(runtime).trip("HTTP 402")
        of(runtime)._open_until -= 100
        await agree(runtime, other)
        asks = [acquire_permission(one, of(one)) for one in (runtime, other) for _ in range(10)]
        pauses = await asyncio.gather(*asks)
        assert pauses.count(0.0) == 1, round_
        prober = runtime if of(runtime).is_probe() else other
        of(prober).trip("HTTP 402: still")
        await push_state(prober.database, of(prober))
        assert min([await acquire_permission(one, of(one)) for one in (runtime, other)]) > 0
        of(prober).reset()
        await push_state(prober.database, of(prober))
        await agree(runtime, other)


async def test_a_probe_whose_worker_died_is_forgotten(
    runtime: Runtime, other: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(circuit_module, "PROBE_SECONDS", 4.0)
    of(runtime).trip("HTTP 401")
    of(runtime)._open_until -= 100
    await agree(runtime, other)
    began = time.monotonic()
    assert await acquire_permission(runtime, of(runtime)) == 0.0  # and never heard of again
    assert await acquire_permission(other, of(other)) > 0

    async def may_ask() -> bool:
        return await acquire_permission(other, of(other)) == 0.0

    await until("it is forgotten", may_ask)
    assert time.monotonic() - began > 3


async def test_without_the_database_a_circuit_decides_alone(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: Any) -> None:
        raise Unavailable

    monkeypatch.setattr(providers, "push_state", away)
    monkeypatch.setattr(providers, "_read", away)
    async with watching(runtime):
        of(runtime).trip("HTTP 401")
        assert await acquire_permission(runtime, of(runtime)) > 0
        of(runtime)._open_until -= 100
        assert await acquire_permission(runtime, of(runtime)) == 0.0
        assert await acquire_permission(runtime, of(runtime)) > 0
        of(runtime).reset()
        assert await acquire_permission(runtime, of(runtime)) == 0.0


async def test_a_visit_that_lost_its_task_lets_the_next_one_ask(
    make: Maker, runtime: Runtime, hurry: None, upstream: Server
) -> None:
    """Its caller took the task back at the last moment: nobody should wait 70 s for a probe that was never sent."""
    user = await make.user(points=60)
    first = await make.task_no(user, "[[sandbox: take 0]] taken back")
    of(runtime).trip("HTTP 401")
    of(runtime)._open_until -= 100
    real = runtime.breakers[SEE2AI].start_probe

    def start_probe(**how: Any) -> None:
        real(**how)
        runtime.breakers[SEE2AI].start_probe = real  # type: ignore[method-assign]
        taken.set()

    taken = asyncio.Event()
    runtime.breakers[SEE2AI].start_probe = start_probe  # type: ignore[method-assign]
    async with workers(runtime):
        await taken.wait()
        taken_back = "UPDATE tasks SET version = version + 1, lease_until = NULL, next_run_at = created_at"
        await execute(runtime, f"{taken_back} WHERE step = 'submit'")  # once it is being sent nobody takes it back
        assert (await make.ended(user, first))["status"] == "completed"
    assert len(submits(upstream, "[[sandbox: take 0]] taken back")) == 1


# ------------------------------------------------------------------ storms


async def test_a_storm_of_refusals_parks_everybody_in_both_workers_and_all_recover(
    make: Maker, runtime: Runtime, other: Runtime, hurry: None, upstream: Server
) -> None:
    user = await make.user(points=30 * 41)
    upstream.control({"balance": "empty"})
    async with workers(runtime, other):
        numbers = [await make.task_no(user, "[[sandbox: take 0]] 0")]
        await until("both know", lambda: of(runtime).is_open and of(other).is_open)
        numbers += [await make.task_no(user, f"[[sandbox: take 0]] {n}") for n in range(1, 41)]

        def refused() -> list[float]:
            return [one["monotonic"] for one in upstream.journal(outcome="refused") if one["method"] == "POST"]

        await until("two probes", lambda: len(refused()) >= 3)
        # One opened it; pauses of 1, 2 and 4 seconds, each ended by one probe of all workers together.
        gaps = [later - earlier for earlier, later in itertools.pairwise(refused())]
        assert all(gap >= 0.9 * 2**number for number, gap in enumerate(gaps)), gaps
        assert {(await make.task(user, number))["status"] for number in numbers} == {"queued"}

        async def wait_for_upstream() -> bool:  # all but the one that may ask
            held = await execute(runtime, "SELECT COUNT(*) FROM tasks WHERE lease_until IS NOT NULL")
            return bool(held.scalar() <= 1)

        await until("all are parked again", wait_for_upstream)
        upstream.control()
        ended = await asyncio.gather(*[make.ended(user, number) for number in numbers])
    assert {task["status"] for task in ended} == {"completed"}
    assert len(upstream.journal(outcome="accepted")) == 41
    assert not of(runtime).is_open
    assert await make.balance(user) == (0, 0)


async def test_with_an_empty_purse_running_jobs_are_still_looked_after(
    make: Maker, runtime: Runtime, hurry: None, upstream: Server
) -> None:
    user = await make.user(points=90)
    async with workers(runtime):
        running = await make.task_no(user, "[[sandbox: take 2]] running")
        await until("sent", lambda: submits(upstream, "[[sandbox: take 2]] running", "accepted"))
        upstream.control({"fail": 402, "where": "submit"})
        waiting = await make.task_no(user, "[[sandbox: take 0]] waiting")
        await until("open", lambda: of(runtime).is_open)
        opened_at = of(runtime)._opened_at
        assert (await make.ended(user, running))["status"] == "completed"
        assert of(runtime).is_open
        assert of(runtime)._opened_at == opened_at, "a look's answer closed what a job had opened"
        upstream.control()
        assert (await make.ended(user, waiting))["status"] == "completed"


# ------------------------------------------------------------------ hopeless


async def told(make: Maker) -> Any:
    return (await make.api.get("/readyz")).json()["data"]["circuit"]


async def test_hopeless_submits_are_refused_and_nothing_is_stored_or_taken(
    make: Maker, runtime: Runtime, other: Runtime
) -> None:
    """What a worker found out decides at the API's door, and is told there in every way there is."""
    user = await make.user(points=1000)
    assert await told(make) == "ok"
    of(other).trip("HTTP 401: 余额不足，请充值")
    await age(other, runtime.settings.task_deadline_seconds - 60)
    await until("the API knows", lambda: of(runtime).is_open)
    before = await make.submit(user, "not yet hopeless")
    assert before.status_code == 200
    await age(other, 61)
    await until("hopeless", lambda: of(runtime).open_seconds() > runtime.settings.task_deadline_seconds)
    counted = REGISTRY.get_sample_value("gateway_submits_refused_total", {"provider": SEE2AI}) or 0
    refused = await make.submit(user, "hopeless")
    body = refused.json()
    assert (refused.status_code, body["errorCode"], body["message"]) == (503, "UNAVAILABLE", UNAVAILABLE_TEXT)
    assert 1 <= int(refused.headers["Retry-After"]) <= 70
    assert (await execute(runtime, "SELECT COUNT(*) FROM tasks")).scalar() == 1
    assert (await execute(runtime, "SELECT COUNT(*) FROM points_ledger WHERE kind = 'deduct'")).scalar() == 1
    assert await make.balance(user) == (970, 30)
    asked = {"modelName": "sc_soraimg_text_1x1", "prompt": "x"}
    quote = await make.api.post("/user/ai/tasks/quote", json=asked, headers=user.headers)
    assert quote.json()["data"]["pointsCost"] == 30
    video = await make.submit(user, "a video may wait longer", model="sc_video_text_fast")
    assert video.status_code == 200, video.text
    assert re.match(r"warning: open \(see2ai for 6\d\d ", await told(make))
    assert "余额" not in (await make.api.get("/readyz")).text
    metrics = generate_latest().decode()
    assert 'gateway_breaker_open{provider="see2ai"} 1.0' in metrics
    assert f'gateway_submits_refused_total{{provider="see2ai"}} {counted + 1}' in metrics
    of(other).reset()
    await push_state(other.database, of(other))
    await until("recovered", lambda: not of(runtime).is_open)
    assert (await make.submit(user, "again")).status_code == 200
    assert await told(make) == "ok"
    assert 'gateway_breaker_open{provider="see2ai"} 0.0' in generate_latest().decode()


@pytest.mark.settings(task_deadline_seconds=5)
async def test_from_the_first_refusal_to_hopeless_and_back_with_nobody_left_to_ask(
    make: Maker, runtime: Runtime, other: Runtime, hurry: None, upstream: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All tasks that waited are refunded, no new one is let in: the worker asks by itself, and then invites one."""
    monkeypatch.setattr(providers, "OVERDUE_SECONDS", 1.0)
    user = await make.user(points=60)
    upstream.control({"balance": "empty"})
    async with workers(other):
        task = await make.ended(user, await make.task_no(user, "in vain"))
        assert (task["status"], task["errorCode"]) == ("failed", "UPSTREAM_UNAVAILABLE")

        async def is_refused() -> bool:
            return (await make.submit(user, "hopeless", model="sc_uniworld_text_1x1")).status_code == 503

        await until("hopeless", is_refused)
        assert await make.balance(user) == (60, 0)
        upstream.control()
        # The pause has grown to 4 seconds by now, or to 8.
        await until("invited", lambda: of(runtime).admits_trial)
        task = await make.ended(user, await make.task_no(user, "[[sandbox: take 0]] again"))
        assert task["status"] == "completed"
        await until("closed", lambda: not of(runtime).is_open)


@pytest.mark.parametrize("are_apart", [True, False])
@pytest.mark.settings(task_deadline_seconds=5)
async def test_where_only_jobs_are_refused_it_stays_hopeless_until_one_passes(
    make: Maker,
    runtime: Runtime,
    other: Runtime,
    hurry: None,
    upstream: Server,
    monkeypatch: pytest.MonkeyPatch,
    are_apart: bool,
) -> None:
    """`GET /me` finds nothing wrong, and closes nothing: of all submits one at a time is let in, where none waits."""
    monkeypatch.setattr(providers, "OVERDUE_SECONDS", 0.2)
    user = await make.user(points=3000)
    upstream.control({"fail": 403, "where": "submit"})

    async def submitted() -> bool:
        return (await make.submit(user, "[[sandbox: take 0]]")).status_code == 200

    async def waiting() -> int:
        return int((await execute(runtime, "SELECT COUNT(*) FROM tasks WHERE step <> 'done'")).scalar() or 0)

    async with workers(other) if are_apart else workers(runtime):
        assert (await make.ended(user, await make.task_no(user, "in vain")))["status"] == "failed"
        await until("hopeless", lambda: of(runtime).open_seconds() > runtime.settings.task_deadline_seconds)
        admit_trial = refused = 0
        opened_at = of(runtime)._opened_at
        while admit_trial < 2 or refused < 20:
            if await submitted():
                admit_trial += 1
                assert await waiting() == 1
            else:
                refused += 1
            await asyncio.sleep(0.05)
        assert of(runtime)._opened_at == pytest.approx(opened_at, abs=3)  # each reading is late by its query
        assert [one for one in upstream.journal() if one["path"] == "/api/v1/me"]
        upstream.control()
        await until("a job passes", submitted)  # or the one that waits did
        await until("closed", lambda: not of(runtime).is_open)
        assert await submitted()
        await until("all have ended", lambda: is_zero(waiting()))


async def is_zero(number: Awaitable[int]) -> bool:
    return await number == 0


async def test_of_all_that_come_by_an_invitation_one_is_let_in(make: Maker, runtime: Runtime) -> None:
    """Whoever has no points takes it from nobody."""
    of(runtime).trip("HTTP 403")
    of(runtime)._opened_at -= 10_000
    of(runtime).half_open(invites=True)
    poor, rich = await make.user(), await make.user(points=3000)
    assert [(await make.submit(poor, "poor")).json()["errorCode"] for _ in range(3)] == ["INSUFFICIENT_POINTS"] * 3
    answers = await asyncio.gather(*[make.submit(rich, f"rich {n}") for n in range(8)])
    assert sorted(answer.status_code for answer in answers) == [200] + [503] * 7
    assert await make.balance(rich) == (2970, 30)
    assert (await acquire_permission(runtime, of(runtime)), of(runtime).is_open) == (0.0, True)


async def test_while_a_task_waits_nobody_else_is_invited(
    make: Maker, runtime: Runtime, other: Runtime, upstream: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(providers, "OVERDUE_SECONDS", 0.2)
    user = await make.user(points=60)
    task_no = await make.task_no(user)
    of(runtime).trip("HTTP 403")
    await push_state(runtime.database, of(runtime))

    def asked() -> int:
        return len([entry for entry in upstream.journal() if entry["path"] == "/api/v1/me"])

    async with watching(runtime, other, asks=True):
        await until("asked again and again", lambda: asked() >= 4)
        assert not of(runtime).admits_trial
        assert of(runtime).is_open
        await execute(runtime, f"UPDATE tasks SET action = 'of another provider' WHERE task_no = '{task_no}'")
        await until("invited", lambda: of(runtime).admits_trial and of(other).admits_trial)


async def test_a_worker_that_begins_asks_at_once(runtime: Runtime, other: Runtime, upstream: Server) -> None:
    """Perhaps it was restarted with a new key."""
    of(runtime).trip("HTTP 401")
    of(runtime)._open_until += 1000
    await push_state(runtime.database, of(runtime))
    async with watching(runtime), watching(other, asks=True):
        await until("invited", lambda: of(runtime).admits_trial)


async def test_an_idle_outage_goes_on_while_the_purse_is_empty(
    runtime: Runtime, other: Runtime, upstream: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(providers, "OVERDUE_SECONDS", 0.2)
    upstream.control({"balance": "empty"})
    of(runtime).trip("HTTP 401")
    await push_state(runtime.database, of(runtime))
    async with watching(runtime, other, asks=True):

        def asked() -> list[float]:
            return [entry["monotonic"] for entry in upstream.journal() if entry["path"] == "/api/v1/me"]

        await until("three times", lambda: len(asked()) >= 3)
        # The worker that begins asks at once, if so twice for two; then it is once a pause, and pauses grow.
        assert asked()[-1] - asked()[0] >= 2.5, "one of the two asks, once a pause"
        assert of(runtime).is_open
        assert of(runtime).open_seconds() >= 2.5
        upstream.control()
        await until("invited", lambda: of(runtime).admits_trial and of(other).admits_trial)
        assert of(other).open_seconds() >= 2.5
        assert (await execute(runtime, "SELECT open_until FROM circuit_breakers")).scalar() is None


# ------------------------------------------------------------------ one provider's trouble is not another's


async def test_tasks_parked_for_one_provider_keep_no_hands_from_anothers(
    make: Maker, runtime: Runtime, hurry: None, upstream: Server
) -> None:
    name = "see2ai_image_uniworld_v2"
    elsewhere = replace(runtime.actions[name], provider="elsewhere")
    two = replace(runtime, actions={**runtime.actions, name: elsewhere})
    two.breakers["elsewhere"].trip("HTTP 401: elsewhere")
    two.breakers["elsewhere"]._open_until += 1000
    user = await make.user(points=80 * 60 + 30 * 20)
    wait_for_upstream = [await make.task_no(user, f"parked {n}", model="sc_uniworld_text_1x1") for n in range(60)]
    runner = TaskRunner(two, idle_seconds=0.05)
    for pool in runner._pools:
        pool.size = min(pool.size, 4)
    work = asyncio.create_task(runner.run())
    try:
        numbers = [await make.task_no(user, f"[[sandbox: take 0]] {n}") for n in range(20)]
        ended = await asyncio.gather(*[make.ended(user, number) for number in numbers])
        assert {task["status"] for task in ended} == {"completed"}
        assert not two.breakers[SEE2AI].is_open

        async def all_parked() -> list[dict[str, Any]]:
            rows = [await row_of(runtime, number) for number in wait_for_upstream]
            is_parked = [row["lease_until"] is None and "elsewhere" in str(row["upstream_state"]) for row in rows]
            return rows if all(is_parked) else []

        rows = await until("each has been looked at and put back", all_parked)
        assert {(row["status"], row["step"]) for row in rows} == {("queued", "submit")}
        await until("no hand holds a parked task", lambda: not any(pool.used for pool in runner._pools))
    finally:
        runner.stop()
        await work
    assert not [entry for entry in upstream.journal(outcome="accepted") if entry["action"] == name]


async def test_what_one_provider_refuses_another_is_not_asked_about(runtime: Runtime) -> None:
    breakers = runtime.breakers
    breakers["elsewhere"].trip("HTTP 402")
    for action in runtime.actions.values():
        assert await acquire_permission(runtime, breakers[action.provider]) == 0.0
        providers.reject_when_open(runtime, action, 1)
    far = replace(next(iter(runtime.actions.values())), provider="elsewhere")
    breakers["elsewhere"]._opened_at -= 2
    with pytest.raises(Unavailable, match=UNAVAILABLE_TEXT):
        providers.reject_when_open(runtime, far, 1)
