"""Alembic's entry: `alembic upgrade head`, or with `--sql` for a DBA. `DATABASE_URL` decides the dialect.

One migration runs at a time: others that start meanwhile wait, and then find nothing to do. SQLite executes all of it
in one transaction. MySQL commits each DDL statement by itself; `ddl.py` says how a stopped migration is run again.
"""

import asyncio

from alembic import context
from sqlalchemy import Connection

from app.settings import load_settings
from app.tables import metadata
from migrations.connections import open_engine, wait_for_lock
from migrations.takeover import take_over


def run_offline(url: str) -> None:
    context.configure(url=url, target_metadata=metadata, literal_binds=True, dialect_opts={"paramstyle": "named"})
    with context.begin_transaction():
        context.run_migrations()


async def run_online(url: str) -> None:
    engine = open_engine(url)
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
        context.run_migrations()


database_url = context.config.attributes.get("database_url") or load_settings().database_url
if context.is_offline_mode():
    run_offline(database_url)
else:
    asyncio.run(run_online(database_url))
