"""How a provider stands, told between processes: one row each in `circuit_breakers`, which nobody has to be able to read.

A circuit lives in memory and decides alone. What it finds out is written by whoever found it out, under the version it
knew, so that of two that change the same state one is first and the other adopts; the rest read it once a second. So
one process' refused call keeps all away, and one visit of all workers together asks when a pause is over. Where the
database cannot be asked, each process does as well as it can by itself.
"""

import asyncio
import contextlib
import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy import bindparam, exists, select, update

from app.aio import cancel_and_wait
from app.database import Connection, Database, insert_ignore, retry_on_conflict, utc_after, utc_now
from app.errors import Unavailable
from app.runtime import Runtime
from app.tables import circuit_breakers, tasks
from app.telemetry import metrics
from app.upstreams.breaker import BreakerState, CircuitBreaker
from app.upstreams.see2ai.account import AccountStatus, get_account, see2ai_client
from app.upstreams.see2ai.actions import Action

log = structlog.get_logger()

SYNC_SECONDS = 1.0
AWAY_SECONDS = 5.0  # between looks while they fail
PUSH_TIMEOUT_SECONDS = 2.0  # how long a visit waits to tell the others that it asks
OVERDUE_SECONDS = 5.0  # a probe is due for so long and no task's visit takes it: there may be no task left
MAX_REASON_LENGTH = 255
UNAVAILABLE_TEXT = "生成服务暂时不可用，请稍后重试"
PROBED_PROVIDER = "see2ai"  # the provider that can be asked without a task


async def acquire_permission(
    runtime: Runtime,
    breaker: CircuitBreaker,
    *,
    is_free: bool = False,
    for_poll: bool = False,
    probe_seconds: float | None = None,
) -> float:
    """Seconds to stay away from the provider; 0: ask now. Of all processes' visits one is the probe of a pause."""
    is_free = is_free or for_poll
    if for_poll:
        pause = breaker.poll_pause_seconds()
    else:
        pause = breaker.wait_seconds(is_free=is_free, probe_seconds=probe_seconds)
    if pause or not breaker.is_dirty or not breaker.is_probe(is_free=is_free):
        return pause
    await _try_to_push_state(runtime.database, breaker)
    return 0.0 if breaker.is_probe(is_free=is_free) else breaker.wait_seconds(is_free=is_free)


def reject_when_open(runtime: Runtime, action: Action, deadline_seconds: float) -> None:
    """Raises Unavailable once the provider's circuit has been open for as long as a task like this may wait at all.

    By then tasks have waited for it their whole time in vain, and what has lasted so long may well last as long
    again. Only a task can tell when it is over, so one is let in where none waits and nothing else speaks against it.
    It asks memory alone.
    """
    breaker = runtime.breakers[action.provider]
    if breaker.open_seconds() < deadline_seconds or breaker.admits_trial:
        return
    metrics.SUBMITS_REFUSED.labels(action.provider).inc()
    wait = max(breaker.seconds_until_probe(), 0.0) + OVERDUE_SECONDS
    raise Unavailable(UNAVAILABLE_TEXT, retry_after_seconds=math.ceil(wait))


def admit_trial(runtime: Runtime, action: Action, deadline_seconds: float) -> None:
    """`reject_when_open` once more as the task is stored: of those that came by one invitation the first takes it.

    It is taken this late so that a submit which fails, for want of points say, keeps nobody else out.
    """
    reject_when_open(runtime, action, deadline_seconds)
    runtime.breakers[action.provider].admit_trial()


class BreakerSync:
    """Keeps a process' circuits and the table together, until cancelled. One that `asks` also ends an idle outage."""

    def __init__(self, runtime: Runtime, *, probes: bool) -> None:
        self._runtime = runtime
        self._probes = probes
        self._overdue_seconds = -math.inf  # a worker that begins asks at once: perhaps it has a new key
        self._probing: asyncio.Task[None] | None = None

    async def run(self) -> None:
        try:
            while True:
                pause = SYNC_SECONDS if await self._sync() else AWAY_SECONDS
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._runtime.breakers.news.wait(), pause)
        finally:
            if self._probing is not None:
                await cancel_and_wait(self._probing)
            for breaker in self._runtime.breakers.values():
                await _try_to_push_state(self._runtime.database, breaker)

    async def _sync(self) -> bool:
        breakers, database = self._runtime.breakers, self._runtime.database
        breakers.news.clear()
        try:
            for breaker in list(breakers.values()):
                await push_state(database, breaker)
            await pull_states(self._runtime)
            if self._probes:
                await self._probe_idle()
        except Unavailable:
            return False  # the database is away, which is told where it is noticed
        except Exception as error:
            log.warning("providers_not_read", error=repr(error)[:300])
            return False
        return True

    async def _probe_idle(self) -> None:
        """While tasks wait, their visits are the probes. Where none does, the circuit would stay open for ever."""
        breaker = self._runtime.breakers[PROBED_PROVIDER]
        is_busy = breaker.admits_trial or (self._probing is not None and not self._probing.done())
        overdue_seconds, self._overdue_seconds = self._overdue_seconds, OVERDUE_SECONDS
        if breaker.is_open and not is_busy and -breaker.seconds_until_probe() >= overdue_seconds:
            self._probing = asyncio.create_task(
                self._probe(breaker, await _has_waiting_tasks(self._runtime, breaker.provider))
            )

    async def _probe(self, breaker: CircuitBreaker, is_awaited: bool) -> None:
        """`GET /api/v1/me` as a probe. It cannot tell whether jobs are taken: one that waits must try, or a new one."""
        breaker.start_probe()
        with breaker.call():
            await _try_to_push_state(self._runtime.database, breaker)
            if not breaker.is_probe():
                return
            account = await get_account(see2ai_client(self._runtime.upstreams))
            if account.status in {AccountStatus.KEY_REJECTED, AccountStatus.INSUFFICIENT_BALANCE}:
                breaker.trip(account.detail)
            elif account.status not in {AccountStatus.UNREACHABLE, AccountStatus.RATE_LIMITED}:
                breaker.half_open(invites=not is_awaited)


async def _has_waiting_tasks(runtime: Runtime, provider: str) -> bool:
    """Whether a task waits to be sent to the provider."""
    actions = [name for name, action in runtime.actions.items() if action.provider == provider]
    async with runtime.database.read(AWAY_SECONDS) as connection:
        return bool(await connection.scalar(_WAITING_TASKS, {"actions": actions}))


async def _try_to_push_state(database: Database, breaker: CircuitBreaker) -> None:
    try:
        async with asyncio.timeout(PUSH_TIMEOUT_SECONDS):
            await push_state(database, breaker)
    except Exception as error:  # in doubt the circuit decides alone: the row only spares the provider calls
        log.warning("provider_state_not_shared", provider=breaker.provider, error=repr(error)[:300])


@retry_on_conflict
async def push_state(database: Database, breaker: CircuitBreaker) -> None:
    """Tells the others what was found out here; where another was first, its word counts."""
    async with breaker.lock:
        if not breaker.is_dirty:
            return
        record, edits = breaker.state(), breaker.revision
        async with database.begin() as connection:
            is_first = await _write(connection, breaker.provider, record)
        if is_first:
            breaker.mark_synced(record, edits)
            return
        async with database.read() as connection:
            found = await _read(connection)
        breaker.load_state(found.get(breaker.provider, BreakerState()))


async def pull_states(runtime: Runtime) -> None:
    """What the others found out; at most one query in LOOK_SECONDS a process."""
    breakers, now = runtime.breakers, asyncio.get_running_loop().time()
    if now - breakers.read_at < SYNC_SECONDS * 0.9:
        return
    breakers.read_at = now
    known = {provider: breaker.version for provider, breaker in breakers.items()}
    async with runtime.database.read(AWAY_SECONDS) as connection:
        found = await _read(connection)
    for provider, version in known.items():
        breaker, record = breakers[provider], found.get(provider, BreakerState())
        # What was shared or found out here while the answer was on its way is newer than the answer.
        if breaker.version == version and not breaker.is_dirty and record.version != version:
            breaker.load_state(record)


async def _write(connection: Connection, provider: str, record: BreakerState) -> bool:
    """True where the row still was as `record` follows it."""
    if record.version == 0:
        first = {"provider": provider, "version": 0, **_columns(BreakerState()), "updated_at": utc_now()}
        await connection.execute(insert_ignore(connection.dialect.name, circuit_breakers, "provider").values(**first))
    fence = (circuit_breakers.c.provider == provider) & (circuit_breakers.c.version == bindparam("known"))
    done = await connection.execute(
        update(circuit_breakers)
        .where(fence)
        .values(version=record.version + 1, updated_at=utc_now(), **_columns(record)),
        {"known": record.version},
    )
    return bool(done.rowcount)


def _columns(record: BreakerState) -> dict[str, Any]:
    is_open = record.billable_open or record.free_open
    admits_trial = record.seconds_until_probe == -math.inf
    return {
        "billable_open": record.billable_open,
        "free_open": record.free_open,
        "reason": record.reason[:MAX_REASON_LENGTH],
        "pause_seconds": record.pause_seconds,
        "opened_at": utc_after(round(-record.open_seconds, 3)) if is_open else None,
        "open_until": utc_after(round(record.seconds_until_probe, 3)) if is_open and not admits_trial else None,
        "probe_until": utc_after(round(record.probe_seconds, 3)) if record.probe_seconds > 0 else None,
    }


async def _read(connection: Connection) -> Mapping[str, BreakerState]:
    rows = await connection.execute(_ALL)
    return {
        row.provider: BreakerState(
            row.version,
            row.billable_open,
            row.free_open,
            row.reason,
            row.pause_seconds,
            -_seconds_until(row.opened_at, row.now),
            _seconds_until(row.open_until, row.now, never=-math.inf),
            _seconds_until(row.probe_until, row.now),
        )
        for row in rows
    }


def _seconds_until(moment: datetime | None, now: datetime, never: float = 0.0) -> float:
    return never if moment is None else (moment - now).total_seconds()


_WAITING_TASKS = select(
    exists().where(
        tasks.c.next_run_at.is_not(None),  # not ended: few of all, and in an index
        tasks.c.step.in_(["prepare", "submit", "submitting"]),
        tasks.c.action.in_(bindparam("actions", expanding=True)),
    )
)
_ALL = select(*circuit_breakers.c, utc_now().label("now"))
