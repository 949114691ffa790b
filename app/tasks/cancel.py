"""Cancels a task before its job is sent to the upstream: end and refund in one transaction.

A normalized reference costs money at SEE2AI, so a task that started one cannot be cancelled. A worker that holds the
task loses it by the version, and sends nothing.
"""

from typing import Any

import structlog
from sqlalchemy import bindparam, select, update

from app.database import retry_on_conflict, utc_now
from app.engine.finish import append_history, failed_columns, refund_task
from app.engine.state import UpstreamState
from app.errors import NotCancellable, NotFound, TaskFailure
from app.runtime import Runtime
from app.tables import tasks
from app.tasks.queries import MAX_TASK_NO_LENGTH, get_task
from app.telemetry import metrics
from app.webhooks import outbox

log = structlog.get_logger()

CANCELLABLE = frozenset({"prepare", "submit"})


async def cancel_task(runtime: Runtime, user_id: int, task_no: str) -> dict[str, Any]:
    """The cancelled row; a repeat gives the same. Raises NotFound, or NotCancellable once the job was sent."""
    if len(task_no) > MAX_TASK_NO_LENGTH:
        raise NotFound("任务不存在")
    if await _cancel(runtime, user_id, task_no):
        log.info("task_cancelled", task_no=task_no, user_id=user_id)
        runtime.pubsub.publish(user_id, task_no)
    return await get_task(runtime.database, user_id, task_no)


@retry_on_conflict
async def _cancel(runtime: Runtime, user_id: int, task_no: str) -> bool:
    """True where this call cancelled the task; False where an earlier one did."""
    async with runtime.database.begin() as connection:
        row = (await connection.execute(_OWN_TASK, {"user": user_id, "task_no": task_no})).one_or_none()
        if row is None or row.task_no != task_no:
            raise NotFound("任务不存在")
        if row.error_code == TaskFailure.CANCELLED.name:
            return False
        if row.step not in CANCELLABLE:
            raise NotCancellable
        if UpstreamState.from_json(row.upstream_state).is_normalize_started:
            raise NotCancellable
        columns = failed_columns(TaskFailure.CANCELLED)
        history = append_history(row.history, "done", "cancelled by its owner")
        statement = update(tasks).where(tasks.c.id == row.id)
        await connection.execute(
            statement.values(version=row.version + 1, updated_at=utc_now(), history=history, **columns)
        )
        await outbox.enqueue(connection, user_id=user_id, task_id=row.id, event=outbox.FAILED)
        await refund_task(connection, runtime.settings, row, f"任务取消退还 {task_no}")
    metrics.ENDED.labels(row.model_name, TaskFailure.CANCELLED.name).inc()
    return True


_OWN_TASK = (
    select(
        tasks.c.id,
        tasks.c.task_no,
        tasks.c.user_id,
        tasks.c.model_name,
        tasks.c.step,
        tasks.c.upstream_state,
        tasks.c.version,
        tasks.c.history,
        tasks.c.points_cost,
        tasks.c.error_code,
        tasks.c.key_id,
        tasks.c.end_user,
        tasks.c.created_at,
    )
    .where(
        tasks.c.user_id == bindparam("user"),
        tasks.c.task_no == bindparam("task_no"),
        tasks.c.erased_at.is_(None),
    )
    .with_for_update()
)
