"""Typical durations of models, for progress and time estimates.

A periodic job writes the median of recent tasks to `model_durations`. Every process keeps the table in memory. A
duration lasts from SEE2AI's acceptance to the end of the task, so it does not include the wait for capacity.
"""

import asyncio
import statistics
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import structlog
from sqlalchemy import Row, func, select

from app.database import Database, retry_on_conflict, upsert, utc_now
from app.errors import Unavailable
from app.runtime import Runtime
from app.tables import model_durations, tasks
from app.upstreams.action import Action

log = structlog.get_logger()

REFRESH_SECONDS = 30.0
MAX_SAMPLES = 100  # per model, newest first; a median of more tasks would follow a change slowly
MIN_SAMPLES = 3  # fewer tasks may be exceptions
MAX_ROWS_READ = 1000
MAX_ROWS_BACK = 20_000  # bounds the search when few of the newest tasks are completed
MIN_SECONDS = 1.0
UNKNOWN_SECONDS = 60.0


def typical_seconds(durations: Mapping[str, float], model_name: str, action: Action | None) -> float:
    """The model's recent median, or the typical duration of its action.

    `action` is None for an older task whose action no longer exists.
    """
    return durations.get(model_name) or (action.typical_seconds if action else UNKNOWN_SECONDS)


async def update_durations(database: Database) -> int:
    """Writes the median of each model's newest completed tasks. Returns the number of models.

    A model with too few tasks keeps its earlier median.
    """
    durations: dict[str, list[float]] = defaultdict(list)
    async with database.read() as connection:
        for row in await connection.execute(_NEWEST):
            durations[row.model_name].append(_generation_seconds(row))
    samples = {model: seconds[:MAX_SAMPLES] for model, seconds in durations.items() if len(seconds) >= MIN_SAMPLES}
    await _write(database, samples)
    return len(samples)


def _generation_seconds(row: Row[*tuple[Any, ...]]) -> float:
    state = row.upstream_state or {}
    wait_seconds = float(state.get("accepted_age_seconds", state.get("accepted_age", 0)))  # the second key is former
    return float((row.completed_at - row.created_at).total_seconds()) - wait_seconds


@retry_on_conflict
async def _write(database: Database, samples: dict[str, list[float]]) -> None:
    async with database.begin() as connection:
        for model, seconds in sorted(samples.items()):
            row = {
                "model_name": model,
                "typical_seconds": max(round(statistics.median(seconds), 1), MIN_SECONDS),
                "samples": len(seconds),
                "updated_at": utc_now(),
            }
            dialect = connection.dialect.name
            await connection.execute(upsert(dialect, model_durations, "model_name", row, frozenset()))


async def refresh_durations(runtime: Runtime) -> None:
    """Reads the table into the process' memory every REFRESH_SECONDS, until cancelled."""
    while True:
        try:
            await read_durations(runtime)
        except Unavailable:
            pass  # the database layer has logged it
        except Exception as error:
            log.warning("durations_not_read", error=repr(error)[:300])
        await asyncio.sleep(REFRESH_SECONDS)


async def read_durations(runtime: Runtime) -> None:
    async with runtime.database.read() as connection:
        rows = await connection.execute(_ALL)
        runtime.durations.update({row.model_name: row.typical_seconds for row in rows})


_newest_id = select(func.max(tasks.c.id)).scalar_subquery()
_NEWEST = (
    select(tasks.c.model_name, tasks.c.created_at, tasks.c.completed_at, tasks.c.upstream_state)
    .where(tasks.c.status == "completed", tasks.c.id > _newest_id - MAX_ROWS_BACK)
    .order_by(tasks.c.id.desc())
    .limit(MAX_ROWS_READ)
)
_ALL = select(model_durations.c.model_name, model_durations.c.typical_seconds)
