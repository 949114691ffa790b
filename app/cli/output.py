"""What commands share: settings, a database, output as JSON or text, and failure with one line.

Modules that define commands import only Typer, so that `--help` and bad usage are fast. A command imports the rest
when it runs.
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
PIPED_WIDTH = 200  # the table's width where the output is no terminal
Reason = Annotated[str, typer.Option(help="Why, for the list of what admins did")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output")]


def settings_or_exit() -> "Settings":
    """The settings. Invalid settings end the process with all errors on standard error."""
    from app.settings import load_settings

    try:
        return load_settings()
    except SettingsError as error:
        fail(f"bad settings:\n{error}")


def run_with_database(work: "Callable[[Database], Awaitable[T]]") -> T:
    """Runs `work` in a new event loop with a database of its own, and returns its result.

    Logs go to standard error, so that standard output holds the command's output only.
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
    """Prints one record as JSON, or as one `name: value` line for each field."""
    if as_json:
        print(json_module.dumps(data, ensure_ascii=False, default=str))
        return
    for name, value in data.items():
        print(f"{name}: {value}")


def print_table(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Prints records as a JSON list or as a table."""
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
    """Parses an ISO time. A time without an offset is local. Anything else is bad usage."""
    from app.datetimes import parse_datetime

    try:
        return parse_datetime(option, text, settings_or_exit().zone)
    except InvalidParameter:
        raise typer.BadParameter("must be an ISO time, as in 2026-12-31T23:59:59", param_hint=option) from None


def fail(reason: str) -> NoReturn:
    print(reason, file=sys.stderr)
    sys.exit(1)
