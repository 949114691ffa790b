"""Alembic's entry: `alembic upgrade head`, or with `--sql` for a DBA. `DATABASE_URL` decides the dialect.

One process migrates at a time. Others wait, and then find nothing to do. SQLite migrates in one transaction. MySQL
commits each DDL statement by itself; `ddl.py` explains how a stopped migration is run again.
"""

import asyncio

from alembic import context
from alembic.util.exc import CommandError
from sqlalchemy import Connection, make_url

from app.database.mysql import read_mysql_url
from app.settings import load_settings
from app.tables import metadata
from migrations.connections import open_engine, wait_for_lock
from migrations.takeover import take_over


def run_offline(url: str) -> None:
    context.configure(url=url, target_metadata=metadata, literal_binds=True, dialect_opts={"paramstyle": "named"})
    with context.begin_transaction():
        context.run_migrations()


async def run_online(url: str) -> None:
    engine = open_engine(make_url(url), {}) if url.startswith("sqlite") else open_engine(*read_mysql_url(url))
    try:
        async with engine.connect() as connection:
            await connection.run_sync(run_with)
    finally:
        await engine.dispose()


def run_with(connection: Connection) -> None:
    wait_for_lock(connection)
    with connection.begin():
        take_over(connection)
        context.configure(connection=connection, target_metadata=metadata)
        refuse_unknown_revisions()
        context.run_migrations()


def refuse_unknown_revisions() -> None:
    """Raises CommandError. Alembic alone would accept the first letters of a revision for the whole."""
    known = {script.revision for script in context.script.walk_revisions()}
    unknown = set(context.get_context().get_current_heads()) - known
    if unknown:
        raise CommandError(
            f"the schema of the database is {', '.join(sorted(unknown))}, which this version of the gateway does not"
            " know: start the version that has migrated the database"
        )


database_url = context.config.attributes.get("database_url") or load_settings().full_database_url
if context.is_offline_mode():
    run_offline(database_url)
else:
    asyncio.run(run_online(database_url))
