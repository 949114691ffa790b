"""`gateway migrate` as real processes: killed, and several at once. Also processes that start on another schema."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.cli.migrate import migrate
from tests.support.database_contents import read_rows, read_structure
from tests.support.old_database import make_old_database
from tests.support.ports import dead_port, free_port
from tests.support.processes.process import Process, Processes
from tests.support.sql import run_sql

pytestmark = [pytest.mark.both_worlds, pytest.mark.smoke]
KILLED = Path(__file__).parents[2] / "support" / "processes" / "killed_migration.py"


@pytest.fixture
def url(empty_database_url: str) -> str:
    return empty_database_url


@pytest.fixture
def gateways(url: str, tmp_path: Path) -> Iterator[Processes]:
    redis = f"redis://127.0.0.1:{dead_port()}"
    with Processes(tmp_path, {"database_url": url, "redis_url": redis}) as processes:
        yield processes


def refused(process: Process) -> str:
    """The line with which the process ended by itself."""
    assert process.ends() == 1
    return process.log().splitlines()[-1]


def test_after_a_sigkill_nothing_starts_until_the_migration_is_run_again(url: str, gateways: Processes) -> None:
    killed = gateways.fork(str(KILLED), "30", "migrate")
    assert killed.ends() == -9
    assert "run `gateway migrate`" in refused(gateways.gateway("serve", port=free_port()))
    gateways.command("migrate")
    gateways.command("audit")


@pytest.mark.parametrize("kind", ["new", "old"])
def test_of_parallel_migrations_one_works_and_the_others_wait(url: str, gateways: Processes, kind: str) -> None:
    if kind == "old":
        make_old_database(url)
    migrations = [gateways.gateway("migrate") for _ in range(6)]
    assert [one.ends() for one in migrations] == [0] * 6
    structure, rows = read_structure(url), read_rows(url)
    assert rows["points_config"]
    gateways.command("migrate")
    assert (read_structure(url), read_rows(url)) == (structure, rows)


def test_processes_end_with_one_line_on_another_schema(url: str, gateways: Processes) -> None:
    migrate(url)
    for revision, remedy in {
        "0023": "run `gateway migrate`",
        "v1_ledger_triggers": "run `gateway migrate`",
        "v9_from_the_future": "start the version that has migrated the database",
    }.items():
        asyncio.run(run_sql(url, f"UPDATE alembic_version SET version_num = '{revision}'"))
        started = [gateways.gateway("serve", port=free_port()), gateways.gateway("worker")]
        for process in started:
            line = refused(process)
            assert line.startswith(f"the schema of the database is {revision}, this version of the gateway needs")
            assert line.endswith(remedy)
    up = gateways.gateway("up", port=free_port(), redis_url="memory://")
    assert refused(up).endswith("start the version that has migrated the database")
