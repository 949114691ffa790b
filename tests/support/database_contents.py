"""The contents of a database, so that two can be compared: its structure in detail, and the rows of its tables."""

import asyncio
import re
import sqlite3
from typing import Any

from sqlalchemy import Connection, inspect
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from tests.support.sql import run_sql

Contents = dict[str, list[Any]]

VIEWS = {
    "TABLES": ("TABLE_SCHEMA", "TABLE_NAME, ENGINE, ROW_FORMAT, TABLE_COLLATION, TABLE_COMMENT"),
    "COLUMNS": (
        "TABLE_SCHEMA",
        "TABLE_NAME, ORDINAL_POSITION, COLUMN_NAME, COLUMN_TYPE, IS_NULLABLE, COLUMN_DEFAULT, COLLATION_NAME, EXTRA,"
        " GENERATION_EXPRESSION, COLUMN_COMMENT",
    ),
    "STATISTICS": (
        "TABLE_SCHEMA",
        "TABLE_NAME, INDEX_NAME, SEQ_IN_INDEX, COLUMN_NAME, NON_UNIQUE, SUB_PART, COLLATION, INDEX_TYPE",
    ),
    "TABLE_CONSTRAINTS": ("CONSTRAINT_SCHEMA", "TABLE_NAME, CONSTRAINT_NAME, CONSTRAINT_TYPE"),
    "CHECK_CONSTRAINTS": ("CONSTRAINT_SCHEMA", "CONSTRAINT_NAME, CHECK_CLAUSE"),
    "KEY_COLUMN_USAGE": (
        "CONSTRAINT_SCHEMA",
        "TABLE_NAME, CONSTRAINT_NAME, COLUMN_NAME, ORDINAL_POSITION, REFERENCED_TABLE_NAME, REFERENCED_COLUMN_NAME",
    ),
    "REFERENTIAL_CONSTRAINTS": ("CONSTRAINT_SCHEMA", "TABLE_NAME, CONSTRAINT_NAME, UPDATE_RULE, DELETE_RULE"),
    "TRIGGERS": (
        "TRIGGER_SCHEMA",
        "TRIGGER_NAME, EVENT_MANIPULATION, EVENT_OBJECT_TABLE, ACTION_TIMING, ACTION_STATEMENT, SQL_MODE, DEFINER",
    ),
}
"""Views of the information schema: the column with the database's name, and the columns that must be equal."""


def read_structure(url: str) -> Contents:
    """Tables, columns, indexes, constraints and triggers."""
    return asyncio.run(_inspect(url, _sqlite_structure if url.startswith("sqlite") else _mysql_structure))


def read_rows(url: str) -> dict[str, list[dict[str, Any]]]:
    """All rows of all tables, in the order of the first column."""
    return asyncio.run(_inspect(url, _rows))


def read_counters(url: str) -> dict[str, int]:
    """MySQL's AUTO_INCREMENT of each table."""
    return dict(asyncio.run(_inspect(url, _counters)))


def run_script(url: str, script: str) -> None:
    """Runs an SQL script as the database's own client does."""
    if url.startswith("sqlite"):
        connection = sqlite3.connect(make_url(url).database or "")
        connection.executescript(script)
        connection.close()
        return
    statements = re.split(r";\s*\n", re.sub(r"^--.*$", "", script, flags=re.MULTILINE))
    asyncio.run(run_sql(url, *[statement for statement in statements if statement.strip()]))


async def _inspect(url: str, read: Any) -> Any:
    engine = create_async_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    try:
        async with engine.connect() as connection:
            return await connection.run_sync(read)
    finally:
        await engine.dispose()


def _rows(connection: Connection) -> dict[str, list[dict[str, Any]]]:
    names = inspect(connection).get_table_names()
    return {
        name: [dict(row._mapping) for row in connection.exec_driver_sql(f"SELECT * FROM `{name}` ORDER BY 1")]
        for name in names
    }


def _counters(connection: Connection) -> list[Any]:
    # MySQL would return a cached AUTO_INCREMENT. MariaDB reads that part as a comment.
    connection.exec_driver_sql("SET sql_notes = 0 /*!80000 , information_schema_stats_expiry = 0 */")
    columns = "TABLE_NAME, COALESCE(AUTO_INCREMENT, 1)"
    return _sorted(connection, f"SELECT {columns} FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE()")


def _mysql_structure(connection: Connection) -> Contents:
    return {
        view: _sorted(connection, f"SELECT {columns} FROM information_schema.{view} WHERE {database} = DATABASE()")
        for view, (database, columns) in VIEWS.items()
    }


def _sqlite_structure(connection: Connection) -> Contents:
    found = inspect(connection)
    structure: Contents = {"TRIGGERS": _sorted(connection, "SELECT sql FROM sqlite_master WHERE type = 'trigger'")}
    for table in found.get_table_names():
        sql = str(connection.exec_driver_sql(f"SELECT sql FROM sqlite_master WHERE name = '{table}'").scalar())
        structure[table] = [
            "AUTOINCREMENT" in sql,
            _sorted(connection, f"SELECT * FROM pragma_table_xinfo('{table}')"),
            _sorted(
                connection,
                "SELECT i.name, i.[unique], i.origin, x.seqno, x.name, x.[desc], x.coll"
                f" FROM pragma_index_list('{table}') i, pragma_index_xinfo(i.name) x",
            ),
            sorted((str(one["name"]), str(one["sqltext"])) for one in found.get_check_constraints(table)),
        ]
    return structure


def _sorted(connection: Connection, sql: str) -> list[Any]:
    return sorted((tuple(row) for row in connection.exec_driver_sql(sql)), key=repr)
