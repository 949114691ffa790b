"""The migrations upgrade a database of the last version before the first release, and keep its rows."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from app.catalog.model_diff import find_invalid
from app.catalog.models import read_models
from app.cli.migrate import migrate
from app.database import open_database
from app.errors import GatewayError
from app.points.audit.checks import Violation, audit
from app.settings import Settings
from migrations import OLD_REVISIONS
from tests.support.database_contents import read_rows, read_structure
from tests.support.old_database import make_old_database
from tests.support.sql import run_sql

pytestmark = pytest.mark.both_worlds

Rows = dict[str, list[dict[str, Any]]]
TABLES = {"points_codes": "redeem_codes", "chores": "scheduled_jobs", "provider_state": "circuit_breakers"}
COLUMNS = {
    "tasks": {"request": "upstream_request", "upstream": "upstream_state", "steps": "history"},
    "scheduled_jobs": {"done_at": "completed_at"},
    "model_durations": {"usual_seconds": "typical_seconds"},
}


LATER: dict[str, dict[str, Any]] = {
    "users": dict.fromkeys(("username_key", "password_hash", "totp_secret", "totp_step", "erased_at"))
    | {"token_version": 0},
    "api_keys": dict.fromkeys(("models", "addresses", "budget_id")),
    "tasks": dict.fromkeys(("key_id", "end_user", "erased_at")),
}


def renamed(old: Rows) -> Rows:
    """The expected form of the old rows. The circuit breakers start anew, and columns of later migrations are empty."""
    new = {}
    for old_name, rows in old.items():
        name = TABLES.get(old_name, old_name)
        columns = COLUMNS.get(name, {})
        added = LATER.get(name, {})
        new[name] = [{columns.get(column, column): value for column, value in row.items()} | added for row in rows]
    for task in new["tasks"]:
        task["step"] = {"host": "rehost"}.get(task["step"], task["step"])
    for user in new["users"]:
        user["username_key"] = user["username"] and user["username"].casefold()
    return new | {"circuit_breakers": []}


@pytest.fixture
def old_url(empty_database_url: str) -> str:
    make_old_database(empty_database_url)
    return empty_database_url


def test_the_old_database_has_rows_for_all_that_must_be_kept(old_url: str) -> None:
    rows = read_rows(old_url)
    assert [name for name, found in rows.items() if not found] == []
    assert {row["step"] for row in rows["tasks"]} == {"prepare", "submit", "submitting", "poll", "host", "done"}


def test_every_row_is_kept(old_url: str) -> None:
    before = read_rows(old_url)
    migrate(old_url)
    after = read_rows(old_url)
    assert after.pop("alembic_version") != before.pop("alembic_version")
    expected = renamed(before)
    assert {name: rows for name, rows in after.items() if rows or name in expected} == expected


def test_the_structure_is_that_of_a_new_database(old_url: str, new_database: Callable[[], Any]) -> None:
    migrate(old_url)
    with new_database() as new_url:
        migrate(new_url)
        expected = read_structure(new_url)
        assert read_rows(old_url)["alembic_version"] == read_rows(new_url)["alembic_version"]
    found = read_structure(old_url)
    assert found.keys() == expected.keys()
    for part, objects in expected.items():
        assert found[part] == objects, part


def test_the_gateway_works_on_it(old_url: str, refusal: Callable[[str], str]) -> None:
    """The audit finds clean books, and each model can be sold."""
    assert "the schema of the database is 0023" in refusal(old_url)
    migrate(old_url)
    assert refusal(old_url) == ""
    violations, invalid = asyncio.run(judge(old_url))
    assert (violations, invalid) == ([], [])


async def judge(url: str) -> tuple[list[Violation], list[dict[str, str]]]:
    database = open_database(Settings(_env_file=None, database_url=url))
    try:
        return await audit(database), find_invalid(*await read_models(database))
    finally:
        await database.close()


@pytest.mark.parametrize("revision", sorted(OLD_REVISIONS - {"0023"})[::8])
def test_an_older_database_is_refused_and_left_alone(old_url: str, revision: str) -> None:
    asyncio.run(run_sql(old_url, f"UPDATE alembic_version SET version_num = '{revision}'"))
    before = read_structure(old_url), read_rows(old_url)
    with pytest.raises(GatewayError, match=f"^migrate: the database is at revision {revision} .* first run"):
        migrate(old_url)
    assert (read_structure(old_url), read_rows(old_url)) == before
