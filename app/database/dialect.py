"""What MySQL and SQLite spell differently in SQL: the clock, upserts, LIKE. Nothing of that elsewhere."""

from datetime import datetime
from typing import Any

from sqlalchemy import Table
from sqlalchemy.dialects import mysql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import Insert
from sqlalchemy.sql.functions import FunctionElement

from app.tables import UtcTime


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


def insert_ignore(dialect_name: str, table: Table, key: str) -> Insert:
    """INSERT that leaves an existing row alone. Its row count differs between databases: never read it."""
    if dialect_name == "sqlite":
        return sqlite.insert(table).on_conflict_do_nothing()
    return mysql.insert(table).on_duplicate_key_update({key: table.c[key]})


def upsert(dialect_name: str, table: Table, key: str, values: dict[str, Any], preserve: frozenset[str]) -> Insert:
    """INSERT of one row that overwrites an existing one of the same `key`, but for the columns in `kept`.

    The new values are named, not repeated: Alembic's offline mode writes literals only into the first list.
    """
    changed = [name for name in values if name not in preserve and name != key]
    if dialect_name == "sqlite":
        lite = sqlite.insert(table).values(**values)
        return lite.on_conflict_do_update(index_elements=[key], set_={name: lite.excluded[name] for name in changed})
    insert = mysql.insert(table).values(**values)
    return insert.on_duplicate_key_update({name: insert.inserted[name] for name in changed})


def like_contains(text: str) -> tuple[str, str]:
    """A LIKE pattern that finds `text` itself, and its escape character."""
    escaped = text.replace("!", "!!").replace("%", "!%").replace("_", "!_")
    return f"%{escaped}%", "!"
