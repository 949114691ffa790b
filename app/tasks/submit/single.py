"""Stores one submit in a transaction of its own: what expires lots, uses uploads, has no account, or is a trial."""

from typing import Any

from sqlalchemy import insert

from app.accounts.keys.budgets import Budgets, ensure_budget
from app.accounts.keys.caps import local_day
from app.catalog.models import get_model
from app.database import CommitUnknown, Connection, retry_on_conflict
from app.failpoints import failpoint
from app.files.upload_records import mark_used
from app.points import ledger
from app.runtime import Runtime
from app.tables import tasks
from app.tasks.submit.outcome import PendingSubmit, SubmitResult, check_bounds, count_tasks, find_stored
from app.tasks.submit.task_row import new_task_row
from app.tasks.validation import find_uploads, require_uploads


@retry_on_conflict
async def store_single(runtime: Runtime, pending: PendingSubmit, suffix: str) -> SubmitResult:
    """Raises what `submit_task` raises, and UniqueViolation if the number or the idempotency key is taken."""
    submission, result = pending.submission, None
    try:
        async with runtime.database.begin() as connection:
            model = await get_model(connection, submission.model_name)
            row = new_task_row(runtime, pending.user_id, submission, model, suffix, key_id=pending.key_id)
            action = runtime.actions[model.action]
            if uploads := find_uploads(runtime.store, submission, action, row["upstream_request"]):
                require_uploads(uploads, await mark_used(connection, uploads))
            await ledger.lock_account(connection, pending.user_id)  # before the task, as in a shared transaction
            inserted = await connection.execute(_INSERT, row)
            row["id"] = inserted.lastrowid
            result = SubmitResult(row, await _charge(runtime, connection, row, model.description))
            breaker = runtime.breakers[action.provider]
            await breaker.admit_trial(connection, (row["deadline_at"] - row["created_at"]).total_seconds())
            failpoint("submit.before_commit")
    except CommitUnknown:
        if result is None or not await find_stored(runtime, [result.row["task_no"]]):
            raise
    failpoint("submit.after_commit")
    return result


async def _charge(runtime: Runtime, connection: Connection, row: dict[str, Any], remark: str) -> int:
    """Deducts the price and checks the bounds of tasks, all under the account's lock. Returns the balance."""
    user_id, cost = row["user_id"], row["points_cost"]
    if cost:
        await ledger.deduct(connection, user_id=user_id, task_id=row["id"], cost=cost, remark=remark)
    counts = (await count_tasks(connection, [user_id]))[user_id]
    counts.running -= 1  # the new task is stored already
    check_bounds(runtime.settings, counts)
    await _charge_budget(runtime, connection, row)
    return await ledger.balance_of(connection, user_id)


async def _charge_budget(runtime: Runtime, connection: Connection, row: dict[str, Any]) -> None:
    """Counts the task in the budget of its API key. A key of before gets its budget here."""
    key_id, end_user = row["key_id"], row["end_user"]
    if key_id is None:
        return
    await ensure_budget(connection, key_id)
    budgets = Budgets()
    await budgets.read(connection, [(key_id, end_user)])
    budgets.charge(key_id, end_user, local_day(row["created_at"], runtime.settings.zone), row["points_cost"])
    await budgets.write(connection)


_INSERT = insert(tasks)
