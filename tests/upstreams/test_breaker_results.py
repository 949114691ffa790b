"""What an answer does to the breaker, and what it means for the task that got it."""

from collections.abc import AsyncIterator

import pytest

from app.runtime import Runtime, open_runtime
from app.upstreams import breaker as breaker_module
from app.upstreams import breaker_state
from app.upstreams.breaker import BreakerCall
from app.upstreams.protocol import ResultKind, UpstreamResult
from tests.support.breakers import breaker_of, close, end_pause, monitors, shorten_pauses, trip
from tests.support.waiting import until

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


async def test_a_429_pauses_free_calls_for_a_while_and_not_jobs(runtime: Runtime) -> None:
    breaker = breaker_of(runtime)
    for retry_after_seconds, wait_seconds in ((7.0, 7.0), (None, breaker_module.THROTTLE_SECONDS), (9999.0, 60.0)):
        result = UpstreamResult(ResultKind.RATE_LIMITED, retry_after_seconds=retry_after_seconds)
        await breaker.record_result(BreakerCall(True, 0.0), result)
        assert breaker.wait_seconds(is_free=True) == pytest.approx(wait_seconds, abs=0.2)
        assert breaker.wait_seconds() == 0.0


async def test_a_refused_task_waits_longer_than_the_others(runtime: Runtime) -> None:
    breaker = breaker_of(runtime)
    result = await breaker.record_result(BreakerCall(False, 0.0), REFUSED)
    assert result.kind is ResultKind.ACCOUNT_ERROR
    assert result.retry_after_seconds is not None
    longest_wait = max(breaker.wait_seconds() for _ in range(100))
    assert result.retry_after_seconds > longest_wait


async def test_the_next_probe_is_another_users(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many tasks of the refused user wait: first other users', then the user's others, then the refused."""
    monkeypatch.setattr(breaker_module, "BACK_OF_LINE_SECONDS", 60.0)
    breaker = breaker_of(runtime)
    refused = await breaker.record_result(BreakerCall(False, 0.0, user_id=1), REFUSED)
    assert refused.retry_after_seconds is not None
    assert refused.retry_after_seconds > 60 > breaker.wait_seconds(user_id=1) > 30 > breaker.wait_seconds(user_id=2) > 0
    await end_pause(runtime)
    async with breaker.call(user_id=1) as call:
        assert (call.wait_seconds > 20, call.probe) == (True, None)
    async with breaker.call(user_id=2) as call:
        assert (call.wait_seconds, call.probe is None) == (0.0, False)
        await breaker.record_result(call, ACCEPTED)
    async with breaker.call(user_id=1) as call:
        assert call.wait_seconds == 0.0, "a closed breaker lets all in"
        await breaker.record_result(call, ACCEPTED)
    await breaker.record_result(BreakerCall(False, 0.0, user_id=2), REFUSED)
    assert breaker.wait_seconds(user_id=1) < 10, "an accepted job ends it"


async def test_the_refused_users_remembered_are_bounded(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker_state, "MAX_REFUSED_USERS", 2)
    for user_id in (1, 2, 3):
        await breaker_of(runtime).record_result(BreakerCall(False, 0.0, user_id=user_id), REFUSED)
    assert [user for user in (1, 2, 3) if user in breaker_of(runtime)._refused_users] == [2, 3]


async def test_a_job_refused_again_after_two_accepted_jobs_is_rejected(runtime: Runtime, other: Runtime) -> None:
    """It does not matter which process the other jobs were accepted in."""
    call = BreakerCall(False, 0.0)
    await breaker_of(runtime).record_result(call, REFUSED)
    refused_at = breaker_of(runtime).state.successes
    async with monitors(runtime, other):
        for number in (1, 2):
            again = await breaker_of(runtime).record_result(call, REFUSED, refused_at)
            assert again.kind is ResultKind.ACCOUNT_ERROR
            await until("open there", lambda: breaker_of(other).is_open)
            await breaker_of(other).record_result(call, ACCEPTED)
            await until("closed here", lambda n=number: breaker_of(runtime).state.successes == n)
    last = await breaker_of(runtime).record_result(call, REFUSED, refused_at)
    assert (last.kind, last.detail) == (ResultKind.REJECTED, "only this task is refused: HTTP 403: no")
    assert not breaker_of(runtime).is_open


async def test_while_it_is_open_and_in_an_outage_no_job_is_rejected(runtime: Runtime) -> None:
    breaker = breaker_of(runtime)
    for _ in range(5):
        await end_pause(runtime)
        async with breaker.call() as call:
            assert (await breaker.record_result(call, REFUSED, 0)).kind is ResultKind.ACCOUNT_ERROR
    for _ in range(3):
        await breaker.record_result(BreakerCall(False, 0.0), ACCEPTED)
    await trip(runtime, "another task is refused, too")
    assert (await breaker.record_result(BreakerCall(False, 0.0), REFUSED, 0)).kind is ResultKind.ACCOUNT_ERROR
    await close(runtime)
    assert (await breaker.record_result(BreakerCall(True, 0.0), REFUSED, 0)).kind is ResultKind.ACCOUNT_ERROR
