"""Random sequences of grants, submits, corrections, ends and expiry, each compared with arithmetic and audited."""

import asyncio
import contextlib
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, update

from app.database import Database, open_database, utc_now
from app.errors import InsufficientPoints
from app.points import ledger
from app.points.audit.checks import audit
from app.points.balance import get_balance
from app.points.expiry import expire_lots
from app.settings import Settings
from app.tables import tasks
from tests.support.lots import all_lots, in_hours, later
from tests.support.run import examples

USER, GRACE_DAYS = 7, 1


@dataclass
class Task:
    cost: int
    drawn: list[tuple["Lot", int]]
    from_pool: int


@dataclass
class Lot:
    until: int
    points: int
    swept: bool = False


@dataclass
class Model:
    """The expected books. Time passes only in the step that says so."""

    hour: int = 0
    pool: int = 0
    lots: list[Lot] = field(default_factory=list)
    running: dict[int, Task] = field(default_factory=dict)

    def live(self) -> list[Lot]:
        return sorted((lot for lot in self.lots if lot.points and lot.until > self.hour), key=lambda lot: lot.until)

    @property
    def spendable_points(self) -> int:
        return self.pool + sum(lot.points for lot in self.live())

    def sweep(self) -> int:
        over = [lot for lot in self.lots if lot.points and lot.until <= self.hour]
        ended = sum(lot.points for lot in over)
        for lot in over:
            lot.points, lot.swept = 0, True
        return ended

    def submit(self, number: int, cost: int) -> bool:
        if cost > self.spendable_points:
            return False
        self.sweep()
        task = Task(cost, [], cost)
        for lot in self.live():
            points = min(lot.points, task.from_pool)
            if points:
                lot.points -= points
                task.from_pool -= points
                task.drawn.append((lot, points))
        self.pool -= task.from_pool
        self.running[number] = task
        return True

    def refund(self, task: Task) -> None:
        self.pool += task.from_pool
        for lot, points in sorted(task.drawn, key=lambda draw: self.lots.index(draw[0])):
            if lot.swept or lot.until <= self.hour:
                self.lots.append(Lot(self.hour + 24 * GRACE_DAYS, points))
            else:
                lot.points += points


class Books:
    """The real ledger, one step at a time, beside its model."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.model = Model()
        self.number = 0

    async def step(self, kind: str, first: int, second: int) -> None:
        self.number += 1
        await getattr(self, kind)(first, second)
        assert await audit(self.database) == []
        await self.agree()

    async def agree(self) -> None:
        found, model = await get_balance(self.database, USER), self.model
        held = sum(task.cost for task in model.running.values())
        assert (found.available, found.held) == (model.spendable_points, held)
        assert (found.expires is None) == (not model.live())
        assert [lot.remaining for lot in await all_lots(self.database)] == [lot.points for lot in model.lots]

    async def grant(self, points: int, _: int) -> None:
        await ledger.grant(self.database, user_id=USER, points=points, ref=f"n{self.number}")
        self.model.pool += points

    async def grant_for_a_time(self, points: int, hours: int) -> None:
        top_up = {"user_id": USER, "points": points, "ref": f"n{self.number}"}
        await ledger.grant(self.database, **top_up, expires=in_hours(hours))
        self.model.lots.append(Lot(self.model.hour + hours, points))

    async def submit(self, cost: int, _: int) -> None:
        money = {"user_id": USER, "task_id": self.number, "cost": cost}
        refused = contextlib.nullcontext()
        if not self.model.submit(self.number, cost):
            refused = pytest.raises(InsufficientPoints, match=f"当前余额 {self.model.spendable_points}，")
        with refused:
            async with self.database.begin() as connection:
                await connection.execute(insert(tasks).values(_row(self.number, cost)))
                await ledger.deduct(connection, **money, remark="")

    async def end(self, which: int, outcome: int) -> None:
        if not self.model.running:
            return
        number = list(self.model.running)[which % len(self.model.running)]
        task = self.model.running.pop(number)
        money = {"user_id": USER, "task_id": number, "cost": task.cost}
        ended = {"step": "done", "next_run_at": None, "completed_at": utc_now()}
        outcome_columns = {"status": "failed", "error_code": "X"} if outcome % 2 else {"status": "completed"}
        async with self.database.begin() as connection:
            changes = ended | outcome_columns | ({} if outcome % 2 else {"results": [1]})
            await connection.execute(update(tasks).where(tasks.c.id == number).values(**changes))
            if outcome % 2:
                await ledger.refund(connection, **money, remark="", grace_days=GRACE_DAYS)
                self.model.refund(task)
            else:
                await ledger.settle(connection, **money)

    async def adjust(self, points: int, sign: int) -> None:
        """A correction takes points as a task does, and never gives them back."""
        change = {"user_id": USER, "ref": f"adjust:{self.number}", "remark": ""}
        if sign % 2:
            async with self.database.begin() as connection:
                await ledger.adjust(connection, points=points, **change)
            self.model.pool += points
            return
        is_enough = self.model.submit(-self.number, points)
        self.model.running.pop(-self.number, None)
        expected = contextlib.nullcontext() if is_enough else pytest.raises(InsufficientPoints)
        with expected:
            async with self.database.begin() as connection:
                await ledger.adjust(connection, points=-points, **change)

    async def wait(self, _: int, hours: int) -> None:
        await later(self.database, hours)
        self.model.hour += hours

    async def sweep(self, _first: int, _second: int) -> None:
        assert (await expire_lots(self.database)).points == self.model.sweep()


def _row(number: int, cost: int) -> dict[str, object]:
    words = {"task_no": f"TASK-{number}", "model_name": "m", "task_type": "t", "action": "a", "prompt": "p"}
    blank = {"params": {}, "upstream_request": {}, "history": [], "status": "created", "step": "submit"}
    times = dict.fromkeys(("next_run_at", "deadline_at", "created_at", "updated_at"), utc_now())
    return words | blank | times | {"id": number, "user_id": USER, "points_cost": cost}


STEPS = st.sampled_from(["grant", "grant_for_a_time", "submit", "submit", "end", "end", "adjust", "wait", "sweep"])


@given(steps=st.lists(st.tuples(STEPS, st.integers(1, 60), st.integers(1, 30)), min_size=1, max_size=30))
@settings(max_examples=examples(12, 40), deadline=None)
def test_books_agree_with_arithmetic(empty_sqlite: Path, steps: list[tuple[str, int, int]]) -> None:
    async def run(path: Path) -> None:
        database = open_database(Settings(_env_file=None, database_url=f"sqlite+aiosqlite:///{path}"))
        try:
            books = Books(database)
            for step in steps:
                await books.step(*step)
        finally:
            await database.close()

    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(empty_sqlite, path := Path(folder) / "books.db")
        asyncio.run(run(path))
