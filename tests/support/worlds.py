"""One of the worlds as settings, and raw SQL for tests that damage data on purpose."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import text

from app.runtime import Runtime

EMBEDDED, REAL, MYSQL97 = "embedded", "real", "mysql97"
WORLDS = (EMBEDDED, REAL, MYSQL97)


@dataclass(frozen=True)
class World:
    """The settings of one world."""

    name: str
    settings: dict[str, Any]


def embedded_world(empty_sqlite: Path, tmp_path: Path) -> World:
    database = tmp_path / "gateway.db"
    shutil.copy(empty_sqlite, database)
    settings = {
        "database_url": f"sqlite+aiosqlite:///{database}",
        "redis_url": "memory://",
        "storage_url": (tmp_path / "files").as_uri(),
    }
    return World(EMBEDDED, settings)


async def execute(runtime: Runtime, statement: str, **values: Any) -> Any:
    """Raw SQL for a test that damages data on purpose."""
    async with runtime.database.begin() as connection:
        return await connection.execute(text(statement), values)
