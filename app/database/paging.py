"""Lists for one user: pages with a bounded reach, and a bounded share of the connections.

A page is read in two steps, because the rows of tasks are large: first the ids, from an index if there is one, then
only the rows of the page.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import ColumnElement, Select, UnaryExpression, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import InvalidParameter, RateLimited, Unavailable

MAX_REACH = 100_000
"""A list shows so many rows, the first ones in its order, and counts no further."""
MAX_WAIT_SECONDS = 2.0


async def read_page(
    connection: AsyncConnection,
    shown: Select[Any],
    key: ColumnElement[int],
    *,
    matching: Select[Any],
    order: tuple[UnaryExpression[Any], ...],
    page: int,
    size: int,
    reach: int = MAX_REACH,
) -> tuple[list[dict[str, Any]], int]:
    """One page of rows in `order`, and the number of all rows up to `reach`. Pages count from 1.

    `matching` selects `key` of all rows that the list may show. `shown` selects the columns of a row.
    Raises InvalidParameter for a page beyond `reach`.
    """
    counted = select(func.count()).select_from(matching.limit(reach).subquery())
    total = int(await connection.scalar(counted) or 0)
    start = (page - 1) * size
    if start >= total:
        if total >= reach:
            raise InvalidParameter("page", f"超出范围，只能查看前 {reach} 条，请缩小筛选范围")
        return [], total
    ids = matching.order_by(*order).limit(min(size, reach - start)).offset(start).subquery()
    rows = await connection.execute(shown.join(ids, ids.c[key.name] == key).order_by(*order))
    return [dict(row._mapping) for row in rows], total


class ReadShares:
    """The connections that lists may take: together half of the readers, and one user a quarter of these."""

    def __init__(self, readers: int) -> None:
        self._together = max(readers // 2, 1)
        self._for_user = max(self._together // 4, 1)
        self._all = asyncio.Semaphore(self._together)
        self._users: dict[int, _Share] = {}

    @asynccontextmanager
    async def take(self, user_id: int) -> AsyncIterator[None]:
        """Raises RateLimited if the user's other lists take too long, and Unavailable if those of all users do."""
        share = self._users.setdefault(user_id, _Share(self._for_user))
        share.users += 1
        try:
            await _acquire(share.free, RateLimited("列表查询过多，请等待前面的查询完成", retry_after_seconds=2))
            try:
                await _acquire(self._all, Unavailable())
                try:
                    yield
                finally:
                    self._all.release()
            finally:
                share.free.release()
        finally:
            share.users -= 1
            if not share.users:
                del self._users[user_id]


class _Share:
    def __init__(self, size: int) -> None:
        self.free = asyncio.Semaphore(size)
        self.users = 0  # that hold a place or wait for one


async def _acquire(places: asyncio.Semaphore, refusal: Exception) -> None:
    try:
        async with asyncio.timeout(MAX_WAIT_SECONDS):
            await places.acquire()
    except TimeoutError:
        raise refusal from None
