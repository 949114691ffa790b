"""Verifies that the database has the schema of this version: one read of `alembic_version`.

This does not import Alembic, because each process would have to load it.
"""

import ast
import functools
import re
import sqlite3
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

import migrations
from app.database.schema.constraints import UnsafeDatabase

NO_SUCH_TABLE = 1146  # MySQL and MariaDB
_ASSIGNMENT = re.compile(r"^(revision|down_revision)\b[^=\n]*= *(.+)$", re.MULTILINE)


async def verify_revision(connection: AsyncConnection) -> None:
    """Raises UnsafeDatabase if the database has another schema or none."""
    found = await _read_revisions(connection)
    known, newest = find_revisions()
    if found == newest:
        return
    needed = f"this version of the gateway needs {_list(newest)}"
    if not found:
        raise UnsafeDatabase(f"the database has no schema, {needed}: run `gateway migrate`")
    if found <= known | migrations.OLD_REVISIONS:
        raise UnsafeDatabase(f"the schema of the database is {_list(found)}, {needed}: run `gateway migrate`")
    raise UnsafeDatabase(
        f"the schema of the database is {_list(found)}, {needed}: start the version that has migrated the database"
    )


@functools.cache
def find_revisions() -> tuple[frozenset[str], frozenset[str]]:
    """All revisions of the migrations of this code, and the newest ones. There should be one newest."""
    revisions, replaced = set(), set()
    for path in Path(migrations.__file__).parent.glob("versions/*.py"):
        assigned = dict(_ASSIGNMENT.findall(path.read_text("utf-8")))
        if "revision" in assigned:
            revisions.add(ast.literal_eval(assigned["revision"]))
            older = ast.literal_eval(assigned["down_revision"])
            replaced |= {older} if isinstance(older, str) else set(older or ())
    return frozenset(revisions), frozenset(revisions - replaced)


async def _read_revisions(connection: AsyncConnection) -> frozenset[str]:
    """Returns an empty set if the database was never migrated."""
    transaction = await connection.begin()
    try:
        return frozenset(await connection.scalars(text("SELECT version_num FROM alembic_version")))
    except DBAPIError as error:
        if not _is_missing_table(error.orig):
            raise
        return frozenset()
    finally:
        await transaction.rollback()


def _is_missing_table(error: BaseException | None) -> bool:
    if isinstance(error, sqlite3.OperationalError):
        return "no such table" in str(error)
    return bool(error and error.args and error.args[0] == NO_SUCH_TABLE)


def _list(revisions: frozenset[str]) -> str:
    return " and ".join(sorted(revisions))
