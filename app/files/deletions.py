"""Deletes files that were given up: a transaction queues their keys, and a job deletes the files.

So a file is deleted if and only if the transaction commits. A process that dies in between leaves the row, and the next
run goes on. A file that a task uses waits:

- A running task that was submitted before needs its references. The file waits until it has ended.
- An upload stays as long as another task of its owner shows it. The row is dropped; the erasure of that task queues it
  again.
"""

from collections.abc import Collection, Sequence
from typing import Any

import structlog
from sqlalchemy import Row, Text, bindparam, delete, literal, or_, select, type_coerce, update

from app.database import Connection, Database, insert_ignore, like_contains, retry_on_conflict, utc_after, utc_now
from app.files.upload_records import RECORDED_KEY, is_recorded
from app.runtime import Runtime
from app.storage import PUBLIC_PREFIXES, StorageError
from app.tables import file_deletions, tasks, uploads

log = structlog.get_logger()

BATCH = 100
MAX_FAILURES = 5
RETRY_SECONDS = 60.0
MAX_RETRY_SECONDS = 6 * 3600.0
IN_USE_SECONDS = 60.0
"""A file that a running task uses is looked at again after this time."""
TASKS_AT_ONCE = 500


async def queue_deletions(connection: Connection, keys: Collection[str]) -> None:
    """Gives up the files in the caller's transaction. A key that is queued already stays as it is."""
    if not keys:
        return
    statement = insert_ignore(connection.dialect.name, file_deletions, "object_key")
    times = {"next_attempt_at": utc_now(), "created_at": utc_now()}
    await connection.execute(statement.values(**times), [{"object_key": key} for key in sorted(keys)])


async def find_own_uploads(connection: Connection, user_id: int, texts: Sequence[str]) -> set[str]:
    """The uploads of this user whose keys are in the texts. A link to another user's upload gives nobody a right."""
    keys = {match[0] for text in texts for match in RECORDED_KEY.finditer(text)}
    if not keys:
        return set()
    own = uploads.c.object_key.in_(sorted(keys)) & (uploads.c.user_id == user_id)
    return set(await connection.scalars(select(uploads.c.object_key).where(own)))


async def delete_files(runtime: Runtime) -> int:
    """Deletes the queued files that are due. Returns their number.

    A file that is in use or cannot be deleted is due later. After MAX_FAILURES the storage is probably away.
    """
    deleted = failures = 0
    while failures < MAX_FAILURES and (due := await _find_due(runtime.database)):
        needed = await _keys_of_running_tasks(runtime.database, due)
        await _postpone(runtime.database, needed, IN_USE_SECONDS)
        for row in due:
            if row.object_key in needed or failures >= MAX_FAILURES:
                continue
            if is_recorded(row.object_key) and not await _give_up_upload(runtime.database, row.object_key):
                continue
            is_deleted = await _delete_file(runtime, row)
            deleted += is_deleted
            failures += not is_deleted
    return deleted


async def _delete_file(runtime: Runtime, row: Row[*tuple[Any, ...]]) -> bool:
    """Deletes the file, then its row. False if the storage fails; then it is tried again after a longer pause."""
    key: str = row.object_key
    try:
        await runtime.store.delete(key)
    except (StorageError, ValueError) as error:  # ValueError: a key that was written by hand
        log.warning("file_not_deleted", key=key, attempts=row.attempts + 1, error=str(error)[:200])
        delay = min(RETRY_SECONDS * 2 ** min(row.attempts, 16), MAX_RETRY_SECONDS)
        await _postpone(runtime.database, [key], delay, failed=1)
        return False
    await _forget(runtime.database, key)
    return True


async def _find_due(database: Database) -> list[Row[*tuple[Any, ...]]]:
    async with database.read() as connection:
        return list(await connection.execute(_DUE))


async def _keys_of_running_tasks(database: Database, due: Sequence[Row[*tuple[Any, ...]]]) -> set[str]:
    """Which of the files a running task uses that was submitted before the file was given up.

    A later task cannot keep a file: nobody could end that.
    """
    needed, last_id = set[str](), 0
    while True:
        async with database.read() as connection:
            rows = (await connection.execute(_RUNNING, {"last_id": last_id})).all()
        for task in rows:
            text = task.request
            needed |= {one.object_key for one in due if task.created_at <= one.created_at and one.object_key in text}
        if len(rows) < TASKS_AT_ONCE:
            return needed
        last_id = rows[-1].id


@retry_on_conflict
async def _give_up_upload(database: Database, key: str) -> bool:
    """Marks the upload as expired, so that no task can use it any more. False if another task of its owner shows it.

    The lock on the row decides between this and a submit that uses the upload: either the submit was first, and its
    task is found, or it is refused.
    """
    async with database.begin() as connection:
        this = uploads.c.object_key == key
        upload = (await connection.execute(select(uploads).where(this).with_for_update())).one_or_none()
        if upload is None or upload.expired_at is not None:
            return True
        shown = {"user": upload.user_id, "since": upload.created_at, "pattern": like_contains(key)[0]}
        if await connection.scalar(_SHOWN_BY_TASK, shown) is not None:
            await connection.execute(delete(file_deletions).where(file_deletions.c.object_key == key))
            return False
        await connection.execute(update(uploads).where(this).values(used_at=None, expired_at=utc_now()))
    return True


@retry_on_conflict
async def _postpone(database: Database, keys: Collection[str], seconds: float, *, failed: int = 0) -> None:
    if not keys:
        return
    changes = {"next_attempt_at": utc_after(seconds), "attempts": file_deletions.c.attempts + failed}
    async with database.begin() as connection:
        these = file_deletions.c.object_key.in_(sorted(keys))
        await connection.execute(update(file_deletions).where(these).values(**changes))


@retry_on_conflict
async def _forget(database: Database, key: str) -> None:
    async with database.begin() as connection:
        await connection.execute(delete(file_deletions).where(file_deletions.c.object_key == key))


_is_file = or_(*[file_deletions.c.object_key.like(f"{prefix}%") for prefix in PUBLIC_PREFIXES])
_DUE = (
    select(file_deletions.c.object_key, file_deletions.c.attempts, file_deletions.c.created_at)
    .where(file_deletions.c.next_attempt_at <= utc_now(), _is_file)
    .order_by(file_deletions.c.next_attempt_at)
    .limit(BATCH)
)
_request = type_coerce(tasks.c.upstream_request, Text)
_RUNNING = (
    select(tasks.c.id, tasks.c.created_at, _request.label("request"))
    .where(tasks.c.next_run_at.is_not(None), tasks.c.id > bindparam("last_id"))
    .where(or_(*[_request.like(f"%{prefix}%") for prefix in PUBLIC_PREFIXES]))
    .with_hint(tasks, "FORCE INDEX (ix_tasks_due)", "mysql")  # in the order of ids MySQL would read all tasks
    .order_by(tasks.c.id)
    .limit(TASKS_AT_ONCE)
)
_ESCAPE = like_contains("")[1]
_SHOWN_BY_TASK = (
    select(literal(1))
    .select_from(tasks)
    .where(
        tasks.c.user_id == bindparam("user"),
        tasks.c.created_at >= bindparam("since"),
        tasks.c.erased_at.is_(None),
        or_(
            *[
                type_coerce(column, Text).like(bindparam("pattern", type_=Text), escape=_ESCAPE)
                for column in (tasks.c.image_url, tasks.c.params, tasks.c.upstream_request)
            ]
        ),
    )
    .limit(1)
)
