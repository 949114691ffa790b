"""Circuit breakers for tests: shorter pauses, states that are slow to reach, and a stand-in for other processes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import pytest

from app.aio import cancel_and_wait
from app.runtime import Runtime
from app.upstreams import breaker, breaker_state
from app.upstreams.breaker import BreakerCall, CircuitBreaker
from app.upstreams.breaker_monitor import probe_idle_breaker, refresh_breakers
from app.upstreams.breaker_state import BreakerState
from app.upstreams.see2ai.account import see2ai_client
from worker.main import run_worker

SEE2AI = "see2ai"


def shorten_pauses(monkeypatch: pytest.MonkeyPatch, first_pause_seconds: float = 1.0) -> None:
    """Shortens the pauses. Their order and number stay."""
    monkeypatch.setattr(breaker_state, "FIRST_PAUSE_SECONDS", first_pause_seconds)
    monkeypatch.setattr(breaker, "JITTER_SECONDS", 0.1)
    monkeypatch.setattr(breaker, "PROBE_WAIT_SECONDS", 0.1)
    monkeypatch.setattr(breaker, "BACK_OF_LINE_SECONDS", 0.3)


def breaker_of(runtime: Runtime) -> CircuitBreaker:
    return runtime.breakers[SEE2AI]


async def trip(runtime: Runtime, reason: str, *, is_free: bool = False) -> None:
    """Like a refused call that is not the probe."""
    await breaker_of(runtime).trip(BreakerCall(is_free, 0.0), reason)


async def close(runtime: Runtime, *, is_free: bool = False) -> None:
    """Like a call with a good answer."""
    await breaker_of(runtime).change(lambda state, now: state.closed(now, is_free=is_free))


async def end_pause(runtime: Runtime) -> None:
    await breaker_of(runtime).change(BreakerState.pause_ended)


async def admit(runtime: Runtime) -> None:
    """Like a good answer of `GET /me` while no task waits."""
    await breaker_of(runtime).change(lambda state, now: state.half_open(now, admits_trial=True))


async def age(runtime: Runtime, seconds: float) -> None:
    """As if the breaker had been open for that many seconds more."""

    def aged(state: BreakerState, _now: object) -> BreakerState:
        assert state.opened_at is not None
        return replace(state, opened_at=state.opened_at - timedelta(seconds=seconds))

    await breaker_of(runtime).change(aged)


@asynccontextmanager
async def monitors(*runtimes: Runtime, probes: bool = False) -> AsyncIterator[None]:
    """The monitors that API processes run. With `probes`, those of workers."""
    tasks = [asyncio.create_task(refresh_breakers(runtime.database, runtime.breakers)) for runtime in runtimes]
    for runtime in runtimes if probes else ():
        see2ai = see2ai_client(runtime.upstreams)
        probing = probe_idle_breaker(runtime.database, breaker_of(runtime), see2ai, runtime.actions)
        tasks.append(asyncio.create_task(probing))
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
