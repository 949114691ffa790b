"""DDL statements that can be executed again, because they skip what exists.

MySQL commits each CREATE, ALTER and DROP by itself. A migration that stops half way leaves its first statements behind,
and the next run starts at the first statement again. With `--sql` there is no database, so all statements are printed.
"""

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from alembic import op
from alembic.util.exc import CommandError
from sqlalchemy.schema import CreateIndex, CreateTable


def create_tables(schema: sa.MetaData) -> None:
    """Creates the tables and indexes that are missing."""
    for table in schema.tables.values():
        create_table(table)


def create_table(table: sa.Table) -> None:
    """Creates the table and its indexes if they are missing.

    Raises CommandError if a table of this name has other columns: another program may have created it.
    """
    if not has_table(table.name):
        op.execute(CreateTable(table))
    elif find_columns(table.name) != set(table.columns.keys()):
        raise CommandError(f"the table {table.name} exists already and has other columns than the gateway's")
    existing = find_indexes(table.name)
    for index in sorted(table.indexes, key=lambda one: str(one.name)):
        if index.name not in existing:
            op.execute(CreateIndex(index))


def add_columns(table: str, columns: Callable[[], list[sa.Column[Any]]]) -> None:
    """Adds the columns that are missing. `columns` makes new ones, because a column belongs to one table object."""
    existing = set() if op.get_context().as_sql else find_columns(table)
    for column in columns():
        if column.name not in existing:
            op.add_column(table, column)


def drop_columns(table: str, columns: Callable[[], list[sa.Column[Any]]]) -> None:
    """Drops the columns that exist."""
    existing = None if op.get_context().as_sql else find_columns(table)
    for column in columns():
        if existing is None or column.name in existing:
            op.drop_column(table, column.name)


def create_index(name: str, table: str, columns: list[str], *, unique: bool = False) -> None:
    if name not in find_indexes(table):
        op.create_index(name, table, columns, unique=unique)


def drop_index(name: str, table: str) -> None:
    if op.get_context().as_sql or name in find_indexes(table):
        op.drop_index(name, table_name=table)


def drop_tables(schema: sa.MetaData) -> None:
    for name in reversed(schema.tables):
        op.drop_table(name, if_exists=True)


def has_table(table: str) -> bool:
    return not op.get_context().as_sql and _inspector().has_table(table)


def find_columns(table: str) -> set[str]:
    return {column["name"] for column in _inspector().get_columns(table)}


def find_indexes(table: str) -> set[str | None]:
    """The names of the indexes. With `--sql` there are none."""
    return set() if op.get_context().as_sql else {index["name"] for index in _inspector().get_indexes(table)}


def find_checks(table: str) -> set[str | None]:
    """The names of the CHECK constraints."""
    return {check["name"] for check in _inspector().get_check_constraints(table)}


def _inspector() -> sa.Inspector:
    """Creates a new inspector each time, because an inspector caches."""
    return sa.inspect(op.get_bind())
