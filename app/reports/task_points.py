"""The path of a task's points: deducted, held, then settled or refunded, with the entries of the ledger and the lots.

An erased task still has its path, because the ledger keeps its numbers.
"""

from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Row, bindparam, select

from app.database import Database
from app.errors import NotFound
from app.tables import points_ledger as ledger
from app.tables import points_lot_uses as uses
from app.tables import points_lots as lots
from app.tables import tasks

MAX_TASK_NO_LENGTH = 40
PointsState = Literal["free", "held", "settled", "refunded"]


@dataclass(frozen=True, slots=True)
class TaskPoints:
    """`entries` are the ledger entries in their order, `lots` the expiring points that the task used."""

    task_no: str
    status: str
    points_cost: int
    state: PointsState
    entries: list[Row[*tuple[Any, ...]]]
    lots: list[Row[*tuple[Any, ...]]]


async def get_task_points(database: Database, user_id: int, task_no: str) -> TaskPoints:
    """Raises NotFound where it is not this user's task."""
    if len(task_no) > MAX_TASK_NO_LENGTH:
        raise NotFound("任务不存在")
    async with database.read() as connection:
        task = (await connection.execute(_TASK, {"user": user_id, "task_no": task_no})).one_or_none()
        if task is None or task.task_no != task_no:
            raise NotFound("任务不存在")
        entries = list(await connection.execute(_ENTRIES, {"task": task.id}))
        used = list(await connection.execute(_LOTS, {"task": task.id}))
    return TaskPoints(task.task_no, task.status, task.points_cost, _state(entries), entries, used)


def _state(entries: list[Row[*tuple[Any, ...]]]) -> PointsState:
    match entries[-1].kind if entries else None:
        case None:
            return "free"
        case "settle":
            return "settled"
        case "refund":
            return "refunded"
    return "held"


_TASK = select(tasks.c.id, tasks.c.task_no, tasks.c.status, tasks.c.points_cost).where(
    tasks.c.user_id == bindparam("user"), tasks.c.task_no == bindparam("task_no")
)
_ENTRIES = (
    select(
        ledger.c.id,
        ledger.c.seq,
        ledger.c.kind,
        ledger.c.points,
        ledger.c.held,
        ledger.c.balance_after,
        ledger.c.remark,
        ledger.c.created_at,
    )
    .where(ledger.c.task_id == bindparam("task"))
    .order_by(ledger.c.seq)
)
_LOTS = (
    select(uses.c.lot_id, uses.c.points, lots.c.expires_at)
    .join(lots, lots.c.id == uses.c.lot_id)
    .where(uses.c.task_id == bindparam("task"))
    .order_by(lots.c.expires_at, uses.c.lot_id)
)
