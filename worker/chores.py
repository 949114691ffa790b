"""What workers do by the clock, beside the tasks: each chore by one of them at a time, and by another if that one dies.

No task waits for a chore, and no queue in Redis knows of one: whose turn it is stands in the database.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog
from prometheus_client import Gauge

from app import metrics
from app.endings import cancel_and_wait
from app.errors import Unavailable
from app.points.audit import audit
from app.points.expiry import expire_lots
from app.runtime import Runtime
from app.settings import Settings
from app.tasks.chores import end_turn, give_turn_back, keep_turn, list_turns, take_turn
from app.tasks.durations import learn_durations
from app.webhooks.log import forget_old

log = structlog.get_logger()

TICK_SECONDS = 5.0
LEASE_SECONDS = 60.0
RETRY_SECONDS = 60.0  # after one that failed
EXPIRE_SECONDS = 3600.0
LEARN_SECONDS = 60.0
FORGET_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Chore:
    """`work` answers with a number, which every worker shows in `result`, and in `age` how long ago that was."""

    name: str
    period_seconds: float
    work: Callable[[Runtime], Awaitable[int]]
    result: Gauge | None = None
    age: Gauge | None = None


def chores_of(settings: Settings) -> list[Chore]:
    """The registry: all chores there are; one with a period of 0 is switched off."""
    chores = [
        Chore("expire", EXPIRE_SECONDS, expire_points),
        Chore("durations", LEARN_SECONDS, update_model_durations),
        Chore("webhooks", FORGET_SECONDS, purge_deliveries),
        Chore("audit", settings.audit_every_seconds, run_audit, metrics.AUDIT_VIOLATIONS, metrics.AUDIT_AGE),
    ]
    return [chore for chore in chores if chore.period_seconds]


async def expire_points(runtime: Runtime) -> int:
    """Ends points whose time is over; of how many lots."""
    return (await expire_lots(runtime.sessions)).lots


async def update_model_durations(runtime: Runtime) -> int:
    """How long models take by now; of how many."""
    return await learn_durations(runtime.sessions)


async def purge_deliveries(runtime: Runtime) -> int:
    """The delivery log keeps a month; how many deliveries went."""
    return await forget_old(runtime.sessions)


async def run_audit(runtime: Runtime) -> int:
    """The audit, as `gateway audit` runs it; the number of violations."""
    violations = await audit(runtime.sessions)
    if violations:
        rows = [f"{one.invariant}: {one.meaning}: {one.row}" for one in violations]
        log.error("audit_failed", violations=len(violations), rows=rows)
    else:
        log.info("audit_ok")
    return len(violations)


class ChoreLoop:
    """Looks what is due and does it, until cancelled. Whatever goes wrong in a chore, the loop goes on."""

    def __init__(self, runtime: Runtime, chores: Sequence[Chore]) -> None:
        self._runtime = runtime
        self._chores = chores
        self._running: dict[str, asyncio.Task[None]] = {}
        self._done_at: dict[str, float] = {}  # by this process' clock, also where another process did it

    async def run(self) -> None:
        try:
            while True:
                try:
                    await self._tick()
                except Unavailable:
                    pass  # the database is away, which is told where it is noticed
                except Exception:
                    log.exception("chores_not_looked_at")
                self._show_ages()
                await asyncio.sleep(TICK_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311
        finally:
            await cancel_and_wait(*self._running.values())

    async def _tick(self) -> None:
        if not self._chores:
            return
        sessions = self._runtime.sessions
        turns = await list_turns(sessions)
        for chore in self._chores:
            turn = turns.get(chore.name)
            if turn is not None and turn.age_seconds is not None and turn.result is not None:
                self._record_result(chore, turn.result, turn.age_seconds)
            if chore.name in self._running or (turn is not None and not turn.is_due):
                continue
            version = await take_turn(sessions, chore.name, LEASE_SECONDS)
            if version is not None:
                self._running[chore.name] = asyncio.create_task(self._run_job(chore, version))

    async def _run_job(self, chore: Chore, version: int) -> None:
        sessions = self._runtime.sessions
        keeper = asyncio.create_task(self._renew_lease(chore, version))
        try:
            result = await chore.work(self._runtime)
            if await end_turn(sessions, chore.name, version, result=result, period_seconds=chore.period_seconds):
                self._record_result(chore, result, 0.0)
        except BaseException as error:
            is_cancelled = isinstance(error, asyncio.CancelledError)
            if not is_cancelled:
                log.error("chore_failed", chore=chore.name, exc_info=error)
            with contextlib.suppress(Exception):  # the lease ends by itself
                delay = 0.0 if is_cancelled else min(RETRY_SECONDS, chore.period_seconds)
                await give_turn_back(sessions, chore.name, version, delay)
        finally:
            await end(keeper)
            self._running.pop(chore.name, None)

    async def _renew_lease(self, chore: Chore, version: int) -> None:
        while True:
            await asyncio.sleep(LEASE_SECONDS / 3)
            with contextlib.suppress(Exception):
                await keep_turn(self._runtime.sessions, chore.name, version, LEASE_SECONDS)

    def _record_result(self, chore: Chore, result: int, age_seconds: float) -> None:
        self._done_at[chore.name] = time.monotonic() - age_seconds
        if chore.result is not None:
            chore.result.set(result)
        self._show_ages()

    def _show_ages(self) -> None:
        """Also while the database cannot be asked: an age that stood still would look well."""
        for chore in self._chores:
            if chore.age is not None and chore.name in self._done_at:
                chore.age.set(time.monotonic() - self._done_at[chore.name])
