"""Opens the database engines for MySQL and SQLite, and sets their options."""

from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from app.database.connections import Database
from app.settings import Settings

LOCK_WAIT_SECONDS = 5
POOL_WAIT_SECONDS = 5
SQLITE_PRAGMAS = (
    "busy_timeout=15000",
    "journal_mode=WAL",
    "synchronous=FULL",
    "foreign_keys=ON",
    "recursive_triggers=ON",  # the rows that REPLACE deletes then fire the ledger's triggers as well
)


def open_database(settings: Settings) -> Database:
    """Creates the engines for `settings.database_url`. They connect at the first statement."""
    url = make_url(settings.database_url)
    return _open_sqlite(url) if settings.is_sqlite else _open_mysql(url, settings)


def _open_mysql(url: URL, settings: Settings) -> Database:
    """READ COMMITTED, UTC and strict mode. Readers run in autocommit: no BEGIN, and no ROLLBACK on return.

    A process that freezes inside a transaction keeps its locks, and no other process can take over its tasks. MariaDB
    ends such a transaction after one lease. MySQL has no such option and reads that part as a comment.
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
    # `begin` always commits or rolls back, so the pool need not send a ROLLBACK when a connection returns.
    writers = create_async_engine(url, isolation_level="READ COMMITTED", pool_reset_on_return=None, **options)
    readers = create_async_engine(url, isolation_level="AUTOCOMMIT", skip_autocommit_rollback=True, **options)
    for engine in (writers, readers):
        event.listen(engine.sync_engine, "do_connect", _connect)
    return Database(writers, readers)


def _connect(dialect: Any, _record: Any, args: Any, options: Any) -> Any:
    """Connects. asyncmy raises RuntimeError or IndexError for some broken handshakes; they become OSError."""
    try:
        return dialect.connect(*args, **options)
    except (dialect.loaded_dbapi.Error, OSError):
        raise
    except Exception as error:
        raise OSError(f"no connection: {error!r}") from error


def _open_sqlite(url: URL) -> Database:
    """One writer connection, because SQLite allows one writer. Writers wait for it instead of polling a locked file."""
    if url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    writers = create_async_engine(url, pool_size=1, max_overflow=0, pool_timeout=30)
    readers = create_async_engine(url, pool_size=4, max_overflow=0, pool_timeout=30)
    for engine in (writers, readers):
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    event.listen(writers.sync_engine, "begin", _begin_immediate)
    return Database(writers, readers)


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # Otherwise the driver begins transactions itself, and only at the first write: read-then-write would lose updates.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in SQLITE_PRAGMAS:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_immediate(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
