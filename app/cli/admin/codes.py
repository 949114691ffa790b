"""`gateway codes`: creates batches of redeem codes, lists codes by their first group, and voids batches."""

import csv as csv_module
import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, TextIO

import typer

from app.cli.output import (
    Json,
    Reason,
    fail,
    parse_time_option,
    print_record,
    print_table,
    run_with_database,
    settings_or_exit,
)
from app.points.limits import MAX_CODES_PER_BATCH, MAX_LOT_DAYS

codes = typer.Typer(no_args_is_help=True, help="Redeem codes: created in batches, shown once.")


@codes.command("create")
def create(
    count: Annotated[int, typer.Option(min=1, max=MAX_CODES_PER_BATCH)],
    points: Annotated[int, typer.Option(min=1, help="Points of each code")],
    batch: Annotated[str | None, typer.Option(help="Name of the batch; default: the time")] = None,
    expires: Annotated[str | None, typer.Option(metavar="ISO", help="When the codes expire")] = None,
    lot_days: Annotated[
        int | None, typer.Option(min=1, max=MAX_LOT_DAYS, help="Days from redemption until the points expire")
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(help="Write the codes to this new file instead of standard output")
    ] = None,
    reason: Reason = "",
    json: Json = False,
) -> None:
    """Creates codes. They are shown or exported only now."""
    from app.admin.actions import COMMAND_LINE
    from app.admin.points import create_codes

    until = parse_time_option("--expires", expires)
    name = batch or datetime.now(settings_or_exit().zone).strftime("%Y%m%d-%H%M%S")
    file = _open_new(csv) if csv else None
    try:
        _, created = run_with_database(
            lambda database: create_codes(
                database,
                COMMAND_LINE,
                count=count,
                points=points,
                batch=name,
                expires=until,
                lot_days=lot_days,
                reason=reason,
            )
        )
    except BaseException:
        if csv and file:
            file.close()
            csv.unlink(missing_ok=True)
        raise
    if file is not None:
        _export(file, created, name, points)
        print_record({"batch": name, "count": count, "csv": str(csv)}, json)
    elif json:
        print_record({"batch": name, "codes": created}, json)
    else:
        print(f"batch: {name}", *created, sep="\n")


def _open_new(path: Path) -> TextIO:
    """Opens the file before the codes are created, so that none is lost. Only the file's owner can read it."""
    try:
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", newline="", encoding="utf-8")
    except OSError as error:
        fail(f"{path} cannot be written: {error.strerror}")


def _export(file: TextIO, new_codes: list[str], batch: str, points: int) -> None:
    with file:
        table = csv_module.writer(file)
        table.writerow(["code", "points", "batch"])
        table.writerows([code, points, batch] for code in new_codes)


@codes.command("list")
def list_(
    batch: Annotated[str | None, typer.Option()] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number, newest first")] = 100,
    json: Json = False,
) -> None:
    """Lists codes by their first group, with their status: unused, redeemed, expired or void."""
    from app.points.redeem_codes import list_codes

    rows, total = run_with_database(lambda database: list_codes(database, batch, limit=limit))
    print_table(rows, json)
    if total > len(rows):
        print(f"the newest {len(rows)} of {total}; --limit shows more", file=sys.stderr)


@codes.command("void")
def void(batch: Annotated[str, typer.Option()], reason: Reason = "", json: Json = False) -> None:
    """Voids the unredeemed codes of a batch. Redeemed points stay."""
    from app.admin.actions import COMMAND_LINE
    from app.admin.points import void_codes

    result = run_with_database(lambda database: void_codes(database, COMMAND_LINE, batch, reason=reason))
    print_record({"batch": batch, "voided": result.after["voided"]}, json)
