"""Opens database connections and commits transactions.

`Database.begin()` opens a transaction that commits when the block ends. `Database.read()` opens a connection in
autocommit. `Database.load()` shares one read among all who ask in the same moment. For errors see `errors.py`.
"""

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from sqlalchemy import Executable, literal, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.aio import Batcher, Batchers, acting_user
from app.database.dialect import limit_statements
from app.database.errors import CommitUnknown, is_away, translate_errors
from app.database.paging import ReadShares, SettledCounts
from app.database.schema.constraints import verify_constraints
from app.database.schema.revision import verify_revision

K = TypeVar("K")
V = TypeVar("V")

Connection = AsyncConnection
"""A connection inside a transaction. Functions that take one join the transaction and never commit it."""

Read = Callable[[Connection, set[K]], Awaitable[Mapping[K, V]]]
"""Reads the rows of some keys with one statement. A key that is not found is not in the mapping."""

COMMIT_TIMEOUT_SECONDS = 10
TRANSACTION_TIMEOUT_SECONDS = 25  # after this time a database that hangs counts as unreachable
STATEMENT_SECONDS = 10  # after this time the database ends a statement of a reader
MAX_LOADED, MAX_LOADS = 64, 2  # keys of one shared read, and shared reads of one kind at once


class _Connection(AsyncConnection):
    """If the first statement finds that the connection is dead, it is repeated once on a new one.

    Nothing can have been committed before it.
    """

    _was_used = False

    async def execute(self, statement: Executable, parameters: Any = None, *, execution_options: Any = None) -> Any:
        is_first, self._was_used = not self._was_used, True
        try:
            return await super().execute(statement, parameters, execution_options=execution_options)
        except DBAPIError as error:
            if not (is_first and error.connection_invalidated):
                raise
        await self.rollback()
        await self.get_raw_connection()  # connects again; within a statement SQLAlchemy would wrap each error
        return await super().execute(statement, parameters, execution_options=execution_options)


class Database:
    """The connections to one database. `open_database` opens it, `close` closes it.

    `drop_idle` makes the pools replace their idle connections, because the database did not answer.
    """

    def __init__(
        self,
        writers: AsyncEngine,
        readers: AsyncEngine,
        max_readers: int,
        drop_idle: Callable[[], None] = lambda: None,
    ) -> None:
        self.writers = writers
        self.readers = readers
        self._drop_idle = drop_idle
        self.task_counts = SettledCounts()
        self._shares = ReadShares(max_readers)
        self.batchers = Batchers()
        self._is_verified = False
        self._verifying = asyncio.Lock()

    async def verify(self) -> None:
        """Verifies once that the database has the schema of this version and enforces the ledger's constraints.

        `begin` calls it before the first transaction, so nothing is written to a database that is not verified.
        Raises UnsafeDatabase, or Unavailable if the database is unreachable.
        """
        async with self._verifying:
            if self._is_verified:
                return
            with translate_errors(self._drop_idle):
                async with asyncio.timeout(TRANSACTION_TIMEOUT_SECONDS), self.writers.connect() as connection:
                    await verify_revision(connection)
                    await verify_constraints(connection)
            self._is_verified = True

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[Connection]:
        """Opens a transaction. It commits when the block ends and rolls back when the block raises."""
        if not self._is_verified:
            await self.verify()
        with translate_errors(self._drop_idle):
            async with asyncio.timeout(TRANSACTION_TIMEOUT_SECONDS) as timeout, _Connection(self.writers) as connection:
                await connection.begin()
                yield connection
                # COMMIT has a timeout of its own, because only there a timeout means CommitUnknown.
                timeout.reschedule(asyncio.get_running_loop().time() + 2 * COMMIT_TIMEOUT_SECONDS)
                await _commit(connection)

    @asynccontextmanager
    async def read(self, seconds: float = TRANSACTION_TIMEOUT_SECONDS) -> AsyncIterator[Connection]:
        """Opens a connection in autocommit. Each statement is one round trip and reads the newest committed state.

        The database ends a statement after STATEMENT_SECONDS, or after `seconds` if this is more than the default.
        """
        with translate_errors(self._drop_idle):
            async with asyncio.timeout(seconds), _Connection(self.readers) as connection:
                if seconds <= TRANSACTION_TIMEOUT_SECONDS:
                    yield connection
                    return
                async with _longer_limit(connection, seconds):
                    yield connection

    @asynccontextmanager
    async def read_list(self, user_id: int) -> AsyncIterator[Connection]:
        """Opens a connection like `read`, for a list of one user. Raises RateLimited and Unavailable (ReadShares)."""
        async with self._shares.take(user_id), self.read() as connection:
            yield connection

    async def load(self, read: Read[K, V], key: K) -> V | None:
        """What `read` finds for `key`. One call of `read` answers all who ask in the same moment.

        Nothing is kept: the query begins after the question.
        """
        batcher: Batcher[K, V | None] = self.batchers.get(
            read, functools.partial(self._load, read), max_size=MAX_LOADED, max_running=MAX_LOADS
        )
        return await batcher.ask(key, acting_user.get())

    async def _load(self, read: Read[K, V], keys: list[K]) -> list[V | None]:
        async with self.read() as connection:
            found = await read(connection, set(keys))
        return [found.get(key) for key in keys]

    async def close(self) -> None:
        await self.writers.dispose()
        await self.readers.dispose()


@asynccontextmanager
async def _longer_limit(connection: Connection, seconds: float) -> AsyncIterator[None]:
    """Statements may take so long within the block."""
    if connection.dialect.name == "sqlite":
        connection.sync_connection.info["deadline"] = time.monotonic() + seconds  # type: ignore[union-attr]
        yield
        return
    await connection.exec_driver_sql(f"SET time_zone='+00:00' {limit_statements(seconds)}")
    try:
        yield
    finally:
        await connection.invalidate()  # the pool opens a new one, with the usual limit


async def _commit(connection: AsyncConnection) -> None:
    try:
        async with asyncio.timeout(COMMIT_TIMEOUT_SECONDS):
            await connection.commit()
    except TimeoutError as error:
        raise CommitUnknown from error
    except DBAPIError as error:
        if is_away(error):
            raise CommitUnknown from error
        raise


async def ping(database: Database) -> None:
    """Runs one trivial statement. Raises Unavailable if the database is unreachable."""
    async with database.read() as connection:
        await connection.scalar(select(literal(1)))
