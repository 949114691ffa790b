"""One user's tasks as they change: what every stream of the API is made of. It only reads.

Three things lead to a task that changed, and all end in the same look at its row, so a stream is never ahead of the
database and a task never goes backwards in it. A notice says which task to look at, at once. The clock says when to
look at everything that changed lately, because notices may be lost. And a caller who was away says since when.

"Changed since" reaches back further than asked, by as long as a transaction may take: `updated_at` is written when a
change is made, and it can be seen only after the COMMIT. So whoever follows may be told twice, but never not at all.
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
from app.engine.claim import boottime
from app.errors import InvalidParameter, Unavailable
from app.messaging.pubsub import POLL_SECONDS, Subscription
from app.runtime import Runtime
from app.tables import tasks
from app.tasks.queries import PUBLIC_COLUMNS

COMMIT_LAG_SECONDS = float(TRANSACTION_TIMEOUT_SECONDS + COMMIT_TIMEOUT_SECONDS)
REMEMBERED_SECONDS = COMMIT_LAG_SECONDS + 2 * POLL_SECONDS
SLOWEST_PACE = 1.2
REPLAYED_SECONDS = COMMIT_LAG_SECONDS + SLOWEST_PACE * POLL_SECONDS  # a stream may have ended before its next look
MIN_SINCE = datetime(1970, 1, 1, tzinfo=UTC)
PING_SECONDS = 30.0
RETRY_SECONDS = 2.0
PAGE = 200
MAX_REMEMBERED = 20  # whole rows at a time: prompts may be long, and consumers slow
ENDED = frozenset({"completed", "failed"})
EVENT_ID_DIGITS = range(11, 16)  # milliseconds since 1970; an ISO date in digits is shorter


def event_id(row: dict[str, Any]) -> str:
    """From where to go on after this change, in milliseconds since 1970: all that is older has been told."""
    return str(round(row["told_to"].timestamp() * 1000))


def read_since(text: str | None, zone: ZoneInfo) -> datetime | None:
    """An event id or an ISO time, as `updateTime` is. None for none; InvalidParameter otherwise."""
    if text and text.isascii() and text.isdecimal() and len(text) in EVENT_ID_DIGITS:
        try:
            return datetime.fromtimestamp(int(text) / 1000, UTC)
        except (OverflowError, ValueError, OSError):
            raise InvalidParameter("since", "须为 ISO 时间或事件 ID") from None
    moment = parse_datetime("since", text, zone)
    return moment and max(moment, MIN_SINCE)


@dataclass(slots=True)
class _Page:
    """Where a walk over what changed goes on; `looks` where it is one of those by the clock."""

    statement: Select[Any]
    values: dict[str, Any]
    looks: bool


class TaskStream:
    """What one stream has told already, and where it goes on."""

    def __init__(self, runtime: Runtime, user_id: int, since: datetime | None = None) -> None:
        self._runtime = runtime
        self._user_id = user_id
        self._since = since
        self._subscription = Subscription()
        self._seen: dict[int, tuple[str, int, float]] = {}  # by task: status, progress, when by the boot clock
        self._looked_at = self._look_begins = boottime()
        self._must_look = False
        self._page: _Page | None = None

    def replay(self, since: datetime) -> None:
        """Tells everything again that changed since then, as it stands now."""
        self._since = since
        self._subscription.wake()

    async def changes(self) -> AsyncGenerator[dict[str, Any] | None, None]:
        """Rows as `view_task` and `event_id` want them, each when it changed; None first, once nothing can be missed,
        and then every half a minute. It ends when this process does. Raises Unavailable only before the first None.
        """
        async with self._runtime.pubsub.subscribe(self._user_id) as self._subscription:
            if self._since is None:
                await self._skip_existing()
            yield None
            pinged_at = boottime()
            pace = random.uniform(0.8, SLOWEST_PACE)  # noqa: S311 (who came together looks at other times)
            while not self._subscription.is_closed:
                try:
                    async for row in self._changes(pace):
                        yield row
                except Unavailable:
                    self._subscription.mark_lost()
                    await asyncio.sleep(RETRY_SECONDS * pace)
                if boottime() - pinged_at >= PING_SECONDS:
                    pinged_at = boottime()
                    yield None
                next_look = self._looked_at + self._runtime.pubsub.poll_interval * pace
                await self._subscription.wait(min(next_look, pinged_at + PING_SECONDS) - boottime())

    async def _skip_existing(self) -> None:
        """Nobody asked for what was before; what was written then and is committed later is news all the same."""
        page: _Page | None = self._begin_look()
        while page is not None:
            rows = await self._read(page.statement, page.values)
            for row in rows:
                self._apply(row)
            page = self._next_page(page, rows)

    async def _changes(self, pace: float) -> AsyncGenerator[dict[str, Any], None]:
        """Oldest first, whatever told of it, so that no id is ahead of what was not told yet."""
        numbers, has_missed = self._subscription.drain()
        if len(numbers) > MAX_REMEMBERED:
            numbers, has_missed = [], True
        self._must_look |= has_missed
        while (page := self._find_page(pace)) is not None:
            rows = await self._read(page.statement, page.values)
            for some in _in_chunks([row for row in rows if self._is_new(row)]):
                for row in await self._read(_THESE, {"ids": [one.id for one in some]}):
                    if self._apply(row):
                        yield self._event(row, some[-1].updated_at)  # it may have changed since the walk passed
            self._page = self._next_page(page, rows)
        for row in await self._read(_NAMED, {"numbers": numbers}) if numbers else ():
            if self._apply(row):
                yield self._event(row, row.updated_at)

    def _event(self, row: Row[Any], told_to: datetime) -> dict[str, Any]:
        """The row, and up to when all has been told: never beyond a replay that was asked for and is not begun."""
        return {**row._mapping, "told_to": min(row.updated_at, told_to, self._since or told_to)}

    def _find_page(self, pace: float) -> _Page | None:
        """The one where an earlier walk stopped, or the first of one that is due."""
        if self._page is None and self._since is not None:
            at, self._since = self._since - timedelta(seconds=REPLAYED_SECONDS), None
            self._seen.clear()
            self._page = _Page(_AFTER, {"at": at, "id": 0}, looks=False)
        elapsed = boottime() - self._looked_at
        if self._page is None and (self._must_look or elapsed >= self._runtime.pubsub.poll_interval * pace):
            self._page = self._begin_look()
        return self._page

    def _begin_look(self) -> _Page:
        """Since the last look by our clock, before now by the database's: no two clocks are compared."""
        self._must_look = False
        self._look_begins = boottime()
        seconds = COMMIT_LAG_SECONDS + self._look_begins - self._looked_at
        return _Page(_LATELY, {"seconds": -round(seconds, 3)}, looks=True)

    def _next_page(self, page: _Page, rows: Sequence[Row[Any]]) -> _Page | None:
        if len(rows) == PAGE:
            return _Page(_AFTER, {"at": rows[-1].updated_at, "id": rows[-1].id}, page.looks)
        if page.looks:
            self._looked_at = self._look_begins
            self._delete()
        return None

    def _delete(self) -> None:
        """What ended so long ago that no look finds it any more. So nothing grows with the length of a stream."""
        long_ago = boottime() - REMEMBERED_SECONDS
        self._seen = {id_: told for id_, told in self._seen.items() if told[0] not in ENDED or told[2] > long_ago}

    def _is_new(self, row: Row[Any]) -> bool:
        known = self._seen.get(row.id)
        return known is None or known[:2] != (row.status, row.progress)

    def _apply(self, row: Row[Any]) -> bool:
        """Whether this is to be told; then it counts as told."""
        if not self._is_new(row):
            return False
        if row.status in ENDED and (row.now - row.updated_at).total_seconds() > REMEMBERED_SECONDS:
            self._seen.pop(row.id, None)
        else:
            self._seen[row.id] = (row.status, row.progress, boottime())
        return True

    async def _read(self, statement: Select[Any], values: dict[str, Any]) -> Sequence[Row[Any]]:
        """No connection is held while a consumer takes its time."""
        async with self._runtime.pubsub.query_limit, self._runtime.database.read() as connection:
            rows: Sequence[Row[Any]] = (await connection.execute(statement, values | {"user": self._user_id})).all()
        return rows


def _in_chunks(rows: list[Row[Any]]) -> list[list[Row[Any]]]:
    return [rows[start : start + MAX_REMEMBERED] for start in range(0, len(rows), MAX_REMEMBERED)]


_mine = tasks.c.user_id == bindparam("user")
_oldest_first = (tasks.c.updated_at, tasks.c.id)
_ROW = select(tasks.c.id, *PUBLIC_COLUMNS).where(_mine).order_by(*_oldest_first)
_NAMED = _ROW.where(tasks.c.task_no.in_(bindparam("numbers", expanding=True)))
_THESE = _ROW.where(tasks.c.id.in_(bindparam("ids", expanding=True)))
_STANDING = (
    select(tasks.c.id, tasks.c.status, tasks.c.progress, tasks.c.updated_at, utc_now().label("now"))
    .where(_mine)
    .order_by(*_oldest_first)
    .limit(PAGE)
)
_LATELY = _STANDING.where(tasks.c.updated_at >= utc_after(bindparam("seconds")))
_AFTER = _STANDING.where(
    tasks.c.updated_at >= bindparam("at"), (tasks.c.updated_at > bindparam("at")) | (tasks.c.id > bindparam("id"))
)
