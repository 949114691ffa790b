"""Submits tasks: stores the task and deducts its price in one transaction, then wakes a worker.

SEE2AI is called later, by a worker.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog
from sqlalchemy import BindParameter, bindparam, func, insert, select

from app.catalog.models import Model, get_model
from app.database import CommitUnknown, UniqueViolation, retry_on_conflict
from app.engine.breaker_sync import admit_trial, reject_when_open
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


@dataclass(frozen=True, slots=True)
class SubmitResult:
    """The task's row, the caller's balance, and whether an earlier submit with the same key stored the task."""

    task: Mapping[str, Any]
    balance: int
    is_replay: bool = False


async def submit_task(runtime: Runtime, user_id: int, submission: Submission) -> SubmitResult:
    """Stores and charges the task, or finds the task of an earlier submit with the same key.

    Raises InvalidParameter, ModelNotFound, InsufficientPoints, TooManyTasks or IdempotencyConflict. Then nothing is
    stored or charged.
    """
    for _ in range(MAX_NUMBER_ATTEMPTS):
        if submission.key is not None and (task := await find_replay(runtime.database, user_id, submission)):
            return SubmitResult(task, (await get_balance(runtime.database, user_id)).available, is_replay=True)
        suffix = f"{secrets.randbelow(10**6):06d}"  # random, because result URLs contain it and must not be guessed
        try:
            result = await _store(runtime, user_id, submission, suffix)
        except UniqueViolation:  # the number is taken, or a simultaneous submit with the same key was faster
            continue
        runtime.wakeup.notify()
        metrics.SUBMITTED.labels(submission.model_name).inc()
        task_no, payload = result.task["task_no"], result.task["upstream_request"]
        log.info("task_submitted", task_no=task_no, user_id=user_id, payload=payload)
        return result
    raise UniqueViolation("no free task number")


@retry_on_conflict
async def _store(runtime: Runtime, user_id: int, submission: Submission, suffix: str) -> SubmitResult:
    result: SubmitResult | None = None
    try:
        async with runtime.database.begin() as connection:
            model = await get_model(connection, submission.model_name)
            row = new_task_row(runtime, user_id, submission, model, suffix)
            inserted = await connection.execute(_INSERT, row)
            row["id"] = inserted.lastrowid
            if row["points_cost"]:
                money = {"user_id": user_id, "task_id": row["id"], "cost": row["points_cost"]}
                await ledger.deduct(connection, **money, remark=model.description)
            else:
                await ledger.lock_account(connection, user_id)
            account = (await connection.execute(_BALANCE_AND_RUNNING, {"user": user_id})).one()
            if account.running > runtime.settings.max_tasks_in_flight:
                raise TooManyTasks(runtime.settings.max_tasks_in_flight)
            # A deduction has expired the due lots. A free task has not, so its balance must leave them out.
            balance = account.balance if row["points_cost"] else await ledger.balance_of(connection, user_id)
            wait_seconds = (row["deadline_at"] - row["created_at"]).total_seconds()
            admit_trial(runtime, runtime.actions[row["action"]], wait_seconds)
            result = SubmitResult(row, balance)
            failpoint("submit.before_commit")
    except CommitUnknown:
        if result is None or not await _exists(runtime, result.task["task_no"]):
            raise
    failpoint("submit.after_commit")
    return result


async def _exists(runtime: Runtime, task_no: str) -> bool:
    """Whether the task was stored, after a COMMIT without an answer. If this query fails too, the caller gets a 503."""
    async with runtime.database.read() as connection:
        return await connection.scalar(select(tasks.c.id).where(tasks.c.task_no == task_no)) is not None


def new_task_row(runtime: Runtime, user_id: int, submission: Submission, model: Model, suffix: str) -> dict[str, Any]:
    """The new row: the request for SEE2AI, the price and the deadline. Later changes of the model do not affect it."""
    settings = runtime.settings
    prepared = prepare_task(runtime, submission, model)
    deadline_seconds = prepared.action.deadline_seconds(settings)
    reject_when_open(runtime, prepared.action, deadline_seconds)
    return {
        "task_no": task_number(model.now.astimezone(settings.zone), suffix),
        "user_id": user_id,
        "model_name": model.model_name,
        "task_type": model.task_type,
        "action": model.action,
        "prompt": submission.prompt,
        "image_url": submission.image_url or None,
        "params": submission.params,
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
        "idempotency_key": submission.key,
        "idempotency_digest": submission.digest() if submission.key is not None else None,
        "created_at": model.now,
        "updated_at": model.now,
    }


async def quote_task(runtime: Runtime, user_id: int, submission: Submission) -> dict[str, int]:
    """The price of a submit, `points_cost`, and the caller's `balance`. Nothing is stored or charged.

    Raises what the submit would raise, except InsufficientPoints.
    """
    async with runtime.database.read() as connection:
        model = await get_model(connection, submission.model_name)
    prepared = prepare_task(runtime, submission, model)
    return {"points_cost": prepared.points_cost, "balance": (await get_balance(runtime.database, user_id)).available}


def task_number(local: datetime, suffix: str) -> str:
    """`TASK-` + local time to the millisecond + `-` + digits that keep it unique (the guide's form)."""
    digits = local.isoformat(timespec="milliseconds")[:23].translate(_DIGITS_ALONE)
    return f"TASK-{digits}-{suffix}"


_INSERT = insert(tasks)
_user: BindParameter[int] = bindparam("user")
# Read while the account row is locked, so the count is exact.
_BALANCE_AND_RUNNING = select(
    select(points_accounts.c.available).where(points_accounts.c.user_id == _user).scalar_subquery().label("balance"),
    select(func.count())
    .select_from(tasks)
    .where(tasks.c.user_id == _user, tasks.c.completed_at.is_(None))
    .scalar_subquery()
    .label("running"),
)
