"""SQL from outside the gateway: once on a new connection, or repeatedly on one that stays open."""

import asyncio
from typing import Any

from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool


async def run_sql(url: str, *statements: str) -> Any:
    """The first value of the last statement, if it has one."""
    engine = create_async_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    try:
        async with engine.connect() as connection:
            for statement in statements:
                result = await connection.exec_driver_sql(statement)
            return result.scalar() if result.returns_rows else None
    finally:
        await engine.dispose()


class Connection:
    """One connection that stays open, for code that is not async and runs outside an event loop."""

    def __init__(self, url: str) -> None:
        self._runner = asyncio.Runner()
        self._engine = create_async_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        self._connection = self._runner.run(self._engine.connect().start())
        self._tables: frozenset[str] = frozenset()

    def run(self, statement: str) -> list[Any]:
        """The rows, or an empty list if the statement has none."""
        return self._runner.run(self._run(statement))

    async def _run(self, statement: str) -> list[Any]:
        result = await self._connection.exec_driver_sql(statement)
        return list(result) if result.returns_rows else []

    def tables(self) -> frozenset[str]:
        """Read once, then cached."""
        if not self._tables:
            self._tables = frozenset(row[0] for row in self.run("SHOW TABLES"))
        return self._tables

    def close(self) -> None:
        self._runner.run(self._close())
        self._runner.close()

    async def _close(self) -> None:
        await self._connection.close()
        await self._engine.dispose()
