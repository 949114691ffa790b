"""Opens database connections, commits transactions, and turns SQLAlchemy's errors into ours.

`Database.begin()` opens a transaction that commits when the block ends. `Database.read()` opens a connection in
autocommit. An unreachable database is `Unavailable`. A conflict that is worth a retry is `TransactionConflict`.
"""

import asyncio
import functools
import random
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, ParamSpec, TypeVar

import structlog
from sqlalchemy import Executable, literal, select
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.database.constraints_check import verify_constraints
from app.database.dialect import limit_statements
from app.database.paging import ReadShares
from app.database.revision import verify_revision
from app.errors import Unavailable

log = structlog.get_logger()

P = ParamSpec("P")
T = TypeVar("T")

Connection = AsyncConnection
"""A connection inside a transaction. Functions that take one join the transaction and never commit it."""

COMMIT_TIMEOUT_SECONDS = 10
TRANSACTION_TIMEOUT_SECONDS = 25  # after this time a database that hangs counts as unreachable
STATEMENT_SECONDS = 10  # after this time the database ends a statement of a reader
MAX_ATTEMPTS = 8
DUPLICATE_KEY = 1062
DEADLOCK, LOCK_WAIT, STALE_SNAPSHOT = 1213, 1205, 1020
STATEMENT_ENDED = frozenset({1317, 1969, 3024})  # by KILL QUERY, or by the time limit of MariaDB or MySQL
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


class TransactionConflict(Unavailable):
    """The transaction must be repeated as a whole, after a deadlock or a lock timeout."""


class CommitUnknown(Unavailable):
    """The connection broke during COMMIT. The commit may have happened, so read before you repeat."""


class StatementTimeout(Unavailable):
    """The database ended the statement, because it took too long or because an administrator ended it."""


class UniqueViolation(Exception):
    """A UNIQUE constraint refused a row. `text` is the driver's message, which names the constraint."""

    def __init__(self, text: str) -> None:
        self.text = text
        super().__init__(text)


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
        self._shares = ReadShares(max_readers)
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
            with _translate_errors(self._drop_idle):
                async with asyncio.timeout(TRANSACTION_TIMEOUT_SECONDS), self.writers.connect() as connection:
                    await verify_revision(connection)
                    await verify_constraints(connection)
            self._is_verified = True

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[Connection]:
        """Opens a transaction. It commits when the block ends and rolls back when the block raises."""
        if not self._is_verified:
            await self.verify()
        with _translate_errors(self._drop_idle):
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
        with _translate_errors(self._drop_idle):
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
        if _is_away(error):
            raise CommitUnknown from error
        raise


class _translate_errors:  # noqa: N801 (a context manager; as a class it costs less, and each transaction uses it)
    """Turns the errors of SQLAlchemy and the driver into ours."""

    def __init__(self, drop_idle: Callable[[], None]) -> None:
        self._drop_idle = drop_idle

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, CommitUnknown):
            self._drop_idle()
        if error is None or not isinstance(error, SQLAlchemyError | OSError):
            return
        if isinstance(error, IntegrityError) and _is_duplicate(error):
            raise UniqueViolation(str(error.orig)) from error
        if isinstance(error, DBAPIError) and _is_conflict(error):
            raise TransactionConflict from error
        if isinstance(error, DBAPIError) and _is_ended(error):
            log.warning("statement_timeout", error=_describe(error))
            raise StatementTimeout from error
        if isinstance(error, PoolTimeout | OSError) or (isinstance(error, DBAPIError) and _is_away(error)):
            log.warning("database_away", error=_describe(error))
            if not isinstance(error, PoolTimeout):
                self._drop_idle()
            raise Unavailable from error


def _describe(error: Exception) -> str:
    cause = getattr(error, "orig", None) or error
    return f"{type(cause).__name__}: {str(cause) or 'no answer in time'}"[:300]


def _code(error: DBAPIError) -> int | None:
    args = getattr(error.orig, "args", ())
    return args[0] if args and isinstance(args[0], int) else None


def _is_conflict(error: DBAPIError) -> bool:
    if _code(error) in {DEADLOCK, LOCK_WAIT, STALE_SNAPSHOT}:
        return True
    return isinstance(error.orig, sqlite3.OperationalError) and "locked" in str(error.orig)


def _is_ended(error: DBAPIError) -> bool:
    return _code(error) in STATEMENT_ENDED or str(error.orig) == "interrupted"  # SQLite's word


def _is_away(error: DBAPIError) -> bool:
    return error.connection_invalidated or _code(error) in SERVER_AWAY


def _is_duplicate(error: IntegrityError) -> bool:
    return _code(error) == DUPLICATE_KEY or "UNIQUE constraint failed" in str(error.orig)


def retry_on_conflict(function: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """Decorates a function that opens its own transaction: after a TransactionConflict it runs again, with jitter.

    The function must do nothing but the transaction, because only the transaction was rolled back.
    """

    @functools.wraps(function)
    async def with_retries(*args: P.args, **kwargs: P.kwargs) -> T:
        for attempt in range(MAX_ATTEMPTS):
            try:
                return await function(*args, **kwargs)
            except TransactionConflict:
                if attempt == MAX_ATTEMPTS - 1:
                    raise
                await asyncio.sleep(random.uniform(0.2, 1) * 0.01 * 2**attempt)  # noqa: S311
        raise AssertionError("unreachable")

    return with_retries


async def ping(database: Database) -> None:
    """Runs one trivial statement. Raises Unavailable if the database is unreachable."""
    async with database.read() as connection:
        await connection.scalar(select(literal(1)))
