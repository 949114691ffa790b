"""The webhook message of a task's end. Each receiver gets the same message at each attempt."""

from sqlalchemy import bindparam, select

from app.runtime import Runtime
from app.tables import tasks
from app.tasks.view import PUBLIC_COLUMNS, view_task
from app.webhooks.outbox import COMPLETED, FAILED
from app.webhooks.signing import Message, write_message

EVENT_TYPES = {"completed": COMPLETED, "failed": FAILED}


async def build_payload(runtime: Runtime, task_id: int) -> Message | None:
    """`data` is the task as GET answers it. The message id follows from the task's number. None: it is erased."""
    async with runtime.database.read() as connection:
        row = (await connection.execute(_ENDED, {"id": task_id})).one_or_none()
    if row is None:
        return None
    data = dict(view_task(runtime, dict(row._mapping)))
    return write_message(message_id(row.task_no), EVENT_TYPES[row.status], row.completed_at, data)


def message_id(task_no: str) -> str:
    return f"msg_{task_no}"


_ENDED = select(*PUBLIC_COLUMNS).where(tasks.c.id == bindparam("id"), tasks.c.erased_at.is_(None))
