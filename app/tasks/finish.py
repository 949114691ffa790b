"""Ends a task: its status and its settle or refund in one transaction, fenced; then everybody is told."""

from typing import Any

import structlog

from app import metrics
from app.database import repeat_on_conflict, utc_now
from app.faults import fault_point
from app.points import ledger
from app.runtime import Runtime
from app.tasks.claim import Visit, write
from app.tasks.decide import Complete, Fail

log = structlog.get_logger()


@repeat_on_conflict
async def finish_task(runtime: Runtime, visit: Visit, end: Complete | Fail, steps: list[dict[str, Any]]) -> bool:
    """True where this visit ended the task; False where another was first, and then nothing changes."""
    async with runtime.sessions.begin() as session:
        if not await write(session, visit, **_columns(visit, end), steps=steps):
            return False
        money = {"user_id": visit.user_id, "task_id": visit.id, "cost": visit.points_cost}
        if visit.points_cost and isinstance(end, Complete):
            await ledger.settle(session, **money)
        elif visit.points_cost:
            await ledger.refund(session, **money, remark=f"任务失败退还 {visit.task_no}")
        fault_point("finish.before_commit")
    fault_point("finish.after_commit")
    _count(visit, end)
    return True


def _columns(visit: Visit, end: Complete | Fail) -> dict[str, Any]:
    ended = {"step": "done", "next_run_at": None, "lease_until": None, "completed_at": utc_now()}
    if isinstance(end, Complete):
        return {**ended, "status": "completed", "progress": 100, "results": end.results}
    return {
        **ended,
        "status": "failed",
        "error_code": end.reason.name,
        "error_message": end.reason.value,
        "operator_note": end.note or None,
        "suspected_orphan": end.is_orphan,
        "upstream": visit.upstream,
    }


def _count(visit: Visit, end: Complete | Fail) -> None:
    outcome = "completed" if isinstance(end, Complete) else end.reason.name
    metrics.ENDED.labels(visit.model_name, outcome).inc()
    metrics.TASK_SECONDS.labels(visit.model_name).observe(max(visit.age_seconds(), 0))
    log.info("task_ended", task_no=visit.task_no, outcome=outcome, note=getattr(end, "note", ""))
    if isinstance(end, Fail) and end.is_orphan:
        metrics.SUSPECTED_ORPHANS.inc()
        log.error("suspected_orphan", task_no=visit.task_no, action=visit.action, note=end.note)
