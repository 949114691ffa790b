"""One breaker row for all processes: two runtimes on one database, like an API and a worker."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event

from app.errors import Unavailable
from app.runtime import Runtime, open_runtime
from app.upstreams import breaker as breaker_module
from app.upstreams.breaker import UNAVAILABLE_TEXT, CircuitBreaker
from app.upstreams.breaker_monitor import READ_SECONDS
from app.upstreams.protocol import ResultKind, UpstreamResult
from tests.support.breakers import admit, age, breaker_of, close, end_pause, monitors, shorten_pauses, trip
from tests.support.waiting import until
from tests.support.worlds import execute

pytestmark = [pytest.mark.anyio, pytest.mark.both_worlds]
REFUSED = UpstreamResult(ResultKind.ACCOUNT_ERROR, "HTTP 403: no")
ACCEPTED = UpstreamResult(ResultKind.ACCEPTED, task_id="1")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_pauses(monkeypatch)


@pytest.fixture
async def other(runtime: Runtime) -> AsyncIterator[Runtime]:
    """A second runtime on the same database, which stands for another process."""
    async with open_runtime(runtime.settings) as opened:
        yield opened


async def wait_of_call(runtime: Runtime, *, is_free: bool = False) -> float:
    """The seconds that a call is told to wait. The call then ends without a result."""
    async with breaker_of(runtime).call(is_free=is_free) as call:
        return call.wait_seconds


def count_statements(runtime: Runtime) -> list[str]:
    """The SQL statements of this runtime from now on."""
    statements: list[str] = []
    for engine in (runtime.database.writers, runtime.database.readers):
        event.listen(engine.sync_engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    return statements


# ------------------------------------------------------------------ state shared by all processes


async def test_a_change_by_one_process_is_read_by_the_other_within_a_second(
    runtime: Runtime, other: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_pauses(monkeypatch, first_pause_seconds=20.0)
    async with monitors(runtime, other):
        began = time.monotonic()
        await trip(runtime, "HTTP 401: 余额不足，请充值")
        await until("it is open there, too", lambda: breaker_of(other).is_open)
        assert breaker_of(other).reason == "HTTP 401: 余额不足，请充值"
        assert 0 <= breaker_of(other).open_seconds() < time.monotonic() - began + 0.5
        assert breaker_of(other).wait_seconds() > 0
        await close(other)
        await until("it is closed here, too", lambda: not breaker_of(runtime).is_open)
    assert READ_SECONDS <= 1
    rows = (await execute(runtime, "SELECT provider, version, opened_at FROM circuit_breakers")).all()
    assert [tuple(row) for row in rows] == [("see2ai", 2, None)]


async def test_a_new_process_reads_the_state_of_the_others(
    runtime: Runtime, other: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_pauses(monkeypatch, first_pause_seconds=50.0)
    await trip(runtime, "HTTP 403: banned")
    await age(runtime, 100)
    async with monitors(other):
        await until("read", lambda: breaker_of(other).is_open)
    assert breaker_of(other).state == breaker_of(runtime).state
    assert 100 <= breaker_of(other).open_seconds() < 120
    assert breaker_of(other).seconds_until_probe() == pytest.approx(breaker_of(runtime).seconds_until_probe(), abs=10)


async def test_if_two_processes_open_at_once_the_second_takes_the_state_of_the_first(
    runtime: Runtime, other: Runtime
) -> None:
    await asyncio.gather(trip(runtime, "HTTP 401: first"), trip(other, "HTTP 401: second"))
    assert breaker_of(runtime).state == breaker_of(other).state
    assert breaker_of(runtime).state.version == 1


async def test_a_job_of_another_process_counts_at_once_for_a_task_that_is_refused_again(
    runtime: Runtime, other: Runtime
) -> None:
    """The copy of `other` knows one accepted job, the row two. Opened here, the breaker would wait for this task."""
    for process in (other, runtime):
        async with breaker_of(process).call() as call:
            await breaker_of(process).record_result(call, ACCEPTED)
    assert (breaker_of(other).state.successes, breaker_of(runtime).state.successes) == (1, 2)
    async with breaker_of(other).call() as call:
        result = await breaker_of(other).record_result(call, REFUSED, successes_when_refused=0)
    assert result.kind is ResultKind.REJECTED
    assert not breaker_of(other).is_open


async def test_calls_need_no_query_while_it_is_closed_and_the_monitor_one_a_second(runtime: Runtime) -> None:
    statements = count_statements(runtime)
    breaker = breaker_of(runtime)
    for is_free in (True, False):
        async with breaker.call(is_free=is_free) as call:
            await breaker.record_result(call, ACCEPTED)
        async with breaker.call(is_free=is_free) as call:
            await breaker.record_result(call, UpstreamResult(ResultKind.SERVER_ERROR))
    breaker.reject_when_open(1)
    async with runtime.database.begin() as connection:
        statements.clear()
        await breaker.admit_trial(connection, 1)
    assert statements == []
    async with monitors(runtime):
        began = time.monotonic()
        await until("four reads", lambda: len(statements) >= 4)
        assert time.monotonic() - began >= 3 * READ_SECONDS
    assert {statement.split()[0] for statement in statements} == {"SELECT"}


async def test_a_deleted_row_is_a_closed_breaker_and_the_next_refusal_creates_it(
    runtime: Runtime, other: Runtime
) -> None:
    async with monitors(runtime):
        await trip(other, "HTTP 401")
        await until("open", lambda: breaker_of(runtime).is_open)
        await execute(runtime, "DELETE FROM circuit_breakers")
        await until("closed", lambda: not breaker_of(runtime).is_open)
    await close(other)
    await trip(runtime, "HTTP 402")
    await trip(other, "HTTP 403")
    assert breaker_of(other).reason == "HTTP 402"


# ------------------------------------------------------------------ half open


async def test_exactly_one_call_of_two_processes_is_the_probe(
    runtime: Runtime, other: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_pauses(monkeypatch, first_pause_seconds=30.0)  # no pause ends by itself
    both = (runtime, other)

    async def probe_with(answer: UpstreamResult) -> None:
        """Twenty calls at once. The probe gets its answer once all others know that they have to wait."""
        others_know = asyncio.Event()
        waits: list[float] = []

        async def call(one: Runtime) -> None:
            async with breaker_of(one).call() as call:
                if call.wait_seconds:
                    waits.append(call.wait_seconds)
                else:
                    await others_know.wait()
                    await breaker_of(one).record_result(call, answer)

        await end_pause(runtime)
        calls = [asyncio.create_task(call(one)) for one in both for _ in range(10)]
        await until("all but one wait", lambda: len(waits) == 19)
        others_know.set()
        await asyncio.gather(*calls)
        assert len(waits) == 19

    async def both_read(pause_seconds: float) -> None:
        async with monitors(*both):
            known = [breaker_of(one) for one in both]
            await until("both have read it", lambda: {one.state.pause_seconds for one in known} == {pause_seconds})

    for _ in range(3):
        await trip(runtime, "HTTP 402")
        await trip(other, "HTTP 402")
        await probe_with(REFUSED)
        await both_read(60)
        assert min([await wait_of_call(one) for one in both]) > 0
        await probe_with(ACCEPTED)
        await both_read(0)
        assert [await wait_of_call(one) for one in both] == [0, 0]


async def test_a_probe_whose_worker_died_is_forgotten(
    runtime: Runtime, other: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    await trip(runtime, "HTTP 401")
    await end_pause(runtime)
    began = time.monotonic()
    taken = breaker_of(runtime).now() + timedelta(seconds=4)
    await breaker_of(runtime).change(lambda state, now: state.probed(now, taken, is_free=False))  # no result
    async with monitors(other):
        await until("read", lambda: breaker_of(other).is_open)
        assert await wait_of_call(other) > 0

        async def may_probe() -> bool:
            return await wait_of_call(other) == 0.0

        await until("it is forgotten", may_probe)
    assert time.monotonic() - began > 3


async def test_a_call_without_a_result_gives_the_probe_back(runtime: Runtime) -> None:
    await trip(runtime, "HTTP 401")
    for _ in range(2):
        await end_pause(runtime)
        async with breaker_of(runtime).call() as call:
            assert call.probe is not None
        assert breaker_of(runtime).state.probe_until is None
        assert breaker_of(runtime).state.pause_seconds == 1
        assert 0 < breaker_of(runtime).wait_seconds() <= 1.1


async def test_a_call_that_does_not_wait_is_made_in_any_case_and_is_no_probe(runtime: Runtime) -> None:
    await trip(runtime, "HTTP 401", is_free=True)
    async with breaker_of(runtime).call(is_free=True, waits=False) as call:
        assert (call.wait_seconds, call.probe) == (0.0, None)
        await breaker_of(runtime).record_result(call, REFUSED)
    assert breaker_of(runtime).state.pause_seconds == 1


# ------------------------------------------------------------------ new submits


async def test_submits_are_rejected_once_it_is_open_as_long_as_a_task_may_wait(runtime: Runtime) -> None:
    breaker = breaker_of(runtime)
    await trip(runtime, "HTTP 403")
    breaker.reject_when_open(60)
    await age(runtime, 60)
    with pytest.raises(Unavailable, match=UNAVAILABLE_TEXT) as refusal:
        breaker.reject_when_open(60)
    assert 1 <= (refusal.value.retry_after_seconds or 0) <= 10


async def test_of_all_processes_one_submit_is_the_trial_and_a_rollback_leaves_it(
    runtime: Runtime, other: Runtime
) -> None:
    await trip(runtime, "HTTP 403")
    await age(runtime, 1000)
    await admit(runtime)
    async with monitors(other):
        await until("read", lambda: breaker_of(other).state.admits_trial)

    async def submit(one: Runtime, *, fails: bool = False) -> str:
        breaker_of(one).reject_when_open(60)
        try:
            async with one.database.begin() as connection:
                await breaker_of(one).admit_trial(connection, 60)
                if fails:
                    raise LookupError
        except Unavailable:
            return "rejected"
        except LookupError:
            return "failed"
        return "admitted"

    assert [await submit(one, fails=True) for one in (runtime, other)] == ["failed"] * 2
    results = await asyncio.gather(*[submit(one) for one in (runtime, other) for _ in range(4)])
    assert sorted(results) == ["admitted"] + ["rejected"] * 7
    async with breaker_of(other).call() as call:
        assert (call.wait_seconds, call.probe is None) == (0.0, False)


# ------------------------------------------------------------------ without the database


async def test_without_the_database_a_process_decides_by_its_copy(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: Any) -> None:
        raise Unavailable

    await close(runtime)
    with monkeypatch.context() as outage:
        outage.setattr(CircuitBreaker, "_write", away)
        outage.setattr(CircuitBreaker, "_read", away)
        await trip(runtime, "HTTP 401")
        assert await wait_of_call(runtime) > 0
        await end_pause(runtime)
        async with breaker_of(runtime).call() as probe:
            assert probe.wait_seconds == 0.0
            assert await wait_of_call(runtime) > 0, "a second probe"
            await breaker_of(runtime).record_result(probe, REFUSED)
        assert breaker_of(runtime).state.pause_seconds == 2
        await close(runtime)
        assert await wait_of_call(runtime) == 0.0
        await trip(runtime, "HTTP 402: seen during the outage")
    async with monitors(runtime):  # the row is the truth again
        await until("read", lambda: not breaker_of(runtime).is_open)


async def test_a_database_that_hangs_holds_up_no_call_for_long(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(*_: Any) -> None:
        await asyncio.sleep(3600)

    monkeypatch.setattr(breaker_module, "DATABASE_TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(CircuitBreaker, "_read", hang)
    began = time.monotonic()
    await asyncio.gather(*[trip(runtime, "HTTP 401") for _ in range(100)])
    assert time.monotonic() - began < 5
    assert breaker_of(runtime).is_open
