"""Opens the database engines for MySQL and SQLite, and sets their options."""

import time
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from app.database.connections import STATEMENT_SECONDS, TRANSACTION_TIMEOUT_SECONDS, Database
from app.database.dialect import limit_statements
from app.settings import Settings

LOCK_WAIT_SECONDS = 5
POOL_WAIT_SECONDS = 5
SQLITE_READERS = 4
SQLITE_STEPS = 100_000  # of SQLite's machine, between two checks of the deadline
SQLITE_PRAGMAS = (
    "busy_timeout=15000",
    "journal_mode=WAL",
    "synchronous=FULL",
    "foreign_keys=ON",
    "recursive_triggers=ON",  # the rows that REPLACE deletes then fire the ledger's triggers as well
)


def open_database(settings: Settings) -> Database:
    """Creates the engines for `settings.database_url`. They connect at the first statement."""
    return _open_sqlite(settings.database_url) if settings.is_sqlite else _open_mysql(settings)


def _open_mysql(settings: Settings) -> Database:
    """READ COMMITTED, UTC and strict mode. Readers run in autocommit: no BEGIN, and no ROLLBACK on return.

    The server ends a statement that takes too long, because it would run on after we have given it up. A process that
    freezes inside a transaction keeps its locks, and no other process can take over its tasks. MariaDB ends such a
    transaction after one lease. MySQL has no such option and reads that part as a comment.
    """
    from app.database.mysql import IdleConnections, read_mysql_url  # processes on SQLite do not load the driver

    url, connect_args = read_mysql_url(settings.full_database_url)
    session = (
        "SET time_zone='+00:00', sql_mode='STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION',"
        f" innodb_lock_wait_timeout={LOCK_WAIT_SECONDS}"
        f" /*M!100300 , idle_transaction_timeout={settings.lease_seconds} */"
    )

    def engine(statement_seconds: float, **options: Any) -> AsyncEngine:
        return create_async_engine(
            url,
            pool_size=settings.database_pool_size,
            max_overflow=0,
            pool_timeout=POOL_WAIT_SECONDS,
            pool_recycle=settings.database_pool_recycle_seconds,
            pool_use_lifo=True,  # so that few connections are idle for long
            connect_args=connect_args | {"init_command": f"{session} {limit_statements(statement_seconds)}"},
            **options,
        )

    # `begin` always commits or rolls back, so the pool need not send a ROLLBACK when a connection returns.
    writers = engine(TRANSACTION_TIMEOUT_SECONDS, isolation_level="READ COMMITTED", pool_reset_on_return=None)
    readers = engine(STATEMENT_SECONDS, isolation_level="AUTOCOMMIT", skip_autocommit_rollback=True)
    idle = IdleConnections()
    idle.watch(writers)
    idle.watch(readers)
    return Database(writers, readers, settings.database_pool_size, idle.drop)


def _open_sqlite(database_url: str) -> Database:
    """One writer connection, because SQLite allows one writer. Writers wait for it instead of polling a locked file."""
    url = make_url(database_url)
    if url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    writers = create_async_engine(url, pool_size=1, max_overflow=0, pool_timeout=30)
    readers = create_async_engine(url, pool_size=SQLITE_READERS, max_overflow=0, pool_timeout=30)
    for engine, seconds in ((writers, TRANSACTION_TIMEOUT_SECONDS), (readers, STATEMENT_SECONDS)):
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        event.listen(engine.sync_engine, "connect", _watch_deadline)
        event.listen(engine.sync_engine, "checkout", _set_deadline(seconds))
    event.listen(writers.sync_engine, "begin", _begin_immediate)
    return Database(writers, readers, SQLITE_READERS)


def _watch_deadline(connection: Any, record: Any) -> None:
    """SQLite has no time limit. It asks regularly whether to end the statement."""

    def is_over() -> bool:
        return time.monotonic() > float(record.info.get("deadline", float("inf")))

    connection.run_async(lambda driver: driver.set_progress_handler(is_over, SQLITE_STEPS))


def _set_deadline(seconds: float) -> Any:
    def on_checkout(_connection: Any, record: Any, _proxy: Any) -> None:
        record.info["deadline"] = time.monotonic() + seconds

    return on_checkout


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # Otherwise the driver begins transactions itself, and only at the first write: read-then-write would lose updates.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in SQLITE_PRAGMAS:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_immediate(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
