"""Before the first write the gateway checks that the database refuses invalid rows. Otherwise it writes nothing."""

import asyncio
import secrets

import pytest
from sqlalchemy import insert
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from app.cli.migrate import migrate
from app.cli.run.process import check_database_or_exit
from app.database import Database, UnsafeDatabase, open_database, utc_now
from app.database import connections as connections_module
from app.errors import Unavailable
from app.settings import Settings
from app.tables import users
from tests.support.sql import run_sql

pytestmark = [pytest.mark.anyio, pytest.mark.both_worlds]
WITHOUT_CHECKS = (
    "DROP TABLE points_accounts",
    "CREATE TABLE points_accounts (user_id BIGINT PRIMARY KEY, available BIGINT, held BIGINT, granted BIGINT,"
    " spent BIGINT, expired BIGINT, seq BIGINT, next_expiry DATETIME, updated_at DATETIME)",
)
"""The tables as MySQL before 8.0.16 creates them from our migrations."""


@pytest.fixture
def settings(empty_database_url: str) -> Settings:
    """The settings of a migrated database that a test may damage."""
    migrate(empty_database_url)
    return Settings(_env_file=None, database_url=empty_database_url)


async def write_something(database: Database) -> None:
    async with database.begin() as connection:
        await connection.execute(insert(users).values(created_at=utc_now()))


async def count(settings: Settings, table: str) -> int:
    return int(await run_sql(settings.database_url, f"SELECT COUNT(*) FROM {table}"))


async def test_a_correct_database_passes_and_stays_unchanged(settings: Settings) -> None:
    """Also if many processes start at once."""
    many = [open_database(settings) for _ in range(6)]
    await asyncio.gather(*[database.verify() for database in many])
    await write_something(many[0])
    for database in many:
        await database.close()
    assert [await count(settings, table) for table in ("points_accounts", "points_ledger", "users")] == [0, 0, 1]


async def test_if_checks_are_ignored_nothing_is_written(settings: Settings) -> None:
    await run_sql(settings.database_url, *WITHOUT_CHECKS)
    database = open_database(settings)
    for _ in range(2):
        with pytest.raises(UnsafeDatabase) as unfit:
            await write_something(database)
    assert "CHECK" in unfit.value.reason
    assert isinstance(unfit.value, Unavailable), "a caller reads 503 and nothing else"
    assert "CHECK" not in str(unfit.value)
    await database.close()
    assert [await count(settings, table) for table in ("points_accounts", "users")] == [0, 0]


@pytest.mark.parametrize("verb", ["update", "delete"])
async def test_a_ledger_without_triggers_is_refused(settings: Settings, verb: str) -> None:
    await run_sql(settings.database_url, f"DROP TRIGGER points_ledger_no_{verb}")
    database = open_database(settings)
    with pytest.raises(UnsafeDatabase) as unfit:
        await database.verify()
    assert f"points_ledger_no_{verb}" in unfit.value.reason
    await database.close()
    assert await count(settings, "points_ledger") == 0


@pytest.mark.parametrize(
    "damage",
    [
        "ALTER TABLE points_accounts RENAME COLUMN updated_at TO changed_at",
        "ALTER TABLE points_ledger RENAME COLUMN remark TO words",
        "ALTER TABLE points_ledger RENAME TO points_book",
    ],
)
async def test_an_error_with_another_cause_is_no_refusal(settings: Settings, damage: str) -> None:
    await run_sql(settings.database_url, damage)
    database = open_database(settings)
    with pytest.raises(SQLAlchemyError):
        await database.verify()
    await database.close()


@pytest.mark.worlds("real")
async def test_rights_to_read_and_write_rows_are_enough(settings: Settings) -> None:
    url = make_url(settings.database_url)
    name, password = f"gw_{secrets.token_hex(4)}", secrets.token_hex(8)
    rights = f"GRANT SELECT, INSERT, UPDATE, DELETE ON `{url.database}`.* TO '{name}'@'%%'"
    await run_sql(settings.database_url, f"CREATE USER '{name}'@'%%' IDENTIFIED BY '{password}'", rights)
    limited = url.set(username=name, password=password).render_as_string(hide_password=False)
    database = open_database(Settings(_env_file=None, database_url=limited))
    try:
        await database.verify()
        await write_something(database)
    finally:
        await database.close()
        await run_sql(settings.database_url, f"DROP USER '{name}'@'%%'")


async def test_a_database_that_was_away_is_checked_once_at_the_first_contact(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, real = 0, connections_module.verify_constraints

    async def away_at_first(connection: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OSError("connection refused")
        await real(connection)  # type: ignore[arg-type]

    monkeypatch.setattr(connections_module, "verify_constraints", away_at_first)
    database = open_database(settings)
    with pytest.raises(Unavailable) as away:
        await write_something(database)
    assert not isinstance(away.value, UnsafeDatabase)
    await asyncio.gather(*[write_something(database) for _ in range(5)])
    await database.close()
    assert calls == 2
    assert await count(settings, "users") == 5


# ------------------------------------------------------------------ at the start of a process


def test_a_process_does_not_start_on_an_unfit_database(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    check_database_or_exit(settings)
    asyncio.run(run_sql(settings.database_url, *WITHOUT_CHECKS))
    with pytest.raises(SystemExit) as end:
        check_database_or_exit(settings)
    assert end.value.code == 1
    assert "8.0.16" in capsys.readouterr().err.splitlines()[-1]  # after the event `database_unsafe`


def test_a_process_starts_while_the_database_is_away() -> None:
    check_database_or_exit(Settings(_env_file=None, database_url="mysql+asyncmy://root:@127.0.0.1:1/nowhere"))
