"""Erases a user: all works, uploads, keys, tokens, webhooks and the name. The account and the ledger stay.

The first transaction ends all access and queues the rest, as the key `users/<id>` in `file_deletions`. So the erasure
goes on after a crash: a job erases what is left, also the tasks that still run, when they end. Tasks and uploads that
are newer than the erasure belong to a user who came back and stay.
"""

from dataclasses import dataclass
from typing import Any

import structlog
from sqlalchemy import Row, bindparam, delete, func, select, update

from app.database import (
    COMMIT_TIMEOUT_SECONDS,
    TRANSACTION_TIMEOUT_SECONDS,
    Connection,
    Database,
    insert_ignore,
    retry_on_conflict,
    utc_after,
    utc_now,
)
from app.errors import NotCancellable, NotFound
from app.files.deletions import queue_deletions
from app.points.balance import Balance, get_balance
from app.runtime import Runtime
from app.tables import (
    ERASED_UPDATE_TIME,
    api_keys,
    end_user_budgets,
    file_deletions,
    key_budgets,
    recovery_codes,
    refresh_tokens,
    tasks,
    uploads,
    users,
    webhook_endpoints,
    webhook_secrets,
)
from app.tasks.cancel import CANCELLABLE, cancel_task
from app.tasks.erasure.works import erase_rows, lock_ended

log = structlog.get_logger()

TASKS_AT_ONCE, UPLOADS_AT_ONCE = 50, 200
MAX_BATCHES_OF_REQUEST, MAX_BATCHES_OF_JOB = 10, 400
AGAIN_SECONDS = 60.0
USERS_PREFIX = "users/"
SETTLED_SECONDS = 2.0 * (TRANSACTION_TIMEOUT_SECONDS + COMMIT_TIMEOUT_SECONDS)
"""A submit that was on its way at the erasure is stored within this time, so the erasure ends not earlier."""


@dataclass(frozen=True, slots=True)
class UserErasure:
    """How far an erasure is. `running` tasks are erased when they end; `is_complete`: nothing but these is left."""

    erased: int
    running: int
    is_complete: bool
    balance: Balance


async def erase_user(runtime: Runtime, user_id: int) -> UserErasure:
    """Ends all access of the user, cancels and erases what it can within seconds, and leaves the rest to the job."""
    await _end_access(runtime.database, user_id)
    log.info("user_erased", user_id=user_id)
    user = await _read_user(runtime.database, user_id)
    erased = await _cancel_and_erase(runtime, user, MAX_BATCHES_OF_REQUEST)
    left = await _count_left(runtime.database, user)
    balance = await get_balance(runtime.database, user_id)
    return UserErasure(erased, left.running, left.ended + left.uploads == 0, balance)


async def continue_erasures(runtime: Runtime) -> int:
    """Erases what is left of erased users. Returns the number of erased tasks. Two runs at once harm nothing."""
    erased = 0
    while (user_id := await _find_due_user(runtime.database)) is not None:
        try:
            user = await _read_user(runtime.database, user_id)
        except NotFound:
            await _forget(runtime.database, user_id)
            continue
        await _postpone(runtime.database, user_id)  # a user whose erasure fails must not hold up the others
        erased += await _cancel_and_erase(runtime, user, MAX_BATCHES_OF_JOB)
        left = await _count_left(runtime.database, user)
        is_settled = (left.now - user.erased_at).total_seconds() > SETTLED_SECONDS
        if is_settled and left.ended + left.uploads + left.running == 0:
            await _complete(runtime.database, user)
    return erased


@retry_on_conflict
async def _end_access(database: Database, user_id: int) -> None:
    """One transaction: when it commits, no credential of the user works any more, and no webhook is sent."""
    async with database.begin() as connection:
        this = users.c.id == user_id
        await connection.execute(select(users.c.id).where(this).with_for_update())
        await connection.execute(
            update(users)
            .where(this)
            .values(
                username=None,
                username_key=None,
                password_hash=None,
                totp_secret=None,
                totp_step=None,
                token_version=users.c.token_version + 1,
                tokens_valid_from=utc_now(),
                erased_at=utc_now(),
            )
        )
        revoked_at = func.coalesce(api_keys.c.revoked_at, utc_now())
        emptied = {"name": "", "addresses": None, "revoked_at": revoked_at}
        await connection.execute(update(api_keys).where(api_keys.c.user_id == user_id).values(**emptied))
        for table in (refresh_tokens, recovery_codes, webhook_endpoints, webhook_secrets):
            await connection.execute(delete(table).where(table.c.user_id == user_id))
        marker = insert_ignore(connection.dialect.name, file_deletions, "object_key")
        times = {"next_attempt_at": utc_now(), "created_at": utc_now()}
        await connection.execute(marker.values(object_key=f"{USERS_PREFIX}{user_id}", **times))


async def _cancel_and_erase(runtime: Runtime, user: Row[*tuple[Any, ...]], max_batches: int) -> int:
    """Cancels the user's tasks where possible, then erases ended tasks and uploads. Returns the number of tasks."""
    erased = 0
    async with runtime.database.read() as connection:
        cancellable = list(await connection.scalars(_CANCELLABLE, _older(user)))
    for task_no in cancellable:
        try:
            await cancel_task(runtime, user.id, task_no)
        except (NotCancellable, NotFound):  # a worker was faster
            continue
    for _ in range(max_batches):
        tasks_of_batch = await _erase_tasks(runtime.database, user)
        uploads_of_batch = await _erase_uploads(runtime.database, user)
        erased += tasks_of_batch
        if tasks_of_batch + uploads_of_batch == 0:
            break
    runtime.database.task_counts.forget(user.id)
    return erased


@retry_on_conflict
async def _erase_tasks(database: Database, user: Row[*tuple[Any, ...]]) -> int:
    async with database.read() as connection:
        ids = list(await connection.scalars(_ENDED, _older(user)))
    if not ids:
        return 0
    async with database.begin() as connection:
        rows = await lock_ended(connection, ids)
        await erase_rows(connection, user.id, rows)
        # The end users are persons, too. A single erased task keeps its end user, because its owner counts by them.
        forget = update(tasks).where(tasks.c.id.in_([row.id for row in rows])).values(end_user=None)
        await connection.execute(forget)
    return len(rows)


@retry_on_conflict
async def _erase_uploads(database: Database, user: Row[*tuple[Any, ...]]) -> int:
    """Marks uploads, so that no task can use them, and queues their files."""
    async with database.begin() as connection:
        keys = list(await connection.scalars(_UPLOADS, _older(user)))
        these = uploads.c.object_key.in_(keys)
        await connection.execute(update(uploads).where(these).values(used_at=None, expired_at=utc_now()))
        await queue_deletions(connection, keys)
    return len(keys)


async def _read_user(database: Database, user_id: int) -> Row[*tuple[Any, ...]]:
    """Raises NotFound for a user who is not erased."""
    async with database.read() as connection:
        row = (await connection.execute(_USER, {"user": user_id})).one_or_none()
    if row is None:
        raise NotFound("用户不存在")
    return row


async def _count_left(database: Database, user: Row[*tuple[Any, ...]]) -> Row[*tuple[Any, ...]]:
    async with database.read() as connection:
        return (await connection.execute(_LEFT, _older(user))).one()


async def _find_due_user(database: Database) -> int | None:
    async with database.read() as connection:
        key = await connection.scalar(_DUE)
    return None if key is None else int(key.removeprefix(USERS_PREFIX))


@retry_on_conflict
async def _complete(database: Database, user: Row[*tuple[Any, ...]]) -> None:
    """The names of end users go last, because a running task gives back to its budget."""
    async with database.begin() as connection:
        budgets = select(key_budgets.c.id).where(key_budgets.c.user_id == user.id)
        await connection.execute(delete(end_user_budgets).where(end_user_budgets.c.budget_id.in_(budgets)))
        await _delete_marker(connection, user.id)
    log.info("user_erasure_complete", user_id=user.id)


@retry_on_conflict
async def _forget(database: Database, user_id: int) -> None:
    async with database.begin() as connection:
        await _delete_marker(connection, user_id)


async def _delete_marker(connection: Connection, user_id: int) -> None:
    marker = file_deletions.c.object_key == f"{USERS_PREFIX}{user_id}"
    await connection.execute(delete(file_deletions).where(marker))


@retry_on_conflict
async def _postpone(database: Database, user_id: int) -> None:
    async with database.begin() as connection:
        marker = file_deletions.c.object_key == f"{USERS_PREFIX}{user_id}"
        later = update(file_deletions).where(marker).values(next_attempt_at=utc_after(AGAIN_SECONDS))
        await connection.execute(later)


def _older(user: Row[*tuple[Any, ...]]) -> dict[str, Any]:
    return {"user": user.id, "until": user.erased_at}


_is_old = (tasks.c.user_id == bindparam("user")) & (tasks.c.created_at <= bindparam("until"))
_is_running = _is_old & tasks.c.error_code.is_(None) & tasks.c.completed_at.is_(None)
# The erased ones stand at the start of the index on the time of change.
_is_left = _is_old & (tasks.c.updated_at > ERASED_UPDATE_TIME) & tasks.c.erased_at.is_(None)
_is_ended = _is_left & (tasks.c.step == "done")
_is_upload = (
    (uploads.c.user_id == bindparam("user"))
    & (uploads.c.created_at <= bindparam("until"))
    & uploads.c.expired_at.is_(None)
)
_CANCELLABLE = select(tasks.c.task_no).where(_is_running, tasks.c.step.in_(sorted(CANCELLABLE)))
_ENDED = select(tasks.c.id).where(_is_ended).order_by(tasks.c.updated_at).limit(TASKS_AT_ONCE)
_UPLOADS = select(uploads.c.object_key).where(_is_upload).order_by(uploads.c.created_at).limit(UPLOADS_AT_ONCE)
_USER = select(users.c.id, users.c.erased_at).where(users.c.id == bindparam("user"), users.c.erased_at.is_not(None))
_DUE = (
    select(file_deletions.c.object_key)
    .where(file_deletions.c.next_attempt_at <= utc_now(), file_deletions.c.object_key.like(f"{USERS_PREFIX}%"))
    .order_by(file_deletions.c.next_attempt_at)
    .limit(1)
)
_LEFT = select(
    select(func.count()).select_from(tasks).where(_is_running).scalar_subquery().label("running"),
    select(func.count()).select_from(tasks).where(_is_ended).scalar_subquery().label("ended"),
    select(func.count()).select_from(uploads).where(_is_upload).scalar_subquery().label("uploads"),
    utc_now().label("now"),
)
