"""What an admin changes at a task by hand: ends it with a refund, or closes a suspected orphan.

Both changes lock the task's row and raise its `version`, so a worker that holds the task loses it: its next write
changes nothing. A worker commits its intent by the same fence before it sends, so a task that is ended here is either
not sent any more, or is already on the step `submitting`.
"""

from typing import Any

import structlog
from sqlalchemy import Row, bindparam, select, update

from app.admin.actions import Action, ActionResult, Admin, Change, perform
from app.database import Connection, utc_now
from app.engine.finish import append_history, failed_columns, refund_task
from app.errors import ActionConflict, NotFound, TaskFailure
from app.runtime import Runtime
from app.tables import tasks
from app.tasks.queries import MAX_TASK_NO_LENGTH
from app.telemetry import metrics
from app.webhooks import outbox

log = structlog.get_logger()

MAY_RUN_UPSTREAM = frozenset({"submitting", "poll"})
"""On these steps the provider may have a job, and nothing can stop it there."""


async def end_task(
    runtime: Runtime, admin: Admin, task_no: str, *, may_run_upstream: bool, reason: str, ref: str | None
) -> ActionResult:
    """Fails a living task and refunds it.

    A task that is being sent, or that was accepted, is only ended with `may_run_upstream`: the provider may still run
    and charge its job, so the task becomes a suspected orphan. Raises NotFound, and ActionConflict for an ended task.
    """
    found: list[Row[Any]] = []

    async def change(connection: Connection) -> Change:
        row = await lock_task(connection, task_no)
        if row.step == "done":
            raise ActionConflict("任务已结束")
        is_orphan = row.step in MAY_RUN_UPSTREAM
        if is_orphan and not may_run_upstream:
            raise ActionConflict("SEE2AI 可能正在运行该任务，确认后请设置 mayRunUpstream 为 true，任务会标记为疑似孤儿")
        await _end_and_refund(connection, runtime, row, is_orphan=is_orphan, reason=reason)
        found[:] = [row]
        after = {"status": "failed", "step": "done", "suspectedOrphan": is_orphan, "pointsRefunded": row.points_cost}
        return Change({"status": row.status, "step": row.step}, after)

    action = Action("task.end", "task", task_no, {"mayRunUpstream": may_run_upstream}, reason, ref)
    result = await perform(runtime.database, admin, action, change)
    if result.applied:
        _record_end(found[0], is_orphan=result.after["suspectedOrphan"])
        runtime.pubsub.publish(found[0].user_id, task_no)
    return result


async def close_orphan(runtime: Runtime, admin: Admin, task_no: str, *, reason: str, ref: str | None) -> ActionResult:
    """Takes an ended task off the list of suspected orphans. `reason` joins the operator's note.

    Raises NotFound, and ActionConflict where the task is not on the list.
    """

    async def change(connection: Connection) -> Change:
        row = await lock_task(connection, task_no)
        if not row.suspected_orphan:
            raise ActionConflict("该任务不是疑似孤儿")
        note = "\n".join(filter(None, (row.operator_note, f"orphan closed: {reason}")))
        history = append_history(row.history, row.step, f"orphan closed by an admin: {reason}")
        values = {"suspected_orphan": False, "operator_note": note, "history": history}
        await change_task(connection, row, **values)
        return Change({"suspectedOrphan": True}, {"suspectedOrphan": False})

    action = Action("task.close_orphan", "task", task_no, reason=reason, ref=ref)
    return await perform(runtime.database, admin, action, change)


async def lock_task(connection: Connection, task_no: str) -> Row[Any]:
    """The task's row, locked until the commit. Raises NotFound."""
    row = None
    if len(task_no) <= MAX_TASK_NO_LENGTH and task_no.isascii():
        row = (await connection.execute(_LOCKED, {"task_no": task_no})).one_or_none()
    if row is None or row.task_no != task_no:
        raise NotFound("任务不存在")
    return row


async def change_task(connection: Connection, row: Row[Any], **columns: Any) -> None:
    """Writes a locked row under its next version."""
    await connection.execute(update(tasks).where(tasks.c.id == row.id).values(version=row.version + 1, **columns))


async def _end_and_refund(
    connection: Connection, runtime: Runtime, row: Row[Any], *, is_orphan: bool, reason: str
) -> None:
    note = f"ended by an admin at step {row.step}: {reason}"
    columns = failed_columns(TaskFailure.ENDED_BY_PLATFORM, note, is_orphan=is_orphan)
    history = append_history(row.history, "done", note)
    await change_task(connection, row, updated_at=utc_now(), history=history, **columns)
    await outbox.enqueue(connection, user_id=row.user_id, task_id=row.id, event=outbox.FAILED)
    await refund_task(connection, runtime.settings, row, f"任务终止退还 {row.task_no}")


def _record_end(row: Row[Any], *, is_orphan: bool) -> None:
    metrics.ENDED.labels(row.model_name, TaskFailure.ENDED_BY_PLATFORM.name).inc()
    log.info("task_ended", task_no=row.task_no, outcome=TaskFailure.ENDED_BY_PLATFORM.name, note="by an admin")
    if is_orphan:
        metrics.SUSPECTED_ORPHANS.inc()
        log.error("suspected_orphan", task_no=row.task_no, action=row.action, note=f"ended by an admin at {row.step}")


_LOCKED = select(tasks).where(tasks.c.task_no == bindparam("task_no")).with_for_update()
