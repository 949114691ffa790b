"""The migrations on each database: upgrade, no drift, downgrade, upgrade again, as SQL, and beside other tables."""

import ast
import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import CheckConstraint, create_engine, inspect

import migrations
from app.cli.migrate import migrate
from app.database.schema.revision import find_revisions
from app.errors import GatewayError
from app.tables import metadata
from migrations import connections
from tests.support.database_contents import read_rows, read_structure, run_script
from tests.support.sql import Connection, run_sql
from tests.support.waiting import wait_until

FOLDER = Path(migrations.__file__).parent


def config_of(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    config.attributes["database_url"] = url
    return config


@pytest.mark.both_worlds
def test_upgrade_without_drift_downgrade_and_upgrade_again(empty_database_url: str) -> None:
    config = config_of(empty_database_url)
    command.upgrade(config, "head")
    command.check(config)  # raises if app/tables and the migrations disagree
    migrated = read_structure(empty_database_url)
    command.downgrade(config, "base")
    assert read_rows(empty_database_url) == {"alembic_version": []}
    command.upgrade(config, "head")
    assert read_structure(empty_database_url) == migrated


@pytest.mark.both_worlds
def test_each_downgrade_reverts_exactly_its_upgrade(empty_database_url: str) -> None:
    config = config_of(empty_database_url)
    command.upgrade(config, "head")
    for _ in find_revisions()[0]:
        command.downgrade(config, "-1")
        before = read_structure(empty_database_url)
        command.upgrade(config, "+1")
        command.downgrade(config, "-1")
        assert read_structure(empty_database_url) == before
    assert read_rows(empty_database_url) == {"alembic_version": []}


@pytest.mark.both_worlds
def test_a_dba_can_run_the_sql_instead(empty_database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    migrate(empty_database_url, sql=True)
    script = capsys.readouterr().out
    assert "\nVALUES ('sc_video_text_fast', '速创视频 文生视频-快速版', 0, 'text_to_video'" in script
    run_script(empty_database_url, script)
    command.check(config_of(empty_database_url))
    by_script = read_structure(empty_database_url), prices(empty_database_url)
    command.downgrade(config_of(empty_database_url), "base")
    migrate(empty_database_url)
    assert (read_structure(empty_database_url), prices(empty_database_url)) == by_script


def prices(url: str) -> list[tuple[str, int]]:
    return [(row["model_name"], row["points_cost"]) for row in read_rows(url)["points_config"]]


@pytest.mark.both_worlds
def test_tables_of_other_programs_are_ignored(empty_database_url: str) -> None:
    asyncio.run(run_sql(empty_database_url, "CREATE TABLE users (id INT PRIMARY KEY, email VARCHAR(50))"))
    with pytest.raises(GatewayError, match="the table users exists already"):
        migrate(empty_database_url)
    assert set(read_rows(empty_database_url)) <= {"users", "alembic_version"}


@pytest.mark.worlds("real")
def test_a_migration_that_waits_for_another_logs_it(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connections, "NOTICE_SECONDS", 0)
    other = Connection(empty_database_url)
    name = "CONCAT('gateway migrate ', LEFT(SHA2(DATABASE(), 256), 40))"
    assert other.run(f"SELECT GET_LOCK({name}, 5)") == [(1,)]
    with ThreadPoolExecutor(1) as pool:
        migration = pool.submit(migrate, empty_database_url)
        wait_until("the log line", lambda: "another migration of this database runs" in caplog.text)
        assert read_rows(empty_database_url) == {}
        other.close()
        migration.result(60)
    assert read_rows(empty_database_url)["points_config"]


def test_the_check_constraints_of_app_tables_equal_those_of_the_migrations(empty_sqlite: Path) -> None:
    """Alembic does not compare CHECK constraints."""
    found = inspect(create_engine(f"sqlite:///{empty_sqlite}"))
    for table in metadata.sorted_tables:
        planned = {str(one.name): str(one.sqltext) for one in table.constraints if isinstance(one, CheckConstraint)}
        built = {str(one["name"]): str(one["sqltext"]) for one in found.get_check_constraints(table.name)}
        assert planned == built, table.name


def test_migrations_import_nothing_of_the_app() -> None:
    """Only Alembic's env.py imports the app: for the settings, and to compare the tables."""
    for path in FOLDER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            ours = [name for name in names if name.split(".")[0] in {"app", "worker"}]
            assert not ours or path.name == "env.py", f"{path.name} imports {ours}"
