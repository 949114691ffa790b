"""Running tasks on step `poll`, written directly into the tables. The audit finds no fault in them.

Thousands of submits would take longer than the measurement itself.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import func, insert, select, text, update

from app.accounts.users import create_user
from app.catalog.models import get_model
from app.database import open_database, retry_on_conflict, utc_now
from app.points import ledger
from app.runtime import open_runtime
from app.settings import Settings
from app.tables import points_accounts, points_ledger, tasks
from app.tasks.submit import new_task_row
from app.tasks.validation import Submission
from bench.callers import PROMPT

OLD = timedelta(minutes=5)  # old enough for the longest pause between polls
FAR = timedelta(days=1)
ROWS_AT_ONCE = 2000
_DEFER = "UPDATE tasks SET next_run_at = UTC_TIMESTAMP(3) + INTERVAL 1 HOUR WHERE lease_until IS NULL"
_MAKE_DUE = "UPDATE tasks SET next_run_at = UTC_TIMESTAMP(3) WHERE lease_until IS NULL"
_SPREAD_DUE = (
    "UPDATE tasks SET next_run_at = UTC_TIMESTAMP(3) + INTERVAL RAND() * :seconds * 1000000 MICROSECOND"
    " WHERE lease_until IS NULL AND id <= :number"
)
_waiting = select(tasks.c.upstream_task_id, tasks.c.next_run_at).where(
    tasks.c.step == "poll", tasks.c.lease_until.is_(None)
)


class SeededTasks:
    """`number` tasks of one user, in a database of their own. `ids` are their ids at SEE2AI."""

    def __init__(self, settings: Settings, number: int) -> None:
        self._settings = settings
        self._database = open_database(settings)
        self.ids = [f"bench-{place:08d}" for place in range(number)]

    async def create(self) -> None:
        """Writes the tasks, none of them due, and their holds."""
        user_id = await create_user(self._database)
        async with self._database.read() as connection:
            model = await get_model(connection, "sc_soraimg_text_1x1")
        number, cost = len(self.ids), model.points_cost
        await ledger.grant(self._database, user_id=user_id, points=cost * number, ref="bench")
        async with open_runtime(self._settings) as runtime:
            common = new_task_row(runtime, user_id, Submission(model.model_name, PROMPT), model, "000000")
        now = datetime.now(UTC)
        common |= {"status": "processing", "step": "poll", "upstream_state": {}, "next_run_at": now + FAR}
        common |= {"created_at": now - OLD, "deadline_at": now + FAR}
        rows = [
            common | {"id": place, "task_no": f"BENCH-{place}", "upstream_task_id": upstream_id}
            for place, upstream_id in enumerate(self.ids, 1)
        ]
        entries = [_deduction(user_id, place, cost, number) for place in range(1, number + 1)]
        for start in range(0, number, ROWS_AT_ONCE):
            await self._write(insert(tasks), rows[start : start + ROWS_AT_ONCE])
            await self._write(insert(points_ledger).values(created_at=utc_now()), entries[start : start + ROWS_AT_ONCE])
        await self._write(
            update(points_accounts).values(available=0, held=cost * number, seq=number + 1, updated_at=utc_now()), {}
        )

    async def make_due(self) -> None:
        """Makes every task due that no worker has claimed."""
        await self._write(text(_MAKE_DUE), {})

    async def spread_due(self, seconds: float, number: int | None = None) -> None:
        """Makes the first `number` tasks, or all, due at random moments within `seconds`."""
        await self._write(text(_SPREAD_DUE), {"seconds": seconds, "number": number or len(self.ids)})

    async def due_times(self, upstream_id: str | None = None) -> dict[str, float]:
        """When the tasks that wait for their next poll are due, as Unix time by their id at SEE2AI. Of one, or all."""
        statement = _waiting if upstream_id is None else _waiting.where(tasks.c.upstream_task_id == upstream_id)
        async with self._database.read() as connection:
            return {row.upstream_task_id: row.next_run_at.timestamp() for row in await connection.execute(statement)}

    async def defer(self) -> None:
        """Defers every task by an hour."""
        await self._write(text(_DEFER), {})

    async def count_running(self) -> int:
        async with self._database.read() as connection:
            return int(await connection.scalar(func.count(tasks.c.id).select().where(tasks.c.step == "poll")))

    async def close(self) -> None:
        await self._database.close()

    async def _write(self, statement: Any, values: Any) -> None:
        await retry_on_conflict(self._write_once)(statement, values)

    async def _write_once(self, statement: Any, values: Any) -> None:
        async with self._database.begin() as connection:
            await connection.execute(statement, values)


def _deduction(user_id: int, task_id: int, cost: int, number: int) -> dict[str, Any]:
    return {
        "user_id": user_id,
        "seq": task_id + 1,
        "kind": "deduct",
        "points": -cost,
        "held": cost,
        "balance_after": cost * (number - task_id),
        "task_id": task_id,
        "phase": "open",
        "ref": None,
        "remark": "",
    }
