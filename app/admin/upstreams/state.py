"""The breakers, the tasks that wait at each step, and the words of SEE2AI that the gateway does not know."""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import case, func, select

from app.database import Database, utc_now
from app.engine.state import UpstreamState
from app.runtime import Runtime
from app.tables import circuit_breakers, tasks
from app.upstreams.breaker import ROWS

MAX_TASKS_WITH_WORDS = 1000


@dataclass(frozen=True, slots=True)
class BreakerView:
    """A breaker as its row says. `state`: closed, open (until `until`), or trial: one new submit is let in."""

    provider: str
    state: str
    blocks_submits: bool = False
    blocks_polls: bool = False
    reason: str = ""
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class StepBacklog:
    """The living tasks at one step: how many, how many of them are due and wait for a worker, and the oldest one."""

    step: str
    tasks: int
    due: int
    held: int
    oldest: datetime
    oldest_seconds: float


async def read_breakers(runtime: Runtime) -> list[BreakerView]:
    """One entry for each provider. The rows are the truth; a provider without a row was never refused."""
    async with runtime.database.read() as connection:
        rows = {row.provider: row for row in await connection.execute(ROWS.order_by(circuit_breakers.c.provider))}
    return [_breaker(provider, rows.get(provider)) for provider in sorted({*rows, *runtime.upstreams})]


def _breaker(provider: str, row: Any) -> BreakerView:
    if row is None or not (row.billable_open or row.free_open):
        return BreakerView(provider, "closed")
    return BreakerView(
        provider,
        "trial" if row.open_until is None else "open",
        blocks_submits=bool(row.billable_open),
        blocks_polls=bool(row.free_open),
        reason=row.reason,
        since=row.opened_at,
        until=row.open_until,
    )


async def read_backlog(database: Database) -> list[StepBacklog]:
    """The steps that have living tasks, in the order of a task's way."""
    async with database.read() as connection:
        rows = (await connection.execute(_BACKLOG)).all()
    found = [
        StepBacklog(
            row.step,
            int(row.tasks),
            int(row.due or 0),
            int(row.held or 0),
            row.oldest,
            max((row.now - row.oldest).total_seconds(), 0.0),
        )
        for row in rows
    ]
    return sorted(found, key=lambda one: STEPS.index(one.step))


async def read_unknown_states(database: Database) -> list[tuple[str, int]]:
    """The unknown words of running jobs, and how many tasks have each. It reads MAX_TASKS_WITH_WORDS of them."""
    async with database.read() as connection:
        states = list(await connection.scalars(_WITH_WORDS))
    words = Counter(UpstreamState.from_json(state).unknown_state for state in states)
    return sorted((word, number) for word, number in words.items() if word)


STEPS = ("prepare", "submit", "submitting", "poll", "rehost", "done")
_BACKLOG = (
    select(
        tasks.c.step,
        func.count().label("tasks"),
        func.sum(case(((tasks.c.next_run_at <= utc_now()) & tasks.c.lease_until.is_(None), 1), else_=0)).label("due"),
        func.sum(case((tasks.c.lease_until > utc_now(), 1), else_=0)).label("held"),
        func.min(tasks.c.created_at).label("oldest"),
        utc_now().label("now"),
    )
    .where(tasks.c.next_run_at.is_not(None))  # not ended: few of all, and in an index
    .group_by(tasks.c.step)
)
_WITH_WORDS = (
    select(tasks.c.upstream_state)
    .where(
        tasks.c.next_run_at.is_not(None),
        tasks.c.step == "poll",
        func.instr(tasks.c.upstream_state, '"unknown_state"') > 0,
    )
    .limit(MAX_TASKS_WITH_WORDS)
)
