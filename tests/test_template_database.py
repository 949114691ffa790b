"""A copy of the template database is what the migrations make, on each server."""

import asyncio
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from app.cli.migrate import migrate
from tests.support.sql import run_sql
from tests.support.template_database import capture_database

LOOKS = {
    "TABLES": (
        "TABLE_SCHEMA",
        "TABLE_NAME, ENGINE, ROW_FORMAT, TABLE_COLLATION, COALESCE(AUTO_INCREMENT, 1), TABLE_COMMENT",
    ),
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
"""Views of the information schema: the column with the name of the database, and what must be equal."""


def contents(url: str) -> dict[str, list[Any]]:
    """What the information schema says of a database, and every row in it."""

    async def look() -> dict[str, list[Any]]:
        engine = create_async_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        found: dict[str, list[Any]] = {}
        async with engine.connect() as connection:

            async def rows(sql: str) -> list[Any]:
                return sorted((tuple(row) for row in await connection.exec_driver_sql(sql)), key=repr)

            # MySQL would tell the AUTO_INCREMENT of a while ago; MariaDB reads that part as a comment.
            await connection.exec_driver_sql("SET sql_notes = 0 /*!80000 , information_schema_stats_expiry = 0 */")
            for view, (schema, columns) in LOOKS.items():
                sql = f"SELECT {columns} FROM information_schema.{view} WHERE {schema} = DATABASE()"
                found[view] = await rows(sql)
            for table in [row[0] for row in found["TABLES"]]:
                found[table] = await rows(f"SELECT * FROM `{table}`")
        await engine.dispose()
        return found

    return asyncio.run(look())


@pytest.mark.worlds("real")
def test_a_copy_is_what_the_migrations_make(empty_database_url: str) -> None:
    migrate(empty_database_url)
    template = capture_database(empty_database_url)
    migrated = contents(empty_database_url)
    for part in ("TABLES", "CHECK_CONSTRAINTS", "TRIGGERS", "points_config", "alembic_version"):
        assert migrated[part], f"{part}: nothing to compare"
    server, _, name = empty_database_url.rpartition("/")
    for copy in (f"{name}_1", f"{name}_2"):
        url = template.copy(server, copy)
        copied = contents(url)
        asyncio.run(run_sql(url, f"DROP DATABASE `{copy}`"))
        assert copied.keys() == migrated.keys()
        for part, rows in migrated.items():
            assert copied[part] == rows, part
