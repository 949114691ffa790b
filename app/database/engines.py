"""Opens the engines: how this process speaks to MySQL, and how to SQLite."""

from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from app.database.connections import Database
from app.settings import Settings

LOCK_WAIT_SECONDS = 5
POOL_WAIT_SECONDS = 5


def open_database(settings: Settings) -> Database:
    """Engines for `settings.database_url`. Nothing is dialled before the first statement."""
    url = make_url(settings.database_url)
    return _open_sqlite(url) if settings.is_sqlite else _open_mysql(url, settings)


def _open_mysql(url: URL, settings: Settings) -> Database:
    """READ COMMITTED, UTC, strict. Readers run in autocommit: no BEGIN, no ROLLBACK on return.

    A process that freezes inside a transaction would keep its locks for as long as it is frozen, and nobody could
    take its tasks over: MariaDB ends such a transaction when a lease is over. MySQL, which has no such limit, reads
    that part as a comment.
    """
    options: dict[str, Any] = {
        "pool_size": settings.database_pool_size,
        "max_overflow": 0,
        "pool_timeout": POOL_WAIT_SECONDS,
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
    return Database(writers, readers)


def _connect(dialect: Any, _record: Any, args: Any, options: Any) -> Any:
    """asyncmy tells some broken handshakes as RuntimeError or IndexError; each is a database that is away."""
    try:
        return dialect.connect(*args, **options)
    except (dialect.loaded_dbapi.Error, OSError):
        raise
    except Exception as error:
        raise OSError(f"no connection: {error!r}") from error


def _open_sqlite(url: URL) -> Database:
    """One writer at a time, as SQLite has it: they queue in the process instead of polling a locked file."""
    if url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    writers = create_async_engine(url, pool_size=1, max_overflow=0, pool_timeout=30)
    readers = create_async_engine(url, pool_size=4, max_overflow=0, pool_timeout=30)
    for engine in (writers, readers):
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    event.listen(writers.sync_engine, "begin", _begin_immediate)
    return Database(writers, readers)


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # Without this the driver begins transactions by itself, and late: read-then-write would lose updates.
    connection.isolation_level = None
    cursor = connection.cursor()
    pragmas = ("busy_timeout=15000", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON")
    # With the last of them what REPLACE deletes meets the ledger's triggers, too.
    for pragma in (*pragmas, "recursive_triggers=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_immediate(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
