"""The database: reachable, new enough, migrated, safe for the books, and with the same clock as this machine."""

import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from sqlalchemy import select, text
from sqlalchemy.engine import make_url

from app.accounts.credentials import CLOCK_LEEWAY_SECONDS
from app.cli.doctor.checks import Check, Group, Outcome, close_quietly, run_blocking
from app.database import Connection, Database, open_database, utc_now
from app.database.schema.constraints import verify_constraints
from app.database.schema.revision import find_revisions, verify_revision
from app.errors import GatewayError
from app.settings import Settings

MIN_VERSIONS = {"MySQL": (8, 0, 16), "MariaDB": (10, 11), "SQLite": (3, 35)}
MAX_CLOCK_SECONDS = 2.0


def database_group(settings: Settings) -> Group[Database]:
    @asynccontextmanager
    async def use() -> AsyncIterator[Database]:
        url = make_url(settings.database_url)
        if settings.is_sqlite and not await run_blocking(Path(url.database or "").exists):
            raise GatewayError(f"there is no file {url.database}")  # SQLite would create it
        database = open_database(settings)
        try:
            yield database
        finally:
            await close_quietly(database.close())

    reach = "Check that the server runs, and host, port, user and password in DATABASE_URL."
    if settings.is_sqlite:
        reach = "Run `gateway migrate`, in the same working directory as the processes."
    return Group(
        use,
        [
            Check("database", lambda database: _check_connection(database, _place(settings)), reach, is_required=True),
            Check("database version", _check_version, "Use MySQL 8.0.16, MariaDB 10.11 or newer."),
            Check("database schema", _check_schema, "Run `gateway migrate`.", is_required=True),
            Check("database constraints", _check_constraints, "Create the tables with `gateway migrate`."),
            Check("database clock", _check_clock, "Keep the clocks of all machines right with NTP."),
            Check("database time zone", _check_time_zone, "Connect without a proxy that changes the session."),
        ],
    )


def _place(settings: Settings) -> str:
    url = make_url(settings.database_url)
    return url.database or "" if settings.is_sqlite else f"{url.host}:{url.port or 3306}/{url.database}"


async def _check_connection(database: Database, place: str) -> Outcome:
    async with database.read() as connection:
        await connection.scalar(select(1))
    return Outcome("ok", f"reachable: {place}")


async def _check_version(database: Database) -> Outcome:
    async with database.read() as connection:
        product, version = await _version(connection)
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:3])
    if numbers < MIN_VERSIONS[product]:
        oldest = ".".join(map(str, MIN_VERSIONS[product]))
        return Outcome("failed", f"{product} {version} is too old", f"Use {product} {oldest} or newer.")
    return Outcome("ok", f"{product} {version}")


async def _version(connection: Connection) -> tuple[str, str]:
    if connection.dialect.name == "sqlite":
        return "SQLite", str(await connection.scalar(text("SELECT sqlite_version()")))
    version = str(await connection.scalar(text("SELECT VERSION()")))
    return "MariaDB" if "mariadb" in version.lower() else "MySQL", version


async def _check_schema(database: Database) -> Outcome:
    async with database.writers.connect() as connection:
        await verify_revision(connection)
    return Outcome("ok", f"revision {' and '.join(sorted(find_revisions()[1]))}, which this version needs")


async def _check_constraints(database: Database) -> Outcome:
    async with database.writers.connect() as connection:
        await verify_constraints(connection)
    return Outcome("ok", "CHECK constraints are enforced, and the ledger's triggers refuse changes")


async def _check_clock(database: Database) -> Outcome:
    async with database.read() as connection:
        before = time.time()
        moment = (await connection.execute(select(utc_now()))).scalar_one()
        middle = (before + time.time()) / 2
    difference = middle - moment.timestamp()
    direction = "ahead of" if difference > 0 else "behind"
    text = f"this machine's clock is {abs(difference):.1f} s {direction} the database's"
    remedy = "Keep the clocks of all machines right with NTP: tokens are refused before and after their time."
    if abs(difference) > CLOCK_LEEWAY_SECONDS:
        return Outcome("failed", text, remedy)
    return Outcome("warning", text, remedy) if abs(difference) > MAX_CLOCK_SECONDS else Outcome("ok", text)


async def _check_time_zone(database: Database) -> Outcome:
    async with database.read() as connection:
        if connection.dialect.name == "sqlite":
            return Outcome("ok", "SQLite computes in UTC")
        seconds = int(await connection.scalar(text("SELECT TIMESTAMPDIFF(SECOND, UTC_TIMESTAMP(), NOW())")) or 0)
    if seconds:
        remedy = "Something between the gateway and the database changes the session: connect without it."
        return Outcome("failed", f"our sessions run {seconds} s beside UTC, although we set time_zone='+00:00'", remedy)
    return Outcome("ok", "our sessions run in UTC")
