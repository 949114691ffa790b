"""A copy of the template database is what the migrations make, on each server."""

import asyncio
from typing import Any

import pytest

from app.cli.migrate import migrate
from tests.support.database_contents import read_counters, read_rows, read_structure
from tests.support.sql import run_sql
from tests.support.template_database import capture_database


def contents(url: str) -> dict[str, Any]:
    return read_structure(url) | read_rows(url) | {"counters": read_counters(url)}


@pytest.mark.worlds("real")
def test_a_copy_is_what_the_migrations_make(empty_database_url: str) -> None:
    migrate(empty_database_url)
    template = capture_database(empty_database_url)
    migrated = contents(empty_database_url)
    for part in ("TABLES", "CHECK_CONSTRAINTS", "TRIGGERS", "points_config", "alembic_version"):
        assert migrated[part], f"{part}: nothing to compare"
    server, _, name = empty_database_url.rpartition("/")
    for copy in (f"{name}_1", f"{name}_2"):
        url = template.copy(server, copy)
        copied = contents(url)
        asyncio.run(run_sql(url, f"DROP DATABASE `{copy}`"))
        assert copied.keys() == migrated.keys()
        for part, rows in migrated.items():
            assert copied[part] == rows, part
