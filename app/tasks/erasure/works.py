"""Erases ended tasks: their texts, links and results are emptied, and their files are queued for deletion.

What stays is what the books and the bill of SEE2AI need: number, model, price, status, times, key, end user, and the id
of the job at SEE2AI. An erased task is found by nobody but operators.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import structlog
from sqlalchemy import Row, Text, bindparam, delete, select, type_coerce, update

from app.database import Connection, retry_on_conflict, utc_now
from app.engine.finish import append_history
from app.engine.state import UpstreamState
from app.errors import NotFound, TaskRunning
from app.files.deletions import find_own_uploads, queue_deletions
from app.runtime import Runtime
from app.tables import ERASED_UPDATE_TIME, tasks, webhook_deliveries
from app.tasks.queries import MAX_TASK_NO_LENGTH

log = structlog.get_logger()

EXTENSIONS = ("jpg", "png", "webp", "gif", "mp4", "mov", "webm")
"""Of the files that a result may become."""


async def erase_task(runtime: Runtime, user_id: int, task_no: str) -> None:
    """Erases one ended task. Raises NotFound, also for a task that is erased already, and TaskRunning."""
    if len(task_no) > MAX_TASK_NO_LENGTH:
        raise NotFound("任务不存在")
    await _erase_task(runtime, user_id, task_no)
    runtime.database.task_counts.forget(user_id)
    log.info("task_erased", task_no=task_no, user_id=user_id)


@retry_on_conflict
async def _erase_task(runtime: Runtime, user_id: int, task_no: str) -> None:
    async with runtime.database.begin() as connection:
        row = (await connection.execute(_OWN_TASK, {"user": user_id, "task_no": task_no})).one_or_none()
        if row is None or row.task_no != task_no or row.erased_at is not None:
            raise NotFound("任务不存在")
        if row.step != "done":
            raise TaskRunning
        await erase_rows(connection, user_id, [row])


async def lock_ended(connection: Connection, ids: Sequence[int]) -> Sequence[Row[*tuple[Any, ...]]]:
    """The rows of these tasks that have ended and are not erased, for `erase_rows`."""
    rows = (await connection.execute(_BY_IDS, {"ids": list(ids)})).all()
    return [row for row in rows if row.step == "done" and row.erased_at is None]


async def erase_rows(connection: Connection, user_id: int, rows: Sequence[Row[*tuple[Any, ...]]]) -> None:
    """Erases locked rows of ended tasks of this user, in the caller's transaction."""
    if not rows:
        return
    await connection.execute(_ERASE, [_emptied(row) for row in rows])
    await connection.execute(_DELETE_DELIVERIES, {"ids": [row.id for row in rows]})
    texts = [text for row in rows for text in (row.image_url, row.params, row.upstream_request) if text]
    own_uploads = await find_own_uploads(connection, user_id, texts)
    await queue_deletions(connection, own_uploads.union(*(_result_keys(row) for row in rows)))


def _emptied(row: Row[*tuple[Any, ...]]) -> dict[str, Any]:
    """The values of one row. A completed task keeps an empty list of results, because it must have one."""
    state = UpstreamState.from_json(row.upstream_state)
    history = [entry | {"note": ""} for entry in row.history]
    return {
        "b_id": row.id,
        "b_results": None if row.results is None else [],
        "b_history": append_history(history, "done", "erased"),
        "b_upstream_state": UpstreamState(accepted_age_seconds=state.accepted_age_seconds).to_json(),
    }


def _result_keys(row: Row[*tuple[Any, ...]]) -> Iterable[str]:
    """The keys of the results and their thumbnails.

    A task that failed while its results were stored has no results, but may have left files: any of those that
    `rehost` would have written.
    """
    for result in row.results or ():
        yield result["key"]
        if "thumbnailKey" in result:
            yield result["thumbnailKey"]
    if row.results is None:
        start = f"results/{row.created_at:%Y/%m}/{row.task_no}"
        for number, _ in enumerate(UpstreamState.from_json(row.upstream_state).urls, 1):
            yield from (f"{start}-{number}.{extension}" for extension in EXTENSIONS)
            yield f"{start}-{number}-thumb.jpg"


_ROW = select(
    tasks.c.id,
    tasks.c.task_no,
    tasks.c.step,
    tasks.c.erased_at,
    tasks.c.created_at,
    tasks.c.results,
    tasks.c.history,
    tasks.c.upstream_state,
    type_coerce(tasks.c.image_url, Text).label("image_url"),
    type_coerce(tasks.c.params, Text).label("params"),
    type_coerce(tasks.c.upstream_request, Text).label("upstream_request"),
).with_for_update()
_OWN_TASK = _ROW.where(tasks.c.user_id == bindparam("user"), tasks.c.task_no == bindparam("task_no"))
_BY_IDS = _ROW.where(tasks.c.id.in_(bindparam("ids", expanding=True))).order_by(tasks.c.id)
_ERASE = (
    update(tasks)
    .where(tasks.c.id == bindparam("b_id"))
    .values(
        version=tasks.c.version + 1,
        prompt="",
        image_url=None,
        params={},
        upstream_request={},
        callback_url=None,
        operator_note=None,
        idempotency_digest=None,  # the key stays taken for its day, so that a late repeat is not charged
        results=bindparam("b_results"),
        history=bindparam("b_history"),
        upstream_state=bindparam("b_upstream_state"),
        updated_at=ERASED_UPDATE_TIME,
        erased_at=utc_now(),
    )
)
_DELETE_DELIVERIES = delete(webhook_deliveries).where(
    webhook_deliveries.c.task_id.in_(bindparam("ids", expanding=True))
)
