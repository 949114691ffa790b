"""What tests of the migrations share: new databases, and whether the gateway takes them."""

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
    """Each call gives the URL of another database without a table."""
    if world_name == EMBEDDED:
        numbers = count()
        return lambda: nullcontext(f"sqlite+aiosqlite:///{tmp_path / f'{next(numbers)}.db'}")
    request.getfixturevalue(f"{world_name}_services")  # skips the test where there is no server
    return lambda: own_database(world_name, empty=True)


@pytest.fixture
def refusal() -> Callable[[str], str]:
    """Why the gateway does not write to this database; empty where it does."""

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
