"""Lists for one user: pages with a bounded reach, and a bounded share of the connections.

A page and the number of all rows come in one answer. The rows of tasks are large, so the ids come first, from an index
alone if there is one, and then only the rows of the page.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Integer, Select, UnaryExpression, bindparam, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import InvalidParameter, RateLimited, Unavailable

MAX_REACH = 100_000
"""A list shows so many rows, the first ones in its order, and counts no further."""
MAX_WAIT_SECONDS = 2.0

START = bindparam("page_start", type_=Integer)
_size, _reach = bindparam("page_size", type_=Integer), bindparam("page_reach", type_=Integer)


def count_up_to_reach(matching: Select[Any]) -> Select[Any]:
    """The number of the rows that `matching` selects. It counts no further than the reach."""
    return select(func.count()).select_from(matching.limit(_reach).subquery())


class PageQuery:
    """The statements of one list. They are built once; a page gives them its values.

    `shown` selects the columns of a row, and `counted` the number of all rows. `matching` selects `key` of all rows
    that the list may show. With `skips` it selects those from the page's START on, and no offset is needed.
    """

    def __init__(
        self,
        shown: Select[Any],
        key: ColumnElement[int],
        *,
        matching: Select[Any],
        order: tuple[UnaryExpression[Any], ...],
        counted: Select[Any] | None = None,
        skips: bool = False,
    ) -> None:
        self._counted = count_up_to_reach(matching) if counted is None else counted
        ordered = matching.order_by(*order).limit(_size)
        ids = (ordered if skips else ordered.offset(START)).subquery()
        page = shown.add_columns(self._counted.scalar_subquery().label("page_total"))
        self._page = page.join(ids, ids.c[key.name] == key).order_by(*order)

    async def read(
        self,
        connection: AsyncConnection,
        values: Mapping[str, Any],
        *,
        page: int,
        size: int,
        reach: int | None = None,
        counted_before: int = 0,
    ) -> tuple[list[dict[str, Any]], int]:
        """One page of rows, and the number of all rows up to `reach`. Pages count from 1.

        `counted_before` is the number of rows that `counted` leaves out. Raises InvalidParameter for a page beyond
        `reach`.
        """
        reach, start = MAX_REACH if reach is None else reach, (page - 1) * size
        bounds = {"page_start": start, "page_size": min(size, reach - start), "page_reach": reach - counted_before}
        rows: list[dict[str, Any]] = []
        if start < reach:
            found = await connection.execute(self._page, {**values, **bounds})
            rows = [dict(row._mapping) for row in found]
        counted = [int(row.pop("page_total")) for row in rows]
        if not rows and start:
            counted = [int(await connection.scalar(self._counted, {**values, **bounds}) or 0)]
        total = min(counted_before + sum(counted[:1]), reach)
        if not rows and total >= reach:
            raise InvalidParameter("page", f"超出范围，只能查看前 {reach} 条，请缩小筛选范围")
        return rows, total


class SettledCounts:
    """How many old rows the users with long lists have, so that not every page counts them again.

    Rows leave a list only if they are erased. A row is old SETTLED_SECONDS after its time, when every transaction that
    could still insert a row with that time has ended. A number is used for KEPT_SECONDS, so rows that an operator adds
    or deletes by hand count after that.
    """

    SETTLED_SECONDS = 120.0
    KEPT_SECONDS = 60.0
    MIN_ROWS = 1000  # fewer are counted at once
    MAX_USERS = 1000

    def __init__(self) -> None:
        self._users: dict[int, tuple[float, datetime | None, int]] = {}

    def get(self, user_id: int) -> tuple[datetime, int] | None:
        """A time, and the number of the user's rows up to it. None where all have to be counted."""
        kept_until, settled, number = self._users.get(user_id, (0.0, None, 0))
        return (settled, number) if settled is not None and time.monotonic() < kept_until else None

    def settled_at(self, now: datetime) -> datetime:
        """The time up to which rows are old."""
        return now - timedelta(seconds=self.SETTLED_SECONDS)

    def forget(self, user_id: int) -> None:
        """Because rows of the user are gone. Other processes use their number a little longer."""
        self._users.pop(user_id, None)

    def put(self, user_id: int, settled: datetime, number: int) -> None:
        self._users.pop(user_id, None)
        self._users[user_id] = (time.monotonic() + self.KEPT_SECONDS, settled, number)
        if len(self._users) > self.MAX_USERS:
            del self._users[next(iter(self._users))]


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
