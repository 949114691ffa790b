"""One idempotency key, one task: for a day a repeated submit is answered with the first one's task and charges nothing.

The unique index decides between simultaneous submits; this module reads what it decided. A submit without a key costs
nothing more.
"""

from typing import Any

from sqlalchemy import bindparam, select, update

from app.database import Database, retry_on_conflict, utc_after
from app.errors import IdempotencyConflict, InvalidParameter
from app.tables import tasks
from app.tasks.validation import Submission
from app.tasks.view import PUBLIC_COLUMNS

FIELD = "Idempotency-Key"
MAX_KEY_LENGTH = 128
RETENTION_SECONDS = 24 * 3600.0


def check_key(key: str | None) -> str | None:
    """The key, or None without one. Raises InvalidParameter for a malformed key.

    Blanks around a header's value do not belong to it (RFC 9110), but the server passes them on.
    """
    if key is None:
        return None
    key = key.strip(" \t")
    if not (0 < len(key) <= MAX_KEY_LENGTH and key.isascii() and key.isprintable()):
        raise InvalidParameter(FIELD, f"须为 1 到 {MAX_KEY_LENGTH} 个可见 ASCII 字符")
    return key


async def find_replay(database: Database, user_id: int, submission: Submission) -> dict[str, Any] | None:
    """The task that an earlier submit with this key created, as it is now; None where there is none.

    Raises IdempotencyConflict where that submit had another body. A key older than a day is free again.
    """
    async with database.read() as connection:
        row = (await connection.execute(_REPLAY, {"user": user_id, "key": submission.key})).one_or_none()
    if row is None:
        return None
    if not row.is_fresh:
        await _release_key(database, row.id)
        return None
    if row.idempotency_digest != submission.digest():
        raise IdempotencyConflict
    return dict(row._mapping)


@retry_on_conflict
async def _release_key(database: Database, task_id: int) -> None:
    async with database.begin() as connection:
        await connection.execute(update(tasks).where(tasks.c.id == task_id).values(idempotency_key=None))


_REPLAY = select(
    *PUBLIC_COLUMNS,
    tasks.c.id,
    tasks.c.idempotency_digest,
    (tasks.c.created_at > utc_after(-RETENTION_SECONDS)).label("is_fresh"),
).where(tasks.c.user_id == bindparam("user"), tasks.c.idempotency_key == bindparam("key"))
