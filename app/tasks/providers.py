"""How a provider stands, told between processes: one row each in `provider_state`, which nobody has to be able to read.

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

from app import metrics
from app.database import Session, Sessions, insert_if_absent, repeat_on_conflict, utc_after, utc_now
from app.endings import cancel_and_wait
from app.errors import Unavailable
from app.runtime import Runtime
from app.see2ai.actions import Action
from app.see2ai.circuit import Circuit, BreakerState
from app.see2ai.tenant import Standing, read_tenant
from app.tables import provider_state, tasks

log = structlog.get_logger()

SYNC_SECONDS = 1.0
AWAY_SECONDS = 5.0  # between looks while they fail
SHARE_SECONDS = 2.0  # how long a visit waits to tell the others that it asks
OVERDUE_SECONDS = 5.0  # a probe is due for so long and no task's visit takes it: there may be no task left
LONGEST_REASON = 255
HOPELESS = "生成服务暂时不可用，请稍后重试"
PROBED_BY_US = "see2ai"  # the provider that can be asked without a task


async def ask_leave(
    runtime: Runtime,
    circuit: Circuit,
    *,
    is_look: bool = False,
    is_poll: bool = False,
    probe_seconds: float | None = None,
) -> float:
    """Seconds to stay away from the provider; 0: ask now. Of all processes' visits one is the probe of a pause."""
    is_look = is_look or is_poll
    if is_poll:
        pause = circuit.poll_pause_seconds()
    else:
        pause = circuit.wait_seconds(is_look=is_look, probe_seconds=probe_seconds)
    if pause or not circuit.is_news or not circuit.is_probe(is_look=is_look):
        return pause
    await _try_to_share(runtime.sessions, circuit)
    return 0.0 if circuit.is_probe(is_look=is_look) else circuit.wait_seconds(is_look=is_look)


def check_hope(runtime: Runtime, action: Action, deadline_seconds: float) -> None:
    """Raises Unavailable once the provider's circuit has been open for as long as a task like this may wait at all.

    By then tasks have waited for it their whole time in vain, and what has lasted so long may well last as long
    again. Only a task can tell when it is over, so one is let in where none waits and nothing else speaks against it.
    It asks memory alone.
    """
    circuit = runtime.circuits[action.provider]
    if circuit.open_seconds() < deadline_seconds or circuit.is_inviting:
        return
    metrics.SUBMITS_REFUSED.labels(action.provider).inc()
    wait = max(circuit.next_probe_seconds(), 0.0) + OVERDUE_SECONDS
    raise Unavailable(HOPELESS, retry_after_seconds=math.ceil(wait))


def let_in(runtime: Runtime, action: Action, deadline_seconds: float) -> None:
    """`check_hope` once more as the task is stored: of those that came by one invitation the first takes it.

    It is taken this late so that a submit which fails, for want of points say, keeps nobody else out.
    """
    check_hope(runtime, action, deadline_seconds)
    runtime.circuits[action.provider].let_in()


class ProviderWatch:
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
                    await asyncio.wait_for(self._runtime.circuits.news.wait(), pause)
        finally:
            if self._probing is not None:
                await cancel_and_wait(self._probing)
            for circuit in self._runtime.circuits.values():
                await _try_to_share(self._runtime.sessions, circuit)

    async def _sync(self) -> bool:
        circuits, sessions = self._runtime.circuits, self._runtime.sessions
        circuits.news.clear()
        try:
            for circuit in list(circuits.values()):
                await push_state(sessions, circuit)
            await read_all(self._runtime)
            if self._probes:
                await self._ask_where_nobody_does()
        except Unavailable:
            return False  # the database is away, which is told where it is noticed
        except Exception as error:
            log.warning("providers_not_read", error=repr(error)[:300])
            return False
        return True

    async def _ask_where_nobody_does(self) -> None:
        """While tasks wait, their visits are the probes. Where none does, the circuit would stay open for ever."""
        circuit = self._runtime.circuits[PROBED_BY_US]
        is_busy = circuit.is_inviting or (self._probing is not None and not self._probing.done())
        overdue_seconds, self._overdue_seconds = self._overdue_seconds, OVERDUE_SECONDS
        if circuit.is_open and not is_busy and -circuit.next_probe_seconds() >= overdue_seconds:
            self._probing = asyncio.create_task(self._probe(circuit, await _is_awaited(self._runtime, circuit.provider)))

    async def _probe(self, circuit: Circuit, is_awaited: bool) -> None:
        """`GET /api/v1/me` as a probe. It cannot tell whether jobs are taken: one that waits must try, or a new one."""
        circuit.take_probe()
        with circuit.call():
            await _try_to_share(self._runtime.sessions, circuit)
            if not circuit.is_probe():
                return
            tenant = await read_tenant(self._runtime.see2ai)
            if tenant.status in {Standing.KEY_REFUSED, Standing.PURSE_EMPTY}:
                circuit.trip(tenant.detail)
            elif tenant.status not in {Standing.UNREACHABLE, Standing.RATE_LIMITED}:
                circuit.looked_well(invites=not is_awaited)


async def _is_awaited(runtime: Runtime, provider: str) -> bool:
    """Whether a task waits to be sent to the provider."""
    actions = [name for name, action in runtime.actions.items() if action.provider == provider]
    async with runtime.sessions.read(AWAY_SECONDS) as session:
        return bool(await session.scalar(_AWAITED, {"actions": actions}))


async def _try_to_share(sessions: Sessions, circuit: Circuit) -> None:
    try:
        async with asyncio.timeout(SHARE_SECONDS):
            await push_state(sessions, circuit)
    except Exception as error:  # in doubt the circuit decides alone: the row only spares the provider calls
        log.warning("provider_state_not_shared", provider=circuit.provider, error=repr(error)[:300])


@repeat_on_conflict
async def push_state(sessions: Sessions, circuit: Circuit) -> None:
    """Tells the others what was found out here; where another was first, its word counts."""
    async with circuit.lock:
        if not circuit.is_news:
            return
        record, edits = circuit.state(), circuit.revision
        async with sessions.begin() as session:
            is_first = await _write(session, circuit.provider, record)
        if is_first:
            circuit.mark_synced(record, edits)
            return
        async with sessions.read() as session:
            found = await _read(session)
        circuit.adopt(found.get(circuit.provider, BreakerState()))


async def read_all(runtime: Runtime) -> None:
    """What the others found out; at most one query in LOOK_SECONDS a process."""
    circuits, now = runtime.circuits, asyncio.get_running_loop().time()
    if now - circuits.read_at < SYNC_SECONDS * 0.9:
        return
    circuits.read_at = now
    known = {provider: circuit.version for provider, circuit in circuits.items()}
    async with runtime.sessions.read(AWAY_SECONDS) as session:
        found = await _read(session)
    for provider, version in known.items():
        circuit, record = circuits[provider], found.get(provider, BreakerState())
        # What was shared or found out here while the answer was on its way is newer than the answer.
        if circuit.version == version and not circuit.is_news and record.version != version:
            circuit.adopt(record)


async def _write(session: Session, provider: str, record: BreakerState) -> bool:
    """True where the row still was as `record` follows it."""
    if record.version == 0:
        first = {"provider": provider, "version": 0, **_columns(BreakerState()), "updated_at": utc_now()}
        await session.execute(insert_if_absent(session.dialect.name, provider_state, "provider").values(**first))
    fence = (provider_state.c.provider == provider) & (provider_state.c.version == bindparam("known"))
    done = await session.execute(
        update(provider_state)
        .where(fence)
        .values(version=record.version + 1, updated_at=utc_now(), **_columns(record)),
        {"known": record.version},
    )
    return bool(done.rowcount)


def _columns(record: BreakerState) -> dict[str, Any]:
    is_open = record.refuses_jobs or record.refuses_looks
    is_inviting = record.next_probe_seconds == -math.inf
    return {
        "refuses_jobs": record.refuses_jobs,
        "refuses_looks": record.refuses_looks,
        "reason": record.reason[:LONGEST_REASON],
        "pause_seconds": record.pause_seconds,
        "opened_at": utc_after(round(-record.open_seconds, 3)) if is_open else None,
        "next_probe_at": utc_after(round(record.next_probe_seconds, 3)) if is_open and not is_inviting else None,
        "probe_until": utc_after(round(record.probe_seconds, 3)) if record.probe_seconds > 0 else None,
    }


async def _read(session: Session) -> Mapping[str, BreakerState]:
    rows = await session.execute(_ALL)
    return {
        row.provider: BreakerState(
            row.version,
            row.refuses_jobs,
            row.refuses_looks,
            row.reason,
            row.pause_seconds,
            -_seconds_until(row.opened_at, row.now),
            _seconds_until(row.next_probe_at, row.now, never=-math.inf),
            _seconds_until(row.probe_until, row.now),
        )
        for row in rows
    }


def _seconds_until(moment: datetime | None, now: datetime, never: float = 0.0) -> float:
    return never if moment is None else (moment - now).total_seconds()


_AWAITED = select(
    exists().where(
        tasks.c.next_run_at.is_not(None),  # not ended: few of all, and in an index
        tasks.c.step.in_(["prepare", "submit", "submitting"]),
        tasks.c.action.in_(bindparam("actions", expanding=True)),
    )
)
_ALL = select(*provider_state.c, utc_now().label("now"))
