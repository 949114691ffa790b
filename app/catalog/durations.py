"""How long each model lately took: a chore writes it to `model_durations`, every process keeps it in memory.

What is counted is the time between SEE2AI's acceptance and the end, so that a day of waiting for its capacity makes no
model look slow. One figure a model, also for videos, whose length and resolution matter: it is for estimates only.
"""

import asyncio
import statistics
from collections import defaultdict
from typing import Any

import structlog
from sqlalchemy import Row, func, select

from app.database import Database, retry_on_conflict, upsert, utc_now
from app.errors import Unavailable
from app.runtime import Runtime
from app.tables import model_durations, tasks

log = structlog.get_logger()

REFRESH_SECONDS = 30.0
MAX_SAMPLES = 100  # a model's newest: a median of more would be slow to follow a change
MIN_SAMPLES = 3  # one or two may be flukes
MAX_ROWS_READ = 1000
MAX_ROWS_BACK = 20_000  # rows: where hardly any task completes, the table is not searched to its beginning
MIN_SECONDS = 1.0
UNKNOWN_SECONDS = 60.0


def typical_seconds(runtime: Runtime, model_name: str, action: str) -> float:
    """The model's recent median, or what its action usually takes. It asks memory alone."""
    offered = runtime.actions.get(action)  # a task may be of a release that offered more
    return runtime.durations.get(model_name) or (offered.typical_seconds if offered else UNKNOWN_SECONDS)


async def update_durations(database: Database) -> int:
    """The median of each model's newest completed tasks; of how many models. A model not seen keeps its figure."""
    taken: dict[str, list[float]] = defaultdict(list)
    async with database.read() as connection:
        for row in await connection.execute(_NEWEST):
            taken[row.model_name].append(_generation_seconds(row))
    learnt = {model: seconds[:MAX_SAMPLES] for model, seconds in taken.items() if len(seconds) >= MIN_SAMPLES}
    await _write(database, learnt)
    return len(learnt)


def _generation_seconds(row: Row[*tuple[Any, ...]]) -> float:
    state = row.upstream_state or {}
    waited = float(state.get("accepted_age_seconds", state.get("accepted_age", 0)))  # the latter until release 0.1.0
    return float((row.completed_at - row.created_at).total_seconds()) - waited


@retry_on_conflict
async def _write(database: Database, learnt: dict[str, list[float]]) -> None:
    async with database.begin() as connection:
        for model, seconds in sorted(learnt.items()):
            row = {
                "model_name": model,
                "typical_seconds": max(round(statistics.median(seconds), 1), MIN_SECONDS),
                "samples": len(seconds),
                "updated_at": utc_now(),
            }
            dialect = connection.dialect.name
            await connection.execute(upsert(dialect, model_durations, "model_name", row, frozenset()))


async def refresh_durations(runtime: Runtime) -> None:
    """Keeps the process' memory as the table is, until cancelled; while that cannot be read, as it was."""
    while True:
        try:
            await read_durations(runtime)
        except Unavailable:
            pass  # the database is away, which is told where it is noticed
        except Exception as error:
            log.warning("durations_not_read", error=repr(error)[:300])
        await asyncio.sleep(REFRESH_SECONDS)


async def read_durations(runtime: Runtime) -> None:
    async with runtime.database.read() as connection:
        rows = await connection.execute(_ALL)
        runtime.durations.update({row.model_name: row.typical_seconds for row in rows})


_last = select(func.max(tasks.c.id)).scalar_subquery()
_NEWEST = (
    select(tasks.c.model_name, tasks.c.created_at, tasks.c.completed_at, tasks.c.upstream_state)
    .where(tasks.c.status == "completed", tasks.c.id > _last - MAX_ROWS_BACK)
    .order_by(tasks.c.id.desc())
    .limit(MAX_ROWS_READ)
)
_ALL = select(model_durations.c.model_name, model_durations.c.typical_seconds)
