"""Sessions and what may go wrong with them. SQLAlchemy's own errors stop here.

`Sessions` hands out connections of two kinds: `begin()` for a transaction that commits when the block ends, and
`read()` for single statements outside any transaction. What a caller may wait out becomes `Unavailable`, what is worth
repeating becomes `Conflict`.
"""

import asyncio
import functools
import random
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import ParamSpec, TypeVar

import structlog
from sqlalchemy import literal, select
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.database.proof import prove
from app.database.revision import verify_revision
from app.errors import Unavailable

log = structlog.get_logger()

P = ParamSpec("P")
T = TypeVar("T")

Session = AsyncConnection
"""What topic functions join. They never commit it."""

LONGEST_COMMIT_SECONDS = 10
LONGEST_TRANSACTION_SECONDS = 25  # a database that hangs is a database that is away
REPEATS = 8
DEADLOCK, LOCK_WAIT, STALE_SNAPSHOT = 1213, 1205, 1020
SERVER_AWAY = frozenset(
    {
        1021,
        1040,
        1045,
        1053,
        1114,
        1129,
        1152,
        1153,
        1158,
        1159,
        1160,
        1161,
        1203,
        1226,
        1290,
        1836,
        1927,
        2002,
        2003,
        2006,
        2013,
        2055,
    }
)


class Conflict(Unavailable):
    """The database asked for the whole transaction to be repeated: a deadlock, or a lock not had in time."""


class CommitUnknown(Unavailable):
    """The connection broke while COMMIT was on its way: it may or may not have happened. Read before repeating."""


class DuplicateRow(Exception):
    """A UNIQUE constraint refused a row. `text` is the driver's own, for telling which."""

    def __init__(self, text: str) -> None:
        self.text = text
        super().__init__(text)


class Sessions:
    """Connections to one database. Opened by `open_database`, closed by `close`."""

    def __init__(self, writers: AsyncEngine, readers: AsyncEngine) -> None:
        self.writers = writers
        self.readers = readers
        self._is_proven = False
        self._proving = asyncio.Lock()

    async def prove(self) -> None:
        """That the database has our schema and refuses what would break the books: once, before the first transaction.

        So a database that was away at the start is proved at the first contact, and nothing is written to one that
        was not. Raises DatabaseUnfit, or Unavailable where it cannot be asked.
        """
        async with self._proving:
            if self._is_proven:
                return
            with _translated():
                async with asyncio.timeout(LONGEST_TRANSACTION_SECONDS), self.writers.connect() as connection:
                    await verify_revision(connection)
                    await prove(connection)
            self._is_proven = True

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[Session]:
        """One transaction: committed when the block ends, rolled back when it raises."""
        if not self._is_proven:
            await self.prove()
        with _translated():
            async with asyncio.timeout(LONGEST_TRANSACTION_SECONDS) as clock, self.writers.connect() as connection:
                await connection.begin()
                yield connection
                # COMMIT has a clock of its own, which alone can say that its end is unknown.
                clock.reschedule(asyncio.get_running_loop().time() + 2 * LONGEST_COMMIT_SECONDS)
                await _commit(connection)

    @asynccontextmanager
    async def read(self, seconds: float = LONGEST_TRANSACTION_SECONDS) -> AsyncIterator[Session]:
        """A connection in autocommit: one round trip a statement, the newest committed state."""
        with _translated():
            async with asyncio.timeout(seconds), self.readers.connect() as connection:
                yield connection

    async def close(self) -> None:
        await self.writers.dispose()
        await self.readers.dispose()


async def _commit(connection: AsyncConnection) -> None:
    try:
        async with asyncio.timeout(LONGEST_COMMIT_SECONDS):
            await connection.commit()
    except TimeoutError as error:
        raise CommitUnknown from error
    except DBAPIError as error:
        if _is_away(error):
            raise CommitUnknown from error
        raise


class _translated:  # noqa: N801 (a context manager written as a class: it runs on every statement's path)
    """Turns the driver's errors into ours on the way out."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or not isinstance(error, SQLAlchemyError | OSError):
            return
        if isinstance(error, IntegrityError) and _is_duplicate(error):
            raise DuplicateRow(str(error.orig)) from error
        if isinstance(error, DBAPIError) and _is_conflict(error):
            raise Conflict from error
        if isinstance(error, PoolTimeout | OSError) or (isinstance(error, DBAPIError) and _is_away(error)):
            log.warning("database_away", error=str(getattr(error, "orig", error))[:300])
            raise Unavailable from error


def _code(error: DBAPIError) -> int | None:
    args = getattr(error.orig, "args", ())
    return args[0] if args and isinstance(args[0], int) else None


def _is_conflict(error: DBAPIError) -> bool:
    if _code(error) in {DEADLOCK, LOCK_WAIT, STALE_SNAPSHOT}:
        return True
    return isinstance(error.orig, sqlite3.OperationalError) and "locked" in str(error.orig)


def _is_away(error: DBAPIError) -> bool:
    return error.connection_invalidated or _code(error) in SERVER_AWAY


def _is_duplicate(error: IntegrityError) -> bool:
    return _code(error) == 1062 or "UNIQUE constraint failed" in str(error.orig)  # noqa: PLR2004


def repeat_on_conflict(work: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """Repeats a function that opens its own transaction when the database asks for it, with jitter.

    Only whole transactions are repeated: everything the lost one did was rolled back with it.
    """

    @functools.wraps(work)
    async def repeated(*args: P.args, **kwargs: P.kwargs) -> T:
        for attempt in range(REPEATS):
            try:
                return await work(*args, **kwargs)
            except Conflict:
                if attempt == REPEATS - 1:
                    raise
                await asyncio.sleep(random.uniform(0.2, 1) * 0.01 * 2**attempt)  # noqa: S311
        raise AssertionError("unreachable")

    return repeated


async def ping(sessions: Sessions) -> None:
    """One trivial statement; raises Unavailable where the database is away."""
    async with sessions.read() as session:
        await session.scalar(select(literal(1)))
