"""Queries of tasks. Each has the caller's user id: another user's task is not found, with the same message."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, bindparam, func, select

from app.database import Database, like_contains
from app.errors import NotFound
from app.tables import tasks
from app.tasks.view import PUBLIC_COLUMNS

MAX_TASK_NO_LENGTH = 40


@dataclass(frozen=True, slots=True)
class Filters:
    """Filters of a list; None means any. Times have a zone; `end` includes its whole second."""

    task_type: str | None = None
    status: str | None = None
    model_name: str | None = None
    keyword: str | None = None
    start: datetime | None = None
    end: datetime | None = None


async def get_task(database: Database, user_id: int, task_no: str) -> dict[str, Any]:
    """The row for `view_task`. Raises NotFound where it is not this user's task."""
    if len(task_no) <= MAX_TASK_NO_LENGTH:
        async with database.read() as connection:
            row = (await connection.execute(_ONE, {"task_no": task_no, "user": user_id})).one_or_none()
        if row is not None and row.task_no == task_no:  # MySQL's padding collations find "x " for "x"
            return dict(row._mapping)
    raise NotFound("任务不存在")


async def list_tasks(
    database: Database, user_id: int, filters: Filters, *, page: int, size: int
) -> tuple[list[dict[str, Any]], int]:
    """One page, newest first, and the number of all matching tasks."""
    conditions = _conditions(user_id, filters)
    newest = select(*PUBLIC_COLUMNS).where(*conditions).order_by(tasks.c.created_at.desc(), tasks.c.id.desc())
    async with database.read() as connection:
        total = int(await connection.scalar(select(func.count()).select_from(tasks).where(*conditions)) or 0)
        rows = await connection.execute(newest.limit(size).offset((page - 1) * size))
        return [dict(row._mapping) for row in rows], total


def _conditions(user_id: int, filters: Filters) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [tasks.c.user_id == user_id]
    if filters.task_type:
        conditions.append(tasks.c.task_type == filters.task_type)
    if filters.status:
        conditions.append(tasks.c.status == filters.status)
    if filters.model_name:
        conditions.append(tasks.c.model_name == filters.model_name)
    if filters.keyword:
        pattern, escape = like_contains(filters.keyword)
        conditions.append(tasks.c.prompt.like(pattern, escape=escape))
    if filters.start:
        conditions.append(tasks.c.created_at >= filters.start)
    if filters.end:
        conditions.append(tasks.c.created_at <= filters.end.replace(microsecond=999_999))
    return conditions


async def get_task_for_operator(database: Database, task_no: str) -> dict[str, Any]:
    """The whole row with its history, for `gateway tasks show`. Never for callers."""
    async with database.read() as connection:
        row = (await connection.execute(select(tasks).where(tasks.c.task_no == task_no))).one_or_none()
    if row is None:
        raise NotFound("任务不存在")
    return dict(row._mapping)


_ONE = select(*PUBLIC_COLUMNS).where(tasks.c.task_no == bindparam("task_no"), tasks.c.user_id == bindparam("user"))
