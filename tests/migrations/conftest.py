"""Fixtures of the migration tests: new databases, and the check whether the gateway accepts a database."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import count
from pathlib import Path

import pytest

from app.database import UnsafeDatabase, open_database
from app.settings import Settings
from tests.support.services import own_database
from tests.support.worlds import EMBEDDED


@pytest.fixture
def new_database(
    request: pytest.FixtureRequest, world_name: str, tmp_path: Path
) -> Callable[[], AbstractContextManager[str]]:
    """Each call returns the URL of another database without a table."""
    if world_name == EMBEDDED:
        numbers = count()
        return lambda: nullcontext(f"sqlite+aiosqlite:///{tmp_path / f'{next(numbers)}.db'}")
    request.getfixturevalue(f"{world_name}_services")  # skips the test where there is no server
    return lambda: own_database(world_name, empty=True)


@pytest.fixture
def refusal() -> Callable[[str], str]:
    """Why the gateway refuses to write to this database. Empty if it accepts the database."""

    async def prove(url: str) -> str:
        database = open_database(Settings(_env_file=None, database_url=url))
        try:
            await database.verify()
        except UnsafeDatabase as error:
            return error.reason
        finally:
            await database.close()
        return ""

    return lambda url: asyncio.run(prove(url))
