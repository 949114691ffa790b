"""The changes of one user's tasks, as every stream of the API sends them. It only reads.

A change is found in three ways, and each of them reads the task's row again. A stream is therefore never ahead of the
database, and a task never goes backwards in it:
- A notice names the changed task at once.
- A query by the clock finds all recent changes, because notices may be lost.
- A caller who was away says since when.

A query for "changed since" reaches back further than asked, by the longest duration of a transaction: `updated_at` is
set when a change is made, but the change is visible only after COMMIT. So a consumer may get a change twice, never not
at all.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import Row, Select, bindparam, select

from app.database import COMMIT_TIMEOUT_SECONDS, TRANSACTION_TIMEOUT_SECONDS, utc_after, utc_now
from app.datetimes import parse_datetime
from app.engine.state import boottime
from app.errors import InvalidParameter, Unavailable
from app.messaging.pubsub import POLL_SECONDS, Subscription
from app.runtime import Runtime
from app.tables import tasks
from app.tasks.view import PUBLIC_COLUMNS

COMMIT_LAG_SECONDS = float(TRANSACTION_TIMEOUT_SECONDS + COMMIT_TIMEOUT_SECONDS)
REMEMBERED_SECONDS = COMMIT_LAG_SECONDS + 2 * POLL_SECONDS
MAX_JITTER = 1.2
REPLAYED_SECONDS = COMMIT_LAG_SECONDS + MAX_JITTER * POLL_SECONDS  # a stream may have ended before its next query
MIN_SINCE = datetime(1970, 1, 1, tzinfo=UTC)
PING_SECONDS = 30.0
RETRY_SECONDS = 2.0
PAGE = 200
MAX_ROWS_HELD = 20  # whole rows at a time: prompts may be long, and consumers slow
ENDED = frozenset({"completed", "failed"})
EVENT_ID_DIGITS = range(11, 16)  # milliseconds since 1970; an ISO date in digits is shorter


def event_id(row: dict[str, Any]) -> str:
    """Milliseconds since 1970. A consumer that resumes after this id misses nothing."""
    return str(round(row["watermark"].timestamp() * 1000))


def read_since(text: str | None, zone: ZoneInfo) -> datetime | None:
    """An event id or an ISO time like `updateTime`. None for None; InvalidParameter otherwise."""
    if text and text.isascii() and text.isdecimal() and len(text) in EVENT_ID_DIGITS:
        try:
            return datetime.fromtimestamp(int(text) / 1000, UTC)
        except (OverflowError, ValueError, OSError):
            raise InvalidParameter("since", "须为 ISO 时间或事件 ID") from None
    moment = parse_datetime("since", text, zone)
    return moment and max(moment, MIN_SINCE)


@dataclass(slots=True)
class _Page:
    """The next query of a walk over changed tasks. `is_periodic`: the walk was started by the clock."""

    statement: Select[Any]
    values: dict[str, Any]
    is_periodic: bool


class TaskStream:
    """What one stream has sent, and where it continues."""

    def __init__(self, runtime: Runtime, user_id: int, since: datetime | None = None) -> None:
        self._runtime = runtime
        self._user_id = user_id
        self._since = since
        self._subscription = Subscription()
        self._seen: dict[int, tuple[str, int, float]] = {}  # by task id: status, progress, boot time
        self._queried_at = self._query_began = boottime()
        self._must_query = False
        self._page: _Page | None = None

    def replay(self, since: datetime) -> None:
        """Sends every change since then again, as the tasks are now."""
        self._since = since
        self._subscription.wake()

    async def changes(self) -> AsyncGenerator[dict[str, Any] | None, None]:
        """Changed rows for `view_task` and `event_id`. It ends when this process does.

        The first None says that from now on no change is missed; later ones come every 30 seconds as a ping, and when
        the caller's credential may have ended. Raises Unavailable only before the first None.
        """
        async with self._runtime.pubsub.subscribe(self._user_id) as self._subscription:
            if self._since is None:
                await self._skip_existing()
            yield None
            pinged_at = boottime()
            jitter = random.uniform(0.8, MAX_JITTER)  # noqa: S311 (streams that began together query at other times)
            while not self._subscription.is_closed:
                try:
                    async for row in self._changes(jitter):
                        yield row
                except Unavailable:
                    self._subscription.mark_lost()
                    await asyncio.sleep(RETRY_SECONDS * jitter)
                if self._subscription.take_recheck() or boottime() - pinged_at >= PING_SECONDS:
                    pinged_at = boottime()
                    yield None
                next_query_at = self._queried_at + self._runtime.pubsub.poll_interval * jitter
                await self._subscription.wait(min(next_query_at, pinged_at + PING_SECONDS) - boottime())

    async def _skip_existing(self) -> None:
        """Marks the present state as seen. A change that is committed later is still new."""
        page: _Page | None = self._begin_query()
        while page is not None:
            rows = await self._read(page.statement, page.values)
            for row in rows:
                self._remember(row)
            page = self._next_page(page, rows)

    async def _changes(self, jitter: float) -> AsyncGenerator[dict[str, Any], None]:
        """Oldest first, so that no event id is ahead of a change that was not sent."""
        numbers, has_missed = self._subscription.drain()
        if len(numbers) > MAX_ROWS_HELD:
            numbers, has_missed = [], True
        self._must_query |= has_missed
        while (page := self._find_page(jitter)) is not None:
            rows = await self._read(page.statement, page.values)
            for chunk in _in_chunks([row for row in rows if self._is_new(row)]):
                for row in await self._read(_BY_IDS, {"ids": [one.id for one in chunk]}):
                    if self._remember(row):
                        yield self._event(row, chunk[-1].updated_at)  # the row may be newer than the walk
            self._page = self._next_page(page, rows)
        for row in await self._read(_BY_NUMBERS, {"numbers": numbers}) if numbers else ():
            if self._remember(row):
                yield self._event(row, row.updated_at)

    def _event(self, row: Row[Any], watermark: datetime) -> dict[str, Any]:
        """The row with its watermark: the time up to which all is sent. A replay that has not begun holds it back."""
        return {**row._mapping, "watermark": min(row.updated_at, watermark, self._since or watermark)}

    def _find_page(self, jitter: float) -> _Page | None:
        """The page where an earlier walk stopped, or the first page of a walk that is due."""
        if self._page is None and self._since is not None:
            at, self._since = self._since - timedelta(seconds=REPLAYED_SECONDS), None
            self._seen.clear()
            self._page = _Page(_CHANGED_AFTER, {"at": at, "id": 0}, is_periodic=False)
        elapsed = boottime() - self._queried_at
        if self._page is None and (self._must_query or elapsed >= self._runtime.pubsub.poll_interval * jitter):
            self._page = self._begin_query()
        return self._page

    def _begin_query(self) -> _Page:
        """The span since the last query is measured by the local clock, its end by the database: no clocks compared."""
        self._must_query = False
        self._query_began = boottime()
        seconds = COMMIT_LAG_SECONDS + self._query_began - self._queried_at
        return _Page(_CHANGED_LATELY, {"seconds": -round(seconds, 3)}, is_periodic=True)

    def _next_page(self, page: _Page, rows: Sequence[Row[Any]]) -> _Page | None:
        if len(rows) == PAGE:
            return _Page(_CHANGED_AFTER, {"at": rows[-1].updated_at, "id": rows[-1].id}, page.is_periodic)
        if page.is_periodic:
            self._queried_at = self._query_began
            self._forget_old()
        return None

    def _forget_old(self) -> None:
        """Drops tasks that ended before the reach of any query. So memory does not grow with the age of a stream."""
        oldest = boottime() - REMEMBERED_SECONDS
        self._seen = {id_: seen for id_, seen in self._seen.items() if seen[0] not in ENDED or seen[2] > oldest}

    def _is_new(self, row: Row[Any]) -> bool:
        seen = self._seen.get(row.id)
        return seen is None or seen[:2] != (row.status, row.progress)

    def _remember(self, row: Row[Any]) -> bool:
        """True where the row is new; from then on it counts as sent."""
        if not self._is_new(row):
            return False
        if row.status in ENDED and (row.now - row.updated_at).total_seconds() > REMEMBERED_SECONDS:
            self._seen.pop(row.id, None)
        else:
            self._seen[row.id] = (row.status, row.progress, boottime())
        return True

    async def _read(self, statement: Select[Any], values: dict[str, Any]) -> Sequence[Row[Any]]:
        """No connection is held while a consumer is slow."""
        async with self._runtime.pubsub.query_limit, self._runtime.database.read() as connection:
            rows: Sequence[Row[Any]] = (await connection.execute(statement, values | {"user": self._user_id})).all()
        return rows


def _in_chunks(rows: list[Row[Any]]) -> list[list[Row[Any]]]:
    return [rows[start : start + MAX_ROWS_HELD] for start in range(0, len(rows), MAX_ROWS_HELD)]


_is_owner = tasks.c.user_id == bindparam("user")
_order = (tasks.c.updated_at, tasks.c.id)
_ROW = select(tasks.c.id, *PUBLIC_COLUMNS).where(_is_owner).order_by(*_order)
_BY_NUMBERS = _ROW.where(tasks.c.task_no.in_(bindparam("numbers", expanding=True)))
_BY_IDS = _ROW.where(tasks.c.id.in_(bindparam("ids", expanding=True)))
_CHANGED = (
    select(tasks.c.id, tasks.c.status, tasks.c.progress, tasks.c.updated_at, utc_now().label("now"))
    .where(_is_owner)
    .order_by(*_order)
    .limit(PAGE)
)
_CHANGED_LATELY = _CHANGED.where(tasks.c.updated_at >= utc_after(bindparam("seconds")))
_CHANGED_AFTER = _CHANGED.where(
    tasks.c.updated_at >= bindparam("at"), (tasks.c.updated_at > bindparam("at")) | (tasks.c.id > bindparam("id"))
)
