"""A migrated database, kept as statements and rows. A copy takes a fraction of the time of the migrations."""

import asyncio
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

TABLES = (
    "SELECT TABLE_NAME FROM information_schema.TABLES"
    " WHERE TABLE_SCHEMA = DATABASE() AND TABLE_TYPE = 'BASE TABLE' ORDER BY TABLE_NAME"
)


@dataclass(frozen=True)
class Statement:
    """A statement. If it has rows, it runs once for each."""

    sql: str
    rows: tuple[tuple[Any, ...], ...] = ()


@dataclass(frozen=True)
class TemplateDatabase:
    """All statements that make a database. The original may change or be deleted afterwards."""

    statements: tuple[Statement, ...]

    def copy(self, server: str, name: str) -> str:
        """Creates the database `name` on the server at this URL, and returns the URL of the database."""
        asyncio.run(_replay(server, name, self.statements))
        return make_url(server).set(database=name).render_as_string(hide_password=False)


def capture_database(url: str) -> TemplateDatabase:
    """Tables with their CHECKs, foreign keys and AUTO_INCREMENT, rows, and triggers. There are no views or routines."""
    return asyncio.run(_capture(url))


async def _capture(url: str) -> TemplateDatabase:
    engine = create_async_engine(url, poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            tables = [row[0] for row in await _rows(connection, TABLES)]
            triggers = [row[0] for row in await _rows(connection, "SHOW TRIGGERS")]
            statements = [_ddl((await _rows(connection, f"SHOW CREATE TABLE `{name}`"))[0][1]) for name in tables]
            statements += [_insert(name, await _rows(connection, f"SELECT * FROM `{name}`")) for name in tables]
            statements += [_ddl((await _rows(connection, f"SHOW CREATE TRIGGER `{name}`"))[0][2]) for name in triggers]
    finally:
        await engine.dispose()
    return TemplateDatabase(tuple(statement for statement in statements if statement.sql))


async def _replay(server: str, name: str, statements: tuple[Statement, ...]) -> None:
    """Runs one statement at a time. Many in one packet were not faster."""
    engine = create_async_engine(server, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    try:
        async with engine.connect() as connection:
            await connection.exec_driver_sql(f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4")
            await connection.exec_driver_sql(f"USE `{name}`")
            # A table may refer to one that comes later in the alphabet.
            await connection.exec_driver_sql("SET FOREIGN_KEY_CHECKS = 0")
            for statement in statements:
                await connection.exec_driver_sql(statement.sql, list(statement.rows) or None)
    finally:
        await engine.dispose()


async def _rows(connection: AsyncConnection, sql: str) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in await connection.exec_driver_sql(sql)]


def _ddl(sql: str) -> Statement:
    """Escapes percent signs, which the driver reads as placeholders."""
    return Statement(sql.replace("%", "%%"))


def _insert(table: str, rows: list[tuple[Any, ...]]) -> Statement:
    """Empty if the table is empty."""
    places = ", ".join(["%s"] * len(rows[0])) if rows else ""
    return Statement(f"INSERT INTO `{table}` VALUES ({places})" if rows else "", tuple(rows))
