"""Submits a task and quotes its price. Submits that come in the same moment share a transaction."""

from functools import partial

import structlog

from app.aio import Batcher
from app.catalog.models import get_model
from app.database import UniqueViolation
from app.files.upload_records import find_missing
from app.points.balance import get_balance
from app.runtime import Runtime
from app.tasks.idempotency import find_replay
from app.tasks.submit.batch import AccountLocked, NeedsSingle, Outcome, new_suffix, store_batch, store_waiting
from app.tasks.submit.outcome import PendingSubmit, SubmitResult
from app.tasks.submit.single import store_single
from app.tasks.submit.task_row import prepare
from app.tasks.validation import Submission, find_uploads, require_uploads
from app.telemetry import metrics

log = structlog.get_logger()

MAX_NUMBER_ATTEMPTS = 5
MAX_BATCH = 64
MAX_BATCHES = 2
"""So many shared transactions at once: while they run, the next batches gather."""


async def submit_task(
    runtime: Runtime, user_id: int, submission: Submission, *, key_id: int | None = None
) -> SubmitResult:
    """Raises InvalidParameter, ModelNotFound, InsufficientPoints, KeyBudgetExceeded, TooManyTasks, RateLimited or
    IdempotencyConflict.

    After an error nothing is stored and nothing is deducted. `key_id` is the API key whose budget the task counts in.
    """
    pending = PendingSubmit(user_id, submission, key_id)
    for _ in range(MAX_NUMBER_ATTEMPTS):
        if submission.key is not None and (row := await find_replay(runtime.database, user_id, submission)):
            balance = (await get_balance(runtime.database, user_id)).available
            return SubmitResult(row, balance, is_replay=True)
        try:
            result = await _store(runtime, pending)
        except UniqueViolation:  # the number is taken, or another submit with this key was a moment faster
            continue
        row = result.row
        runtime.wakeup.notify()
        metrics.SUBMITTED.labels(submission.model_name).inc()
        log.info("task_submitted", task_no=row["task_no"], user_id=user_id, payload=row["upstream_request"])
        return result
    raise UniqueViolation("no free task number")


async def _store(runtime: Runtime, pending: PendingSubmit) -> SubmitResult:
    """In a shared transaction; in one of this user alone where the account is locked; else in one of its own."""
    batchers = runtime.database.batchers
    # Those that may wait for an account. Each is of another user, and leaves connections to the shared ones.
    own = {"max_running": max(1, runtime.settings.database_pool_size // 3), "one_user": True}
    shared: Batcher[PendingSubmit, SubmitResult] = batchers.get(
        "submits", partial(store_batch, runtime), max_size=MAX_BATCH, max_running=MAX_BATCHES
    )
    waiting: Batcher[PendingSubmit, SubmitResult] = batchers.get(
        "submits that wait", partial(store_waiting, runtime), max_size=MAX_BATCH, **own
    )
    single: Batcher[PendingSubmit, SubmitResult] = batchers.get(
        "single submits", partial(_store_single, runtime), max_size=1, **own
    )
    for batcher in (shared, waiting):
        try:
            return await batcher.ask(pending, pending.user_id)
        except AccountLocked:
            continue
        except NeedsSingle:
            break
    return await single.ask(pending, pending.user_id)


async def _store_single(runtime: Runtime, pending: list[PendingSubmit]) -> list[Outcome]:
    return [await store_single(runtime, one, new_suffix()) for one in pending]


async def quote_task(runtime: Runtime, user_id: int, submission: Submission) -> dict[str, int]:
    """The price now, `points_cost`, and the caller's `balance`. Nothing is stored or deducted.

    Raises what `submit_task` raises for the same input, except InsufficientPoints.
    """
    async with runtime.database.read() as connection:
        model = await get_model(connection, submission.model_name)
        prepared = prepare(runtime, submission, model)
        if uploads := find_uploads(runtime.store, submission, prepared.action, prepared.request):
            require_uploads(uploads, await find_missing(connection, uploads))
    return {"points_cost": prepared.points_cost, "balance": (await get_balance(runtime.database, user_id)).available}
