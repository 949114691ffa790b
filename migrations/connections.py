"""The connection of a migration, and the lock that lets one migration run at a time."""

import logging
import sqlite3
import time
from pathlib import Path
from typing import Any

from alembic.util.exc import CommandError
from sqlalchemy import Connection, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

log = logging.getLogger("alembic")

MAX_SQLITE_WAIT_SECONDS = 3600
MAX_TABLE_WAIT_SECONDS = 60
NOTICE_SECONDS = 10
MYSQL_SESSION = f"SET sql_notes = 0, lock_wait_timeout = {MAX_TABLE_WAIT_SECONDS}"
"""A statement that waits for a busy table makes all others wait for it too, so it gives up after a while."""


def open_engine(url: str) -> AsyncEngine:
    """Nothing is dialled before the first statement."""
    if make_url(url).get_backend_name() != "sqlite":
        return create_async_engine(url, poolclass=NullPool, connect_args={"init_command": MYSQL_SESSION})
    Path(make_url(url).database or "").parent.mkdir(parents=True, exist_ok=True)
    engine = create_async_engine(url, poolclass=NullPool, connect_args={"timeout": MAX_SQLITE_WAIT_SECONDS})
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    # Takes SQLite's only write lock. Other migrations wait for it.
    event.listen(engine.sync_engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


def wait_for_lock(connection: Connection) -> None:
    """On MySQL: waits until no other migration of this database runs. The lock ends with the connection."""
    if connection.dialect.name == "sqlite":
        return
    get_lock = text("SELECT GET_LOCK(CONCAT('gateway migrate ', LEFT(SHA2(DATABASE(), 256), 40)), :seconds)")
    while not (is_locked := connection.scalar(get_lock, {"seconds": NOTICE_SECONDS})):
        if is_locked is None:
            raise CommandError("the database cannot lock: GET_LOCK returned NULL")
        log.warning("migrate: another migration of this database runs; waiting for its end")
    connection.rollback()  # the transaction that the SELECT began


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    """Ends the driver's own transactions, which leave DDL out. Switches the file to WAL, where readers do not wait.

    The switch does not wait for a lock, and two connections that switch at once collide.
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
