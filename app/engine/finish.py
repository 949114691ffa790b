"""Ends a task: its status, its settle or refund, and its webhook deliveries in one fenced transaction."""

from datetime import UTC, datetime
from typing import Any

import structlog
from sqlalchemy import Row

from app.accounts.keys.budgets import release_budget
from app.accounts.keys.caps import local_day
from app.database import Connection, retry_on_conflict, utc_now
from app.engine.claim import fenced_update
from app.engine.state import ClaimedTask
from app.engine.transitions import Complete, Fail
from app.errors import TaskFailure
from app.failpoints import failpoint
from app.points import ledger
from app.runtime import Runtime
from app.settings import Settings
from app.telemetry import metrics
from app.webhooks import outbox

log = structlog.get_logger()

MAX_HISTORY = 40


@retry_on_conflict
async def finish_task(runtime: Runtime, task: ClaimedTask, end: Complete | Fail, history: list[dict[str, Any]]) -> bool:
    """True where this worker ended the task; False where another was first, and then nothing changes."""
    async with runtime.database.begin() as connection:
        if not await fenced_update(connection, task, **_columns(task, end), history=history):
            return False
        event = outbox.COMPLETED if isinstance(end, Complete) else outbox.FAILED
        await outbox.enqueue(connection, user_id=task.user_id, task_id=task.id, event=event)
        if isinstance(end, Complete):
            await _settle(connection, runtime.settings, task)
        else:
            await refund_task(connection, runtime.settings, task, f"任务失败退还 {task.task_no}")
        failpoint("finish.before_commit")
    failpoint("finish.after_commit")
    _record_end(task, end)
    return True


async def refund_task(
    connection: Connection, settings: Settings, task: ClaimedTask | Row[*tuple[Any, ...]], remark: str
) -> None:
    """Gives the points of a failed task back: to its user, and to the budget of its API key."""
    if task.points_cost:
        amounts = {"user_id": task.user_id, "task_id": task.id, "cost": task.points_cost}
        await ledger.refund(connection, **amounts, remark=remark, grace_days=settings.refund_grace_days)
    await _release_budget(connection, settings, task, refund=task.points_cost)


async def _settle(connection: Connection, settings: Settings, task: ClaimedTask) -> None:
    if task.points_cost:
        await ledger.settle(connection, user_id=task.user_id, task_id=task.id, cost=task.points_cost)
    await _release_budget(connection, settings, task, refund=0)


async def _release_budget(
    connection: Connection, settings: Settings, task: ClaimedTask | Row[*tuple[Any, ...]], *, refund: int
) -> None:
    if task.key_id is None:
        return
    if not task.points_cost:  # the budget changes only under the lock of the account, which the ledger has else taken
        await ledger.lock_account(connection, task.user_id)
    day = local_day(task.created_at, settings.zone)
    await release_budget(connection, task.key_id, task.end_user, day=day, refund=refund)


def _columns(task: ClaimedTask, end: Complete | Fail) -> dict[str, Any]:
    if isinstance(end, Complete):
        return {**_ended_columns(), "status": "completed", "progress": 100, "results": end.results}
    failed = failed_columns(end.reason, end.note, is_orphan=end.is_orphan)
    return failed | {"upstream_state": task.upstream_state.to_json()}


def failed_columns(reason: TaskFailure, note: str = "", *, is_orphan: bool = False) -> dict[str, Any]:
    """The columns of a failed task. The refund belongs into the same transaction."""
    return {
        **_ended_columns(),
        "status": "failed",
        "error_code": reason.name,
        "error_message": reason.value,
        "operator_note": note or None,
        "suspected_orphan": is_orphan,
    }


def _ended_columns() -> dict[str, Any]:
    return {"step": "done", "next_run_at": None, "lease_until": None, "completed_at": utc_now()}


def append_history(history: list[dict[str, Any]], step: str, note: str) -> list[dict[str, Any]]:
    """A task's history with one more line, for `gateway tasks show`."""
    line = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "step": step, "note": note[:300]}
    return [*history, line][-MAX_HISTORY:]


def _record_end(task: ClaimedTask, end: Complete | Fail) -> None:
    outcome = "completed" if isinstance(end, Complete) else end.reason.name
    metrics.ENDED.labels(task.model_name, outcome).inc()
    metrics.TASK_SECONDS.labels(task.model_name).observe(max(task.age_seconds(), 0))
    log.info("task_ended", task_no=task.task_no, outcome=outcome, note=getattr(end, "note", ""))
    if isinstance(end, Fail) and end.is_orphan:
        metrics.SUSPECTED_ORPHANS.inc()
        log.error("suspected_orphan", task_no=task.task_no, action=task.action, note=end.note)
