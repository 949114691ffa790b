"""Reads the circuit breakers' rows once a second, and ends an outage during which no task waits.

While tasks wait, their calls are the probes. Where none waits, the breaker would stay open for ever. So a worker calls
`GET /api/v1/me` as a probe. That answer cannot show whether jobs are accepted: a waiting task or a new submit must try.
"""

import asyncio
from collections.abc import Mapping

import structlog
from sqlalchemy import bindparam, exists, select

from app.database import Database
from app.errors import Unavailable
from app.tables import tasks
from app.upstreams.action import Action
from app.upstreams.breaker import OVERDUE_SECONDS, ROWS, CircuitBreaker
from app.upstreams.breaker_state import BreakerState
from app.upstreams.see2ai.account import AccountStatus, get_account
from app.upstreams.see2ai.client import See2aiClient

log = structlog.get_logger()

READ_SECONDS = 1.0
RETRY_SECONDS = 5.0  # between reads that fail
READ_TIMEOUT_SECONDS = 5.0
REFUSED = frozenset({AccountStatus.KEY_REJECTED, AccountStatus.INSUFFICIENT_BALANCE})
NO_ANSWER = frozenset({AccountStatus.UNREACHABLE, AccountStatus.RATE_LIMITED})


async def refresh_breakers(database: Database, breakers: Mapping[str, CircuitBreaker]) -> None:
    """Reads the rows once a second, until cancelled."""
    while True:
        is_read = await _read_breakers(database, breakers)
        await asyncio.sleep(READ_SECONDS if is_read else RETRY_SECONDS)


async def _read_breakers(database: Database, breakers: Mapping[str, CircuitBreaker]) -> bool:
    """One query for all providers. False where it fails."""
    known = {provider: breaker.state for provider, breaker in breakers.items()}
    try:
        async with database.read(READ_TIMEOUT_SECONDS) as connection:
            rows = {row.provider: row for row in await connection.execute(ROWS)}
    except Unavailable:  # the database is away: that is logged where it is noticed
        return False
    except Exception as error:
        log.warning("circuits_not_read", error=repr(error)[:300])
        return False
    for provider, state in known.items():
        if breakers[provider].state is state:  # else it was changed here while the answer was on its way
            breakers[provider].load(rows.get(provider))
    return True


async def probe_idle_breaker(
    database: Database, breaker: CircuitBreaker, see2ai: See2aiClient, actions: Mapping[str, Action]
) -> None:
    """Probes where no task does, until cancelled. A worker that starts probes at once: perhaps it has a new key."""
    await _read_breakers(database, {breaker.provider: breaker})
    await breaker.change(BreakerState.pause_ended)
    overdue_seconds = 0.0
    while True:
        if breaker.is_open and not breaker.state.admits_trial and -breaker.seconds_until_probe() >= overdue_seconds:
            try:
                await _probe(database, breaker, see2ai, actions)
            except Exception as error:
                log.warning("circuit_not_probed", provider=breaker.provider, error=repr(error)[:300])
        overdue_seconds = OVERDUE_SECONDS
        await asyncio.sleep(READ_SECONDS)


async def _probe(
    database: Database, breaker: CircuitBreaker, see2ai: See2aiClient, actions: Mapping[str, Action]
) -> None:
    async with breaker.call() as call:
        if call.probe is None:
            return
        account = await get_account(see2ai)
        if account.status in REFUSED:
            await breaker.trip(call, account.detail)
        elif account.status not in NO_ANSWER:
            is_awaited = await _has_waiting_tasks(database, actions, breaker.provider)
            await breaker.change(lambda state, now: state.half_open(now, admits_trial=not is_awaited))


async def _has_waiting_tasks(database: Database, actions: Mapping[str, Action], provider: str) -> bool:
    """Whether a task waits to be sent to the provider."""
    names = [name for name, action in actions.items() if action.provider == provider]
    async with database.read(READ_TIMEOUT_SECONDS) as connection:
        return bool(await connection.scalar(_WAITING_TASKS, {"actions": names}))


_WAITING_TASKS = select(
    exists().where(
        tasks.c.next_run_at.is_not(None),  # not ended: few of all, and in an index
        tasks.c.step.in_(["prepare", "submit", "submitting"]),
        tasks.c.action.in_(bindparam("actions", expanding=True)),
    )
)
