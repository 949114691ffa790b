"""Engines, sessions, the database's clock, and all that differs between MySQL and SQLite. Nothing of that elsewhere.

`Sessions` hands out connections of two kinds: `begin()` for a transaction that commits when the block ends, and
`read()` for single statements outside any transaction. SQLAlchemy's own errors stop here: what a caller may wait
out becomes `Unavailable`, what is worth repeating becomes `Conflict`.
"""

import asyncio
import functools
import random
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import structlog
from sqlalchemy import Table, event, literal, select
from sqlalchemy.dialects import mysql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import Insert
from sqlalchemy.sql.functions import FunctionElement

from app.errors import Unavailable
from app.settings import Settings
from app.tables import UtcTime

log = structlog.get_logger()

P = ParamSpec("P")
T = TypeVar("T")

Session = AsyncConnection
"""What topic functions join. They never commit it."""

LOCK_WAIT_SECONDS = 5
LONGEST_COMMIT_SECONDS = 10
LONGEST_TRANSACTION_SECONDS = 25  # a database that hangs is a database that is away
REPEATS = 8
DEADLOCK, LOCK_WAIT, STALE_SNAPSHOT = 1213, 1205, 1020
SERVER_AWAY = frozenset(
    {1040, 1053, 1152, 1153, 1158, 1159, 1160, 1161, 1290, 1836, 1927, 2002, 2003, 2006, 2013, 2055}
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

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[Session]:
        """One transaction: committed when the block ends, rolled back when it raises."""
        with _translated():
            async with asyncio.timeout(LONGEST_TRANSACTION_SECONDS), self.writers.connect() as connection:
                await connection.begin()
                yield connection
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


# ------------------------------------------------------------------ opening


def open_database(settings: Settings) -> Sessions:
    """Engines for `settings.database_url`. Nothing is dialled before the first statement."""
    url = make_url(settings.database_url)
    return _open_sqlite(url) if settings.is_sqlite else _open_mysql(url, settings)


def _open_mysql(url: URL, settings: Settings) -> Sessions:
    """READ COMMITTED, UTC, strict. Readers run in autocommit: no BEGIN, no ROLLBACK on return.

    A process that freezes inside a transaction would keep its locks for as long as it is frozen, and nobody could
    take its tasks over: MariaDB ends such a transaction when a lease is over. MySQL, which has no such limit, reads
    that part as a comment.
    """
    options: dict[str, Any] = {
        "pool_size": settings.database_pool_size,
        "max_overflow": 0,
        "pool_timeout": 5,
        "pool_recycle": 600,
        "connect_args": {
            "charset": "utf8mb4",
            "connect_timeout": 5,
            "init_command": "SET time_zone='+00:00', sql_mode='STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION',"
            f" innodb_lock_wait_timeout={LOCK_WAIT_SECONDS}"
            f" /*M!100300 , idle_transaction_timeout={settings.lease_seconds} */",
        },
    }
    # `begin` always ends what it began, so the pool need not send a ROLLBACK behind every COMMIT.
    writers = create_async_engine(url, isolation_level="READ COMMITTED", pool_reset_on_return=None, **options)
    readers = create_async_engine(url, isolation_level="AUTOCOMMIT", skip_autocommit_rollback=True, **options)
    for engine in (writers, readers):
        event.listen(engine.sync_engine, "do_connect", _connect)
    return Sessions(writers, readers)


def _connect(dialect: Any, _record: Any, args: Any, options: Any) -> Any:
    """asyncmy tells some broken handshakes as RuntimeError or IndexError; each is a database that is away."""
    try:
        return dialect.connect(*args, **options)
    except (dialect.loaded_dbapi.Error, OSError):
        raise
    except Exception as error:
        raise OSError(f"no connection: {error!r}") from error


def _open_sqlite(url: URL) -> Sessions:
    """One writer at a time, as SQLite has it: they queue in the process instead of polling a locked file."""
    if url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    writers = create_async_engine(url, pool_size=1, max_overflow=0, pool_timeout=30)
    readers = create_async_engine(url, pool_size=4, max_overflow=0, pool_timeout=30)
    for engine in (writers, readers):
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    event.listen(writers.sync_engine, "begin", _begin_immediate)
    return Sessions(writers, readers)


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # Without this the driver begins transactions by itself, and late: read-then-write would lose updates.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=15000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_immediate(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


# ------------------------------------------------------------------ what the two databases spell differently


class utc_now(FunctionElement[datetime]):  # noqa: N801 (reads as the SQL function it is)
    """The database's UTC clock, to the millisecond: the only clock that decides what is due."""

    type = UtcTime()
    inherit_cache = True


class utc_after(FunctionElement[datetime]):  # noqa: N801
    """The database's UTC clock plus a number of seconds (may have a fraction)."""

    type = UtcTime()
    inherit_cache = True


@compiles(utc_now, "mysql", "mariadb")
def _mysql_now(_element: utc_now, _compiler: SQLCompiler, **_: Any) -> str:
    return "UTC_TIMESTAMP(3)"


@compiles(utc_now, "sqlite")
def _sqlite_now(_element: utc_now, _compiler: SQLCompiler, **_: Any) -> str:
    return "(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')"


@compiles(utc_after, "mysql", "mariadb")
def _mysql_after(element: utc_after, compiler: SQLCompiler, **kw: Any) -> str:
    return f"(UTC_TIMESTAMP(3) + INTERVAL {compiler.process(element.clauses, **kw)} * 1000000 MICROSECOND)"


@compiles(utc_after, "sqlite")
def _sqlite_after(element: utc_after, compiler: SQLCompiler, **kw: Any) -> str:
    seconds = compiler.process(element.clauses, **kw)
    return f"(strftime('%Y-%m-%d %H:%M:%f', 'now', {seconds} || ' seconds') || '000')"


def insert_if_absent(dialect_name: str, table: Table, key: str) -> Insert:
    """INSERT that leaves an existing row alone. Its row count differs between databases: never read it."""
    if dialect_name == "sqlite":
        return sqlite.insert(table).on_conflict_do_nothing()
    return mysql.insert(table).on_duplicate_key_update({key: table.c[key]})


def insert_or_change(dialect_name: str, table: Table, key: str, values: dict[str, Any], kept: frozenset[str]) -> Insert:
    """INSERT of one row that overwrites an existing one of the same `key`, but for the columns in `kept`.

    The new values are named, not repeated: Alembic's offline mode writes literals only into the first list.
    """
    changed = [name for name in values if name not in kept and name != key]
    if dialect_name == "sqlite":
        lite = sqlite.insert(table).values(**values)
        return lite.on_conflict_do_update(index_elements=[key], set_={name: lite.excluded[name] for name in changed})
    insert = mysql.insert(table).values(**values)
    return insert.on_duplicate_key_update({name: insert.inserted[name] for name in changed})


def containing(text: str) -> tuple[str, str]:
    """A LIKE pattern that finds `text` itself, and its escape character."""
    escaped = text.replace("!", "!!").replace("%", "!%").replace("_", "!_")
    return f"%{escaped}%", "!"


async def ping(sessions: Sessions) -> None:
    """One trivial statement; raises Unavailable where the database is away."""
    async with sessions.read() as session:
        await session.scalar(select(literal(1)))
