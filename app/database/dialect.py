"""SQL that differs between databases: the clock, days, upserts, LIKE and limits. Other modules write SQL for all."""

from collections.abc import Collection
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnClause, Float, String, Table, TableValuedAlias, bindparam
from sqlalchemy.dialects import mysql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import Insert
from sqlalchemy.sql.functions import FunctionElement

from app.tables import Json, UtcTime


class utc_now(FunctionElement[datetime]):  # noqa: N801 (it is an SQL function)
    """The database's UTC clock with milliseconds. Only this clock decides what is due."""

    type = UtcTime()
    inherit_cache = True


class utc_after(FunctionElement[datetime]):  # noqa: N801
    """The database's UTC clock plus a number of seconds, which may have a fraction."""

    type = UtcTime()
    inherit_cache = True


class local_day(FunctionElement[str]):  # noqa: N801
    """The day of a UTC time plus a number of seconds, as `YYYY-MM-DD`."""

    type = String()
    inherit_cache = True


class seconds_between(FunctionElement[float]):  # noqa: N801
    """The seconds from one time to a later one, to the millisecond."""

    type = Float()
    inherit_cache = True


@compiles(utc_now, "mysql", "mariadb")
def _mysql_now(_element: utc_now, _compiler: SQLCompiler, **_: Any) -> str:
    return "UTC_TIMESTAMP(3)"


@compiles(utc_now, "sqlite")
def _sqlite_now(_element: utc_now, _compiler: SQLCompiler, **_: Any) -> str:
    return "(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')"


@compiles(utc_after, "mysql", "mariadb")
def _mysql_after(element: utc_after, compiler: SQLCompiler, **kw: Any) -> str:
    return f"(UTC_TIMESTAMP(3) + INTERVAL ({compiler.process(element.clauses, **kw)}) * 1000000 MICROSECOND)"


@compiles(utc_after, "sqlite")
def _sqlite_after(element: utc_after, compiler: SQLCompiler, **kw: Any) -> str:
    seconds = compiler.process(element.clauses, **kw)
    return f"(strftime('%Y-%m-%d %H:%M:%f', 'now', ({seconds}) || ' seconds') || '000')"


@compiles(local_day, "mysql", "mariadb")
def _mysql_day(element: local_day, compiler: SQLCompiler, **kw: Any) -> str:
    time, seconds = (compiler.process(one, **kw) for one in element.clauses)
    return f"CAST(DATE({time} + INTERVAL ({seconds}) SECOND) AS CHAR)"


@compiles(local_day, "sqlite")
def _sqlite_day(element: local_day, compiler: SQLCompiler, **kw: Any) -> str:
    time, seconds = (compiler.process(one, **kw) for one in element.clauses)
    return f"date({time}, ({seconds}) || ' seconds')"


@compiles(seconds_between, "mysql", "mariadb")
def _mysql_seconds(element: seconds_between, compiler: SQLCompiler, **kw: Any) -> str:
    start, end = (compiler.process(one, **kw) for one in element.clauses)
    return f"(TIMESTAMPDIFF(MICROSECOND, {start}, {end}) / 1e6)"


@compiles(seconds_between, "sqlite")
def _sqlite_seconds(element: seconds_between, compiler: SQLCompiler, **kw: Any) -> str:
    start, end = (compiler.process(one, **kw) for one in element.clauses)
    return f"round((julianday({end}) - julianday({start})) * 86400, 3)"


class json_rows(FunctionElement[Any]):  # noqa: N801
    """A table made of a JSON text: a list of rows, and each row is a list of the columns' values."""

    inherit_cache = True


def rows_of_json(parameter: str, *columns: ColumnClause[Any]) -> TableValuedAlias:
    """The parameter, a list of lists, as a table of this name: one statement reads or writes many rows by it.

    A row's values are numbers and texts in the order of `columns`. The text of the statement does not depend on the
    number of rows, so it is compiled once. Do not compare its texts with columns: their collations differ on MySQL.
    """
    return json_rows(bindparam(parameter, type_=Json()), *columns).table_valued(*columns, name=parameter)


@compiles(json_rows, "mysql", "mariadb")
def _mysql_json_rows(element: json_rows, compiler: SQLCompiler, **kw: Any) -> str:
    rows, *columns = element.clauses
    types = compiler.dialect.type_compiler_instance
    read = [f"{one.name} {types.process(one.type)} PATH '$[{place}]'" for place, one in enumerate(columns)]
    return f"JSON_TABLE({compiler.process(rows, **kw)}, '$[*]' COLUMNS ({', '.join(read)}))"


@compiles(json_rows, "sqlite")
def _sqlite_json_rows(element: json_rows, compiler: SQLCompiler, **kw: Any) -> str:
    rows, *columns = element.clauses
    read = [f"json_extract(value, '$[{place}]') AS {one.name}" for place, one in enumerate(columns)]
    return f"(SELECT {', '.join(read)} FROM json_each({compiler.process(rows, **kw)}))"  # noqa: S608


def insert_ignore(dialect_name: str, table: Table, key: str) -> Insert:
    """INSERT that keeps an existing row. Do not read its row count, which differs between databases."""
    if dialect_name == "sqlite":
        return sqlite.insert(table).on_conflict_do_nothing()
    return mysql.insert(table).on_duplicate_key_update({key: table.c[key]})


def upsert(dialect_name: str, table: Table, key: str, values: dict[str, Any], preserve: frozenset[str]) -> Insert:
    """INSERT of one row that overwrites the row with the same `key`, except for the columns in `preserve`.

    The UPDATE part refers to the inserted values, because Alembic's offline mode renders literals only in VALUES.
    """
    updated = [name for name in values if name not in preserve and name != key]
    if dialect_name == "sqlite":
        lite = sqlite.insert(table).values(**values)
        return lite.on_conflict_do_update(index_elements=[key], set_={name: lite.excluded[name] for name in updated})
    insert = mysql.insert(table).values(**values)
    return insert.on_duplicate_key_update({name: insert.inserted[name] for name in updated})


def upsert_rows(
    dialect_name: str, table: Table, keys: Collection[str], rows: list[dict[str, Any]], changed: Collection[str]
) -> Insert:
    """INSERT of several rows in one statement. An existing row with the same `keys` gets the columns in `changed`."""
    if dialect_name == "sqlite":
        lite = sqlite.insert(table).values(rows)
        return lite.on_conflict_do_update(index_elements=[*keys], set_={name: lite.excluded[name] for name in changed})
    insert = mysql.insert(table).values(rows)
    return insert.on_duplicate_key_update({name: insert.inserted[name] for name in changed})


def like_contains(text: str) -> tuple[str, str]:
    """The LIKE pattern for values that contain `text`, and its escape character."""
    escaped = text.replace("!", "!!").replace("%", "!%").replace("_", "!_")
    return f"%{escaped}%", "!"


def limit_statements(seconds: float) -> str:
    """A part of MySQL's SET: the server ends a statement after this time. On MySQL it counts for SELECT only.

    Each server reads its own part and takes the other for a comment.
    """
    return f"/*M!100300 , max_statement_time={seconds} */ /*!80000 , max_execution_time={round(seconds * 1000)} */"
