"""What commands share: settings, a runtime, answers as JSON or for people, and a one-line end."""

import asyncio
import json as json_module
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from app.errors import InvalidParameter, SettingsError
from app.logs import set_up_logs
from app.runtime import Runtime, open_runtime
from app.settings import Settings, load_settings
from app.times import read_moment

PIPED_WIDTH = 200  # a file or a pipe has no width of its own
Json = Annotated[bool, typer.Option("--json", help="Machine-readable answer")]


def settings_or_exit() -> Settings:
    """The settings; all their faults on standard error otherwise."""
    try:
        return load_settings()
    except SettingsError as error:
        finish_badly(f"bad settings:\n{error}")


@asynccontextmanager
async def open_for_command() -> AsyncIterator[Runtime]:
    """A runtime for one command; logs go to standard error, the answer alone to standard output."""
    settings = settings_or_exit()
    set_up_logs(settings)
    async with open_runtime(settings) as runtime:
        yield runtime


def run_with_runtime(work: Callable[[Runtime], Awaitable[Any]]) -> Any:
    """What `work` returns, in a loop and with a runtime of its own."""

    async def run() -> Any:
        async with open_for_command() as runtime:
            return await work(runtime)

    return asyncio.run(run())


def answer(data: dict[str, Any], as_json: bool) -> None:
    """One record."""
    if as_json:
        print(json_module.dumps(data, ensure_ascii=False, default=str))
        return
    for name, value in data.items():
        print(f"{name}: {value}")


def answer_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Many records: a JSON list, or a table."""
    if as_json:
        print(json_module.dumps(rows, ensure_ascii=False, default=str))
        return
    table = Table(box=None)
    for name in rows[0] if rows else ["(none)"]:
        table.add_column(name, no_wrap=True, overflow="fold")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console(width=None if sys.stdout.isatty() else PIPED_WIDTH).print(table)


def moment(option: str, text: str | None) -> datetime | None:
    """An option that is a time, ISO and local where it has no offset; bad usage where it is none."""
    try:
        return read_moment(option, text, settings_or_exit().zone)
    except InvalidParameter:
        raise typer.BadParameter("must be an ISO time, as in 2026-12-31T23:59:59", param_hint=option) from None


def finish_badly(reason: str) -> NoReturn:
    print(reason, file=sys.stderr)
    sys.exit(1)
