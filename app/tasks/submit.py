"""Submit: the price, the task and the deduction in one transaction, before SEE2AI hears of it; then the bell."""

import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import structlog
from sqlalchemy import BindParameter, bindparam, func, insert, select

from app import metrics
from app.database import CommitUnknown, DuplicateRow, repeat_on_conflict
from app.errors import InvalidParameter, TooManyTasks
from app.faults import fault_point
from app.points import ledger
from app.points.models import Model, get_model
from app.points.prices import quote
from app.runtime import Runtime
from app.see2ai.actions.action import fold_params
from app.see2ai.actions.fast_image import AUTO
from app.settings import Settings
from app.tables import points_accounts, tasks
from app.tasks.references import FIELD, read_references

log = structlog.get_logger()

REDRAWS = 5
_DIGITS_ALONE = str.maketrans("", "", "-T:.")
NEED_REFERENCES = frozenset({"image_to_image", "image_to_video", "image_normalize"})


@dataclass(frozen=True, slots=True)
class Submission:
    """What a caller asks for. `image_url` is kept as it came: a string, a list, or None."""

    model_name: str
    prompt: str
    image_url: Any = None
    params: dict[str, Any] = field(default_factory=dict)


async def submit_task(runtime: Runtime, user_id: int, asked: Submission) -> dict[str, Any]:
    """The stored task as a row, plus `balance` after the charge.

    Raises InvalidParameter, ModelNotFound, InsufficientPoints or TooManyTasks; then nothing is stored or taken.
    """
    for _ in range(REDRAWS):
        suffix = f"{secrets.randbelow(10**6):06d}"  # not to be guessed from others: result links hold it
        try:
            row = await _store(runtime, user_id, asked, suffix)
        except DuplicateRow:
            continue
        runtime.bell.ring()
        metrics.SUBMITTED.labels(asked.model_name).inc()
        log.info("task_submitted", task_no=row["task_no"], user_id=user_id, payload=row["request"])
        return row
    raise DuplicateRow("no free task number")


@repeat_on_conflict
async def _store(runtime: Runtime, user_id: int, asked: Submission, suffix: str) -> dict[str, Any]:
    row: dict[str, Any] | None = None
    try:
        async with runtime.sessions.begin() as session:
            model = await get_model(session, asked.model_name)
            row = build_row(runtime.settings, user_id, asked, model, suffix)
            stored = await session.execute(_INSERT, row)
            row["id"] = stored.lastrowid
            if row["points_cost"]:
                money = {"user_id": user_id, "task_id": row["id"], "cost": row["points_cost"]}
                await ledger.deduct(session, **money, remark=model.description)
            standing = (await session.execute(_STANDING, {"user": user_id})).one()
            if standing.running > runtime.settings.max_tasks_in_flight:
                raise TooManyTasks(runtime.settings.max_tasks_in_flight)
            row["balance"] = standing.balance or 0
            fault_point("submit.before_commit")
    except CommitUnknown:
        if row is None or not await _exists(runtime, row["task_no"]):
            raise
    fault_point("submit.after_commit")
    return row


async def _exists(runtime: Runtime, task_no: str) -> bool:
    """After an unheard COMMIT: whether it happened. If this cannot be told either, the caller gets a 503."""
    async with runtime.sessions.read() as session:
        return await session.scalar(select(tasks.c.id).where(tasks.c.task_no == task_no)) is not None


def build_row(settings: Settings, user_id: int, asked: Submission, model: Model, suffix: str) -> dict[str, Any]:
    """Everything the task will ever need, validated and frozen: its request to SEE2AI, its price, its deadline."""
    action = model.spec()
    references = read_references(asked.image_url, most=action.most_references, allowed=settings.egress_allowed)
    if model.task_type in NEED_REFERENCES and not references:
        raise InvalidParameter(FIELD, "不能为空")
    if references and model.task_type not in NEED_REFERENCES:
        raise InvalidParameter(FIELD, "不适用于该模型")
    if not asked.prompt.strip():
        raise InvalidParameter("prompt", "不能为空")
    if len(asked.prompt) > action.longest_prompt:
        raise InvalidParameter("prompt", f"不能超过 {action.longest_prompt} 个字符")
    params = fold_params(action, model.params, model.defaults, asked.params)
    request = action.build(asked.prompt, references, params)
    return {
        "task_no": task_number(model.now.astimezone(settings.zone), suffix),
        "user_id": user_id,
        "model_name": model.model_name,
        "task_type": model.task_type,
        "action": model.action,
        "prompt": asked.prompt,
        "image_url": asked.image_url or None,
        "params": asked.params,
        "request": request,
        "points_cost": quote(model),
        "status": "created",
        "progress": 0,
        "step": "prepare" if request.get("aspect_ratio") == AUTO else "submit",
        "next_run_at": model.now,
        "deadline_at": model.now + timedelta(seconds=settings.task_deadline_seconds),
        "steps": [],
        "created_at": model.now,
        "updated_at": model.now,
    }


def task_number(local: datetime, suffix: str) -> str:
    """`TASK-` + local time to the millisecond + `-` + digits that keep it unique (the guide's form)."""
    digits = local.isoformat(timespec="milliseconds")[:23].translate(_DIGITS_ALONE)
    return f"TASK-{digits}-{suffix}"


_INSERT = insert(tasks)
_user: BindParameter[int] = bindparam("user")
# Read while the account row is locked, so the count is exact: a user's submits pass one after the other.
# Where nothing is deducted (a price of 0) nothing is locked, and submits at the same moment may pass the cap.
_STANDING = select(
    select(points_accounts.c.available).where(points_accounts.c.user_id == _user).scalar_subquery().label("balance"),
    select(func.count())
    .select_from(tasks)
    .where(tasks.c.user_id == _user, tasks.c.completed_at.is_(None))
    .scalar_subquery()
    .label("running"),
)
