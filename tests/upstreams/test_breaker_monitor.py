"""An outage while no task waits: a worker probes by `GET /me`, and one new submit is admitted."""

from collections.abc import AsyncIterator

import pytest

from app.runtime import Runtime, open_runtime
from app.upstreams import breaker_monitor
from tests.support.breakers import breaker_of, monitors, shorten_pauses, trip
from tests.support.makers import Maker
from tests.support.sandbox_server import Server
from tests.support.waiting import until
from tests.support.worlds import execute

pytestmark = [pytest.mark.anyio, pytest.mark.both_worlds]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_pauses(monkeypatch)
    monkeypatch.setattr(breaker_monitor, "OVERDUE_SECONDS", 0.2)


@pytest.fixture
async def other(runtime: Runtime) -> AsyncIterator[Runtime]:
    async with open_runtime(runtime.settings) as opened:
        yield opened


def account_calls(upstream: Server) -> list[float]:
    return [entry["monotonic"] for entry in upstream.journal() if entry["path"] == "/api/v1/me"]


async def test_while_a_task_waits_no_trial_is_admitted(
    make: Maker, runtime: Runtime, other: Runtime, upstream: Server
) -> None:
    user = await make.user(points=60)
    task_no = await make.task_no(user)
    await trip(runtime, "HTTP 403")
    async with monitors(runtime, other, probes=True):
        await until("called again and again", lambda: len(account_calls(upstream)) >= 4)
        assert not breaker_of(runtime).state.admits_trial
        assert breaker_of(runtime).is_open
        await execute(runtime, f"UPDATE tasks SET action = 'of another provider' WHERE task_no = '{task_no}'")
        both = (breaker_of(runtime), breaker_of(other))
        await until("a trial is admitted", lambda: all(one.state.admits_trial for one in both))


async def test_a_worker_that_starts_probes_at_once(
    runtime: Runtime, other: Runtime, upstream: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been restarted with a new API key."""
    shorten_pauses(monkeypatch, first_pause_seconds=1000.0)
    monkeypatch.setattr(breaker_of(runtime), "_max_pause_seconds", 1000.0)
    await trip(runtime, "HTTP 401")
    assert breaker_of(runtime).seconds_until_probe() > 900
    async with monitors(runtime), monitors(other, probes=True):
        await until("a trial is admitted", lambda: breaker_of(runtime).state.admits_trial)


async def test_an_outage_goes_on_while_the_account_is_refused(
    runtime: Runtime, other: Runtime, upstream: Server
) -> None:
    upstream.control({"balance": "empty"})
    await trip(runtime, "HTTP 401")
    async with monitors(runtime, other, probes=True):
        await until("three calls", lambda: len(account_calls(upstream)) >= 3)
        calls = account_calls(upstream)
        # A worker that starts probes at once, so two workers may probe twice. After that they probe once a pause.
        assert calls[-1] - calls[0] >= 2.5, "one of the two probes, once a pause"
        assert breaker_of(runtime).is_open
        assert breaker_of(runtime).open_seconds() >= 2.5
        upstream.control()
        both = (breaker_of(runtime), breaker_of(other))

        async def trial_is_admitted() -> bool:
            """In the row and in both copies. The second worker's probe may still be running after the first's."""
            open_until = (await execute(runtime, "SELECT open_until FROM circuit_breakers")).scalar()
            return open_until is None and all(one.state.admits_trial for one in both)

        await until("a trial is admitted", trial_is_admitted)
        assert breaker_of(other).open_seconds() >= 2.5


async def test_a_good_account_closes_what_a_free_call_opened(runtime: Runtime, upstream: Server) -> None:
    await trip(runtime, "HTTP 401", is_free=True)
    async with monitors(runtime, probes=True):
        await until("closed", lambda: not breaker_of(runtime).is_open)
    assert account_calls(upstream)


@pytest.mark.settings(see2ai_base_url="http://127.0.0.1:9")
async def test_an_account_that_cannot_be_called_changes_nothing(runtime: Runtime) -> None:
    await trip(runtime, "HTTP 401")
    async with monitors(runtime, probes=True):
        # The steps: opened, the pause ended early, then two probes without an answer.
        await until("two probes", lambda: breaker_of(runtime).state.version >= 6)
        state = breaker_of(runtime).state
        assert (state.billable_open, state.pause_seconds, state.admits_trial) == (True, 1, False)
