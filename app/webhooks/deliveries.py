"""The delivery log: lists deliveries, replays them on request, and purges them after a month."""

import functools
from typing import Any

from sqlalchemy import BindParameter, ColumnElement, bindparam, case, delete, or_, select, update

from app.database import Database, PageQuery, retry_on_conflict, utc_after, utc_now
from app.errors import InvalidParameter, NotFound
from app.tables import tasks
from app.tables import webhook_deliveries as deliveries
from app.tables import webhook_endpoints as endpoints
from app.webhooks.outbox import CALLBACK, RETRY_WINDOW_SECONDS

RETENTION_SECONDS = 30 * 24 * 3600.0
PURGE_BATCH = 500


async def list_deliveries(
    database: Database, user_id: int, *, status: str | None, task_no: str | None, page: int, size: int
) -> tuple[list[dict[str, Any]], int]:
    """One page of deliveries, newest first, and the number of all up to MAX_REACH (see `PageQuery`)."""
    values = {"user": user_id, "status": status, "task_no": task_no}
    async with database.read_list(user_id) as connection:
        return await _page_query(bool(status), bool(task_no)).read(connection, values, page=page, size=size)


@functools.cache
def _page_query(by_status: bool, by_task: bool) -> PageQuery:
    user: BindParameter[int] = bindparam("user")
    conditions = [deliveries.c.user_id == user]
    if by_status:
        conditions.append(deliveries.c.status == bindparam("status"))
    if by_task:
        task = select(tasks.c.id).where(tasks.c.task_no == bindparam("task_no"), tasks.c.user_id == user)
        conditions.append(deliveries.c.task_id == task.scalar_subquery())
    matching = select(deliveries.c.id).where(*conditions)
    return PageQuery(_SHOWN, deliveries.c.id, matching=matching, order=(deliveries.c.id.desc(),))


@retry_on_conflict
async def replay(database: Database, user_id: int, delivery_id: int) -> dict[str, Any]:
    """Makes the delivery due now, with a new day of attempts, and returns its row.

    A delivery that a process is sending right now stays unchanged. Raises NotFound, or InvalidParameter where the
    endpoint is deleted or disabled.
    """
    this = (deliveries.c.id == delivery_id) & (deliveries.c.user_id == user_id)
    is_free = or_(deliveries.c.lease_until.is_(None), deliveries.c.lease_until <= utc_now())
    async with database.begin() as connection:
        row = (await connection.execute(_SHOWN.where(this))).one_or_none()
        if row is None:
            raise NotFound("推送记录不存在")
        if row.url is None or row.disabled_at is not None:
            raise InvalidParameter("id", "的推送端点已删除或已停用")
        await connection.execute(
            update(deliveries)
            .where(this, is_free)
            .values(
                status="pending",
                version=deliveries.c.version + 1,
                attempts=0,
                next_run_at=utc_now(),
                lease_until=None,
                give_up_at=utc_after(RETRY_WINDOW_SECONDS),
                delivered_at=None,
            )
        )
        return dict((await connection.execute(_SHOWN.where(this))).one()._mapping)


async def purge_old(database: Database) -> int:
    """Deletes ended deliveries older than RETENTION_SECONDS, oldest first. Returns their number."""
    purged = 0
    while ids := await _find_old(database):
        await _delete(database, ids)
        purged += len(ids)
    return purged


async def _find_old(database: Database) -> list[int]:
    async with database.read() as connection:
        return list(await connection.scalars(_OLD, {"age": -RETENTION_SECONDS}))


@retry_on_conflict
async def _delete(database: Database, ids: list[int]) -> None:
    async with database.begin() as connection:
        await connection.execute(delete(deliveries).where(deliveries.c.id.in_(ids)))


_is_callback: ColumnElement[bool] = deliveries.c.endpoint_id == CALLBACK
_SHOWN = (
    select(
        *[
            deliveries.c[name]
            for name in [
                "id",
                "endpoint_id",
                "status",
                "attempts",
                "next_run_at",
                "outcome",
                "status_code",
                "duration_ms",
                "created_at",
                "delivered_at",
            ]
        ],
        tasks.c.task_no,
        tasks.c.status.label("task_status"),
        case((_is_callback, tasks.c.callback_url), else_=endpoints.c.url).label("url"),  # NULL: the endpoint is deleted
        endpoints.c.disabled_at,
    )
    .join(tasks, tasks.c.id == deliveries.c.task_id)
    .outerjoin(endpoints, (endpoints.c.id == deliveries.c.endpoint_id) & (endpoints.c.user_id == deliveries.c.user_id))
)
# In the order of the primary key the oldest rows come first, so the purge needs no index of its own.
_by_age = select(deliveries.c.id, deliveries.c.created_at, deliveries.c.status).order_by(deliveries.c.id)
_oldest = _by_age.limit(PURGE_BATCH).subquery()
_OLD = select(_oldest.c.id).where(_oldest.c.created_at < utc_after(bindparam("age")), _oldest.c.status != "pending")
