"""Submit: the price, the task and the deduction in one transaction, before SEE2AI hears of it; then the bell."""

import secrets
from datetime import datetime, timedelta
from typing import Any

import structlog
from sqlalchemy import BindParameter, bindparam, func, insert, select

from app.catalog.models import Model, get_model
from app.database import CommitUnknown, UniqueViolation, retry_on_conflict
from app.engine.state import UpstreamState
from app.engine.steps.prepare import needs_preparation
from app.errors import TooManyTasks
from app.failpoints import failpoint
from app.points import ledger
from app.points.balance import get_balance
from app.runtime import Runtime
from app.tables import points_accounts, tasks
from app.tasks.idempotency import find_replay
from app.tasks.validation import Submission, prepare_task
from app.telemetry import metrics

log = structlog.get_logger()

MAX_NUMBER_ATTEMPTS = 5
_DIGITS_ALONE = str.maketrans("", "", "-T:.")


async def submit_task(runtime: Runtime, user_id: int, asked: Submission) -> dict[str, Any]:
    """The stored task as a row, plus `balance` after the charge; `replayed` where a submit of the same key stored it.

    Raises InvalidParameter, ModelNotFound, InsufficientPoints, TooManyTasks or IdempotencyConflict; then nothing is
    stored or taken.
    """
    for _ in range(MAX_NUMBER_ATTEMPTS):
        if asked.key is not None and (earlier := await find_replay(runtime.database, user_id, asked)):
            return earlier
        suffix = f"{secrets.randbelow(10**6):06d}"  # not to be guessed from others: result links hold it
        try:
            row = await _store(runtime, user_id, asked, suffix)
        except UniqueViolation:  # the number is taken, or a twin under the same key was a moment faster
            continue
        runtime.wakeup.notify()
        metrics.SUBMITTED.labels(asked.model_name).inc()
        log.info("task_submitted", task_no=row["task_no"], user_id=user_id, payload=row["upstream_request"])
        return row
    raise UniqueViolation("no free task number")


@retry_on_conflict
async def _store(runtime: Runtime, user_id: int, asked: Submission, suffix: str) -> dict[str, Any]:
    row: dict[str, Any] | None = None
    try:
        async with runtime.database.begin() as connection:
            model = await get_model(connection, asked.model_name)
            row = new_task_row(runtime, user_id, asked, model, suffix)
            stored = await connection.execute(_INSERT, row)
            row["id"] = stored.lastrowid
            if row["points_cost"]:
                money = {"user_id": user_id, "task_id": row["id"], "cost": row["points_cost"]}
                await ledger.deduct(connection, **money, remark=model.description)
            else:
                await ledger.lock_account(connection, user_id)
            standing = (await connection.execute(_STANDING, {"user": user_id})).one()
            if standing.running > runtime.settings.max_tasks_in_flight:
                raise TooManyTasks(runtime.settings.max_tasks_in_flight)
            # After a deduction nothing lapsed is left in it; a free task has swept nothing.
            row["balance"] = standing.balance if row["points_cost"] else await ledger.balance_of(connection, user_id)
            patience = row["deadline_at"] - row["created_at"]
            breaker = runtime.breakers[runtime.actions[row["action"]].provider]
            await breaker.admit_trial(connection, patience.total_seconds())
            failpoint("submit.before_commit")
    except CommitUnknown:
        if row is None or not await _exists(runtime, row["task_no"]):
            raise
    failpoint("submit.after_commit")
    return row


async def _exists(runtime: Runtime, task_no: str) -> bool:
    """After an unheard COMMIT: whether it happened. If this cannot be told either, the caller gets a 503."""
    async with runtime.database.read() as connection:
        return await connection.scalar(select(tasks.c.id).where(tasks.c.task_no == task_no)) is not None


def new_task_row(runtime: Runtime, user_id: int, asked: Submission, model: Model, suffix: str) -> dict[str, Any]:
    """Everything the task will ever need, validated and frozen: its request to SEE2AI, its price, its deadline."""
    settings = runtime.settings
    prepared = prepare_task(runtime, asked, model)
    deadline_seconds = prepared.action.deadline_seconds(settings)
    runtime.breakers[prepared.action.provider].reject_when_open(deadline_seconds)
    return {
        "task_no": task_number(model.now.astimezone(settings.zone), suffix),
        "user_id": user_id,
        "model_name": model.model_name,
        "task_type": model.task_type,
        "action": model.action,
        "prompt": asked.prompt,
        "image_url": asked.image_url or None,
        "params": asked.params,
        "upstream_request": prepared.request,
        "points_cost": prepared.points_cost,
        "status": "created",
        "progress": 0,
        "step": "prepare" if needs_preparation(runtime, prepared.action, prepared.request, model) else "submit",
        "next_run_at": model.now,
        "deadline_at": model.now + timedelta(seconds=deadline_seconds),
        "history": [],
        "upstream_state": UpstreamState(normalized_urls=() if model.normalizes_references else None).to_json(),
        "callback_url": prepared.callback_url,
        "idempotency_key": asked.key,
        "idempotency_digest": asked.digest() if asked.key is not None else None,
        "created_at": model.now,
        "updated_at": model.now,
    }


async def quote_task(runtime: Runtime, user_id: int, asked: Submission) -> dict[str, int]:
    """What submitting this would take now, `points_cost`, and the caller's `balance`; nothing is stored or taken.

    Raises what submit would raise for the same words, except for points that are not there.
    """
    async with runtime.database.read() as connection:
        model = await get_model(connection, asked.model_name)
    prepared = prepare_task(runtime, asked, model)
    return {"points_cost": prepared.points_cost, "balance": (await get_balance(runtime.database, user_id)).available}


def task_number(local: datetime, suffix: str) -> str:
    """`TASK-` + local time to the millisecond + `-` + digits that keep it unique (the guide's form)."""
    digits = local.isoformat(timespec="milliseconds")[:23].translate(_DIGITS_ALONE)
    return f"TASK-{digits}-{suffix}"


_INSERT = insert(tasks)
_user: BindParameter[int] = bindparam("user")
# Read while the account row is locked, so the count is exact: a user's submits pass one after the other.
_STANDING = select(
    select(points_accounts.c.available).where(points_accounts.c.user_id == _user).scalar_subquery().label("balance"),
    select(func.count())
    .select_from(tasks)
    .where(tasks.c.user_id == _user, tasks.c.completed_at.is_(None))
    .scalar_subquery()
    .label("running"),
)
