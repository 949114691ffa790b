"""The connection of a migration, and the lock that lets one process migrate at a time."""

import logging
import sqlite3
import time
from pathlib import Path
from typing import Any

from alembic.util.exc import CommandError
from sqlalchemy import Connection, event, text
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

log = logging.getLogger("alembic")

MAX_SQLITE_WAIT_SECONDS = 3600
MAX_TABLE_WAIT_SECONDS = 60
NOTICE_SECONDS = 10
MYSQL_SESSION = f"SET sql_notes = 0, lock_wait_timeout = {MAX_TABLE_WAIT_SECONDS}"
"""Statements queue behind an ALTER that waits for a busy table. So it gives up after a while."""


def open_engine(url: URL, connect_args: dict[str, Any]) -> AsyncEngine:
    """Connects with the first statement, not here. `connect_args` are those of the gateway: TLS and the password."""
    if url.get_backend_name() != "sqlite":
        logging.getLogger("asyncmy").addFilter(_is_no_key_name)
        return create_async_engine(url, poolclass=NullPool, connect_args=connect_args | {"init_command": MYSQL_SESSION})
    Path(url.database or "").parent.mkdir(parents=True, exist_ok=True)
    engine = create_async_engine(url, poolclass=NullPool, connect_args={"timeout": MAX_SQLITE_WAIT_SECONDS})
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    # This takes SQLite's only write lock, so other migrations wait.
    event.listen(engine.sync_engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


def wait_for_lock(connection: Connection) -> None:
    """Waits on MySQL until no other process migrates this database. The lock ends with the connection."""
    if connection.dialect.name == "sqlite":
        return
    get_lock = text("SELECT GET_LOCK(CONCAT('gateway migrate ', LEFT(SHA2(DATABASE(), 256), 40)), :seconds)")
    while not (has_lock := connection.scalar(get_lock, {"seconds": NOTICE_SECONDS})):
        if has_lock is None:
            raise CommandError("the database cannot lock: GET_LOCK returned NULL")
        log.warning("migrate: another migration of this database runs; waiting for its end")
    connection.rollback()  # the transaction that the SELECT began


def _is_no_key_name(record: logging.LogRecord) -> bool:
    """Hides one warning of MySQL: it ignores the name that Alembic gives to the primary key of its own table."""
    return "alembic_version_pkc" not in record.getMessage()


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    """Switches off the driver's own transactions, which exclude DDL, and switches the file to WAL.

    The switch to WAL does not wait for locks. It fails while another connection switches, so it is repeated.
    """
    connection.isolation_level = None
    cursor = connection.cursor()
    deadline = time.monotonic() + NOTICE_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            break
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    cursor.close()
