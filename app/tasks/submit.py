"""Submits a task: one transaction prices it, stores it and deducts its points. Then the workers are woken."""

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog
from sqlalchemy import BindParameter, bindparam, func, insert, select

from app.catalog.models import Model, get_model
from app.database import CommitUnknown, Connection, UniqueViolation, retry_on_conflict, utc_after
from app.engine.state import UpstreamState
from app.engine.steps.prepare import needs_preparation
from app.errors import RateLimited, TaskFailure, TooManyTasks
from app.failpoints import failpoint
from app.files.references import LinkRules
from app.files.upload_records import find_missing, mark_used
from app.points import ledger
from app.points.balance import get_balance
from app.runtime import Runtime
from app.tables import points_accounts, tasks
from app.tasks.idempotency import find_replay
from app.tasks.validation import PreparedTask, Submission, find_uploads, prepare_task, require_uploads
from app.telemetry import metrics

log = structlog.get_logger()

MAX_NUMBER_ATTEMPTS = 5
FREE_ENDS = (TaskFailure.CANCELLED, TaskFailure.UPSTREAM_REJECTED, TaskFailure.UPSTREAM_FAILED)
"""The refunded ends that a caller can bring about: by a cancel, or by a prompt or picture that is refused."""
FREE_TASKS_SECONDS = 3600.0
FREE_TASKS_RETRY_SECONDS = 60
_DIGITS_ALONE = str.maketrans("", "", "-T:.")


@dataclass(frozen=True, slots=True)
class SubmitResult:
    """The stored task as a row, and the caller's balance. `is_replay`: an earlier submit with this key stored it."""

    row: dict[str, Any]
    balance: int
    is_replay: bool = False


async def submit_task(runtime: Runtime, user_id: int, submission: Submission) -> SubmitResult:
    """Raises InvalidParameter, ModelNotFound, InsufficientPoints, TooManyTasks, RateLimited or IdempotencyConflict.

    After an error nothing is stored and nothing is deducted.
    """
    for _ in range(MAX_NUMBER_ATTEMPTS):
        if submission.key is not None and (row := await find_replay(runtime.database, user_id, submission)):
            balance = (await get_balance(runtime.database, user_id)).available
            return SubmitResult(row, balance, is_replay=True)
        suffix = f"{secrets.randbelow(10**6):06d}"  # not to be guessed, because result URLs contain it
        try:
            result = await _store(runtime, user_id, submission, suffix)
        except UniqueViolation:  # the number is taken, or another submit with this key was a moment faster
            continue
        row = result.row
        runtime.wakeup.notify()
        metrics.SUBMITTED.labels(submission.model_name).inc()
        log.info("task_submitted", task_no=row["task_no"], user_id=user_id, payload=row["upstream_request"])
        return result
    raise UniqueViolation("no free task number")


@retry_on_conflict
async def _store(runtime: Runtime, user_id: int, submission: Submission, suffix: str) -> SubmitResult:
    result: SubmitResult | None = None
    try:
        async with runtime.database.begin() as connection:
            model = await get_model(connection, submission.model_name)
            row = new_task_row(runtime, user_id, submission, model, suffix)
            uploads = find_uploads(runtime.store, submission, runtime.actions[model.action], row["upstream_request"])
            if uploads:
                require_uploads(uploads, await mark_used(connection, uploads))
            inserted = await connection.execute(_INSERT, row)
            row["id"] = inserted.lastrowid
            result = SubmitResult(row, await _charge(runtime, connection, row, model.description))
            breaker = runtime.breakers[runtime.actions[model.action].provider]
            await breaker.admit_trial(connection, (row["deadline_at"] - row["created_at"]).total_seconds())
            failpoint("submit.before_commit")
    except CommitUnknown:
        if result is None or not await _exists(runtime, result.row["task_no"]):
            raise
    failpoint("submit.after_commit")
    return result


async def _charge(runtime: Runtime, connection: Connection, row: dict[str, Any], remark: str) -> int:
    """Deducts the price and checks the bounds of tasks, all under the account's lock. Returns the balance."""
    settings = runtime.settings
    user_id, cost = row["user_id"], row["points_cost"]
    if cost:
        await ledger.deduct(connection, user_id=user_id, task_id=row["id"], cost=cost, remark=remark)
    else:
        await ledger.lock_account(connection, user_id)
    account = (await connection.execute(_BALANCE_AND_COUNTS, {"user": user_id})).one()
    if account.running > settings.max_tasks_in_flight:
        raise TooManyTasks(settings.max_tasks_in_flight)
    if account.free >= settings.max_free_tasks_per_hour:
        text = f"最近一小时内取消或未成功的任务过多，最多 {settings.max_free_tasks_per_hour} 个，请稍后再试"
        raise RateLimited(text, retry_after_seconds=FREE_TASKS_RETRY_SECONDS)
    # A deduction has expired all due lots; a free task has not.
    return int(account.balance) if cost else await ledger.balance_of(connection, user_id)


async def _exists(runtime: Runtime, task_no: str) -> bool:
    """After a COMMIT without an answer: whether it happened. If this read fails, too, the caller gets a 503."""
    async with runtime.database.read() as connection:
        return await connection.scalar(select(tasks.c.id).where(tasks.c.task_no == task_no)) is not None


def new_task_row(runtime: Runtime, user_id: int, submission: Submission, model: Model, suffix: str) -> dict[str, Any]:
    """All columns of a new task. Its request, price and deadline stay the same when the model changes later."""
    settings = runtime.settings
    prepared = _prepare(runtime, submission, model)
    deadline_seconds = prepared.action.deadline_seconds(settings)
    runtime.breakers[prepared.action.provider].reject_when_open(deadline_seconds)
    return {
        "task_no": task_number(model.now.astimezone(settings.zone), suffix),
        "user_id": user_id,
        "model_name": model.model_name,
        "task_type": model.task_type,
        "action": model.action,
        "prompt": submission.prompt,
        "image_url": prepared.image_url,
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
    """The price now, `points_cost`, and the caller's `balance`. Nothing is stored or deducted.

    Raises what `submit_task` raises for the same input, except InsufficientPoints.
    """
    async with runtime.database.read() as connection:
        model = await get_model(connection, submission.model_name)
        prepared = _prepare(runtime, submission, model)
        if uploads := find_uploads(runtime.store, submission, prepared.action, prepared.request):
            require_uploads(uploads, await find_missing(connection, uploads))
    return {"points_cost": prepared.points_cost, "balance": (await get_balance(runtime.database, user_id)).available}


def _prepare(runtime: Runtime, submission: Submission, model: Model) -> PreparedTask:
    links = LinkRules(runtime.settings.egress_allowed, runtime.store.key_from_url)
    return prepare_task(runtime.actions[model.action], submission, model, links)


def task_number(local: datetime, suffix: str) -> str:
    """`TASK-` + local time to the millisecond + `-` + digits that keep it unique (the guide's form)."""
    digits = local.isoformat(timespec="milliseconds")[:23].translate(_DIGITS_ALONE)
    return f"TASK-{digits}-{suffix}"


_INSERT = insert(tasks)
_user: BindParameter[int] = bindparam("user")
# Read while the account row is locked: a user's submits run one after the other, so the counts are exact.
_BALANCE_AND_COUNTS = select(
    select(points_accounts.c.available).where(points_accounts.c.user_id == _user).scalar_subquery().label("balance"),
    select(func.count())
    .select_from(tasks)
    .where(tasks.c.user_id == _user, tasks.c.error_code.is_(None), tasks.c.completed_at.is_(None))
    .scalar_subquery()
    .label("running"),
    select(func.count())
    .select_from(tasks)
    .where(
        tasks.c.user_id == _user,
        tasks.c.error_code.in_([reason.name for reason in FREE_ENDS]),
        tasks.c.completed_at > utc_after(-FREE_TASKS_SECONDS),
    )
    .scalar_subquery()
    .label("free"),
)
