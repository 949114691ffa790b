"""The records of uploads: what a user may upload in a day, which uploads a task has used, and which ones expire.

The database counts, so the limit holds across processes and while Redis is away. The row of an upload is written
before its file, so no file is without a row.
"""

import re
from collections.abc import Collection

import structlog
from sqlalchemy import BindParameter, bindparam, case, delete, func, insert, select, update

from app.database import Connection, Database, retry_on_conflict, utc_after, utc_now
from app.errors import RateLimited
from app.runtime import Runtime
from app.storage import StorageError
from app.tables import file_deletions, points_accounts, uploads, users

log = structlog.get_logger()

DAY_SECONDS = 24 * 3600.0
MEGABYTE = 1_000_000
MB_WITHOUT_POINTS = 100
"""What a user without points may upload in a day. Such a user can only prepare a task: two of the largest files."""
MIN_COUNTED_BYTES = 100_000
"""A smaller file counts as much, because its row and its object cost something, too."""
KEY_DIGITS = 42
"""The hexadecimal digits in the key of an upload with a row. Uploads of versions without rows have 40."""
EXPIRE_BATCH = 100
RECORDED_KEY = re.compile(rf"uploads/[0-9]{{4}}/[0-9]{{2}}/[0-9a-f]{{{KEY_DIGITS}}}\.[a-z0-9]+")


def is_recorded(key: str) -> bool:
    """Whether the key belongs to an upload that has a row until it expires."""
    return RECORDED_KEY.fullmatch(key) is not None


async def check_allowance(database: Database, user_id: int, size_bytes: int, mb_per_day: int) -> None:
    """Raises RateLimited if the user may not upload so many bytes now. It reserves nothing."""
    async with database.read() as connection:
        await _check_allowance(connection, user_id, size_bytes, mb_per_day)


@retry_on_conflict
async def record_upload(database: Database, user_id: int, key: str, size_bytes: int, mb_per_day: int) -> None:
    """Counts an upload that is about to be stored. Raises RateLimited as `check_allowance` does."""
    async with database.begin() as connection:
        # The lock on the user's row keeps two uploads at once from exceeding the limit.
        await connection.execute(select(users.c.id).where(users.c.id == user_id).with_for_update())
        await _check_allowance(connection, user_id, size_bytes, mb_per_day)
        row = {"user_id": user_id, "object_key": key, "size_bytes": size_bytes, "created_at": utc_now()}
        await connection.execute(insert(uploads).values(row))


@retry_on_conflict
async def forget_upload(database: Database, key: str) -> None:
    """Deletes the row of an upload that could not be stored."""
    async with database.begin() as connection:
        await connection.execute(delete(uploads).where(uploads.c.object_key == key))


async def mark_used(connection: Connection, keys: Collection[str]) -> set[str]:
    """Keeps these recorded uploads for ever, because a task uses them. Returns the keys that do not exist any more."""
    exists = uploads.c.object_key.in_(sorted(keys)) & uploads.c.expired_at.is_(None)
    used_at = func.coalesce(uploads.c.used_at, utc_now())
    marked = await connection.execute(update(uploads).where(exists).values(used_at=used_at))
    return set() if marked.rowcount == len(keys) else await find_missing(connection, keys)


async def find_missing(connection: Connection, keys: Collection[str]) -> set[str]:
    """Which of these recorded uploads do not exist any more."""
    exists = uploads.c.object_key.in_(sorted(keys)) & uploads.c.expired_at.is_(None)
    return set(keys) - set(await connection.scalars(select(uploads.c.object_key).where(exists)))


async def expire_uploads(runtime: Runtime) -> int:
    """Deletes the files and rows of uploads that no task used within UPLOAD_KEEP_DAYS. Returns their number.

    A row is marked first. From then on no task can use the upload, so a run that stops is continued by the next one.
    """
    expired = 0
    while keys := await _mark_expired(runtime.database, runtime.settings.upload_keep_days * DAY_SECONDS):
        try:
            for key in keys:
                await runtime.store.delete(key)
        except StorageError as error:
            log.warning("storage_failed", error=str(error))
            break
        await _delete_rows(runtime.database, keys)
        expired += len(keys)
    return expired


@retry_on_conflict
async def _mark_expired(database: Database, keep_seconds: float) -> list[str]:
    async with database.begin() as connection:
        ids = list(await connection.scalars(_UNUSED, {"age": -keep_seconds}))
        unused = uploads.c.id.in_(ids) & uploads.c.used_at.is_(None)  # a task may have used one meanwhile
        await connection.execute(update(uploads).where(unused).values(expired_at=utc_now()))
        marked = select(uploads.c.object_key).where(uploads.c.id.in_(ids), uploads.c.expired_at.is_not(None))
        return list(await connection.scalars(marked))


@retry_on_conflict
async def _delete_rows(database: Database, keys: list[str]) -> None:
    async with database.begin() as connection:
        await connection.execute(delete(uploads).where(uploads.c.object_key.in_(keys)))


async def _check_allowance(connection: Connection, user_id: int, size_bytes: int, mb_per_day: int) -> None:
    row = (await connection.execute(_TODAY, {"user": user_id})).one()
    max_mb, hint = mb_per_day, ""
    if not row.points and mb_per_day > MB_WITHOUT_POINTS:
        max_mb, hint = MB_WITHOUT_POINTS, "，有积分后可上传更多"
    if row.counted_bytes + max(size_bytes, MIN_COUNTED_BYTES) > max_mb * MEGABYTE:
        age_seconds = (row.now - row.oldest).total_seconds() if row.oldest else 0.0
        raise RateLimited(
            f"24 小时内上传的文件合计不能超过 {max_mb} MB{hint}",
            retry_after_seconds=max(int(DAY_SECONDS - age_seconds), 60),
        )


_user: BindParameter[int] = bindparam("user")
_counted = case((uploads.c.size_bytes < MIN_COUNTED_BYTES, MIN_COUNTED_BYTES), else_=uploads.c.size_bytes)
_points = select(points_accounts.c.available + points_accounts.c.held).where(points_accounts.c.user_id == _user)
_TODAY = select(
    func.coalesce(func.sum(_counted), 0).label("counted_bytes"),
    func.min(uploads.c.created_at).label("oldest"),
    utc_now().label("now"),
    _points.scalar_subquery().label("points"),
).where(uploads.c.user_id == _user, uploads.c.created_at > utc_after(-DAY_SECONDS))
_UNUSED = (
    select(uploads.c.id)
    .where(uploads.c.used_at.is_(None), uploads.c.created_at < utc_after(bindparam("age")))
    .where(uploads.c.object_key.not_in(select(file_deletions.c.object_key)))  # a running task may still need the file
    .order_by(uploads.c.created_at)
    .limit(EXPIRE_BATCH)
)
