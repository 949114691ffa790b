"""What commands share: settings, the database, answers as JSON or for people, and a one-line end.

The modules that tell Typer of the commands load nothing but Typer, so that help and bad usage cost little: what a
command needs, it imports when it runs.
"""

import json as json_module
import sys
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from app.errors import InvalidParameter, SettingsError

if TYPE_CHECKING:
    from app.database import Database
    from app.settings import Settings

T = TypeVar("T")
PIPED_WIDTH = 200  # a file or a pipe has no width of its own
Json = Annotated[bool, typer.Option("--json", help="Machine-readable answer")]


def settings_or_exit() -> "Settings":
    """The settings; all their faults on standard error otherwise."""
    from app.settings import load_settings

    try:
        return load_settings()
    except SettingsError as error:
        fail(f"bad settings:\n{error}")


def run_with_database(work: "Callable[[Database], Awaitable[T]]") -> T:
    """What `work` returns, in a loop and with a database of its own.

    Logs go to standard error, the answer alone to standard output.
    """
    import asyncio

    from app.database import open_database
    from app.telemetry.logs import configure_logs

    async def run() -> T:
        settings = settings_or_exit()
        configure_logs(settings)
        database = open_database(settings)
        try:
            return await work(database)
        finally:
            await database.close()

    return asyncio.run(run())


def print_record(data: dict[str, Any], as_json: bool) -> None:
    """One record."""
    if as_json:
        print(json_module.dumps(data, ensure_ascii=False, default=str))
        return
    for name, value in data.items():
        print(f"{name}: {value}")


def print_table(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Many records: a JSON list, or a table."""
    if as_json:
        print(json_module.dumps(rows, ensure_ascii=False, default=str))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    for name in rows[0] if rows else ["(none)"]:
        table.add_column(name, no_wrap=True, overflow="fold")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console(width=None if sys.stdout.isatty() else PIPED_WIDTH).print(table)


def parse_time_option(option: str, text: str | None) -> datetime | None:
    """An option that is a time, ISO and local where it has no offset; bad usage where it is none."""
    from app.datetimes import parse_datetime

    try:
        return parse_datetime(option, text, settings_or_exit().zone)
    except InvalidParameter:
        raise typer.BadParameter("must be an ISO time, as in 2026-12-31T23:59:59", param_hint=option) from None


def fail(reason: str) -> NoReturn:
    print(reason, file=sys.stderr)
    sys.exit(1)
