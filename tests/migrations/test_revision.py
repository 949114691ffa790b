"""A gateway never writes to a database with another schema version, however it was started."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

import migrations
from app.cli.migrate import migrate
from app.database.schema.revision import find_revisions
from app.runtime import Runtime, open_runtime
from tests.support.apps import open_app
from tests.support.makers import TEXT_MODEL, Maker
from tests.support.sql import run_sql


def test_the_revisions_are_those_that_alembic_finds() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    scripts = ScriptDirectory.from_config(config)
    known, newest = find_revisions()
    assert known == {script.revision for script in scripts.walk_revisions()}
    assert newest == set(scripts.get_heads())
    assert len(newest) == 1, "two migrations follow the same one: `alembic merge`"
    assert not known & migrations.OLD_REVISIONS


@pytest.mark.both_worlds
def test_each_wrong_schema_is_refused_with_its_remedy(empty_database_url: str, refusal: Callable[[str], str]) -> None:
    assert refusal(empty_database_url).startswith("the database has no schema")
    migrate(empty_database_url)
    assert refusal(empty_database_url) == ""
    for statement, remedy in {
        "UPDATE alembic_version SET version_num = 'v1_ledger_triggers'": "run `gateway migrate`",
        "UPDATE alembic_version SET version_num = '0022'": "run `gateway migrate`",
        "UPDATE alembic_version SET version_num = 'v9'": "start the version that has migrated the database",
        "DELETE FROM alembic_version": "run `gateway migrate`",
        "DROP TABLE alembic_version": "run `gateway migrate`",
    }.items():
        asyncio.run(run_sql(empty_database_url, statement))
        assert refusal(empty_database_url).endswith(remedy), statement


def client_of(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gateway.test")


@pytest.mark.anyio
@pytest.mark.both_worlds
async def test_no_task_is_charged_until_the_schema_is_right(runtime: Runtime, make: Maker) -> None:
    """As under plain uvicorn, which checks nothing at its start. The process needs no restart."""
    user, url = await make.user(points=100), runtime.settings.database_url
    version = await run_sql(url, "SELECT version_num FROM alembic_version")
    await run_sql(url, "UPDATE alembic_version SET version_num = '0023'")
    try:
        async with open_runtime(runtime.settings) as other, open_app(other) as app, client_of(app) as client:
            body = {"modelName": TEXT_MODEL, "prompt": "一只猫"}
            refused = await client.post("/user/ai/tasks/submit", json=body, headers=user.headers)
            assert (refused.status_code, refused.json()["errorCode"]) == (503, "UNAVAILABLE")
            assert await run_sql(url, "SELECT COUNT(*) FROM tasks") == 0
            await run_sql(url, f"UPDATE alembic_version SET version_num = '{version}'")
            accepted = await client.post("/user/ai/tasks/submit", json=body, headers=user.headers)
            assert accepted.status_code == 200
    finally:  # the database of this world is used by the next test
        await run_sql(url, f"UPDATE alembic_version SET version_num = '{version}'")
