"""Alembic's entry: `alembic upgrade head`, or `--sql` for a DBA. `DATABASE_URL` decides the dialect.

Runs synchronously over the same drivers by way of SQLAlchemy's async engine.
"""

import asyncio

from alembic import context
from sqlalchemy import Connection, pool
from sqlalchemy.ext.asyncio import create_async_engine

from app.settings import load_settings
from app.tables import metadata


def run_offline(url: str) -> None:
    context.configure(url=url, target_metadata=metadata, literal_binds=True, dialect_opts={"paramstyle": "named"})
    with context.begin_transaction():
        context.run_migrations()


def run_with(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=metadata, compare_type=True, render_as_batch=False)
    with context.begin_transaction():
        context.run_migrations()


async def run_online(url: str) -> None:
    engine = create_async_engine(url, poolclass=pool.NullPool)
    async with engine.connect() as connection:
        if engine.dialect.name == "sqlite":  # kept in the file; two connections that switch it at once would collide
            await connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            await connection.rollback()
        await connection.run_sync(run_with)
        await connection.commit()
    await engine.dispose()


database_url = context.config.attributes.get("database_url") or load_settings().database_url
if context.is_offline_mode():
    run_offline(database_url)
else:
    asyncio.run(run_online(database_url))
