"""`gateway codes`: batches of redeem codes, shown or exported once, listed by their first group, voided."""

import csv as csv_module
import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, TextIO

import typer

from app.cli.output import (
    Json,
    fail,
    parse_time_option,
    print_record,
    print_table,
    run_with_database,
    settings_or_exit,
)
from app.points.limits import MAX_CODES_PER_BATCH, MAX_LOT_DAYS

codes = typer.Typer(no_args_is_help=True, help="Redeem codes: made in batches, shown once.")


@codes.command("create")
def create(
    count: Annotated[int, typer.Option(min=1, max=MAX_CODES_PER_BATCH)],
    points: Annotated[int, typer.Option(min=1, help="What each is worth")],
    batch: Annotated[str | None, typer.Option(help="A name for all of them; default: the time")] = None,
    expires: Annotated[str | None, typer.Option(metavar="ISO", help="Until when they can be redeemed")] = None,
    lot_days: Annotated[
        int | None, typer.Option(min=1, max=MAX_LOT_DAYS, help="The points lapse so many days after that")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write them to this new file instead of showing them")] = None,
    json: Json = False,
) -> None:
    """New codes; this is the only time they are shown or exported."""
    from app.points.redeem_codes import create_codes

    until = parse_time_option("--expires", expires)
    name = batch or datetime.now(settings_or_exit().zone).strftime("%Y%m%d-%H%M%S")
    file = _open_new(csv) if csv else None
    try:
        made = run_with_database(
            lambda database: create_codes(
                database, count=count, points=points, batch=name, expires=until, lot_days=lot_days
            )
        )
    except BaseException:
        if csv and file:
            file.close()
            csv.unlink(missing_ok=True)
        raise
    if file is not None:
        _export(file, made, name, points)
        print_record({"batch": name, "count": count, "csv": str(csv)}, json)
    elif json:
        print_record({"batch": name, "codes": made}, json)
    else:
        print(f"batch: {name}", *made, sep="\n")


def _open_new(path: Path) -> TextIO:
    """Before any code is made, so that none is lost for want of a file. For the owner's eyes alone."""
    try:
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", newline="", encoding="utf-8")
    except OSError as error:
        fail(f"{path} cannot be written: {error.strerror}")


def _export(file: TextIO, made: list[str], batch: str, points: int) -> None:
    with file:
        table = csv_module.writer(file)
        table.writerow(["code", "points", "batch"])
        table.writerows([code, points, batch] for code in made)


@codes.command("list")
def list_(
    batch: Annotated[str | None, typer.Option()] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest first")] = 100,
    json: Json = False,
) -> None:
    """How codes stand: unused, redeemed, expired or void; of each its first group."""
    from app.points.redeem_codes import list_codes

    rows, total = run_with_database(lambda database: list_codes(database, batch, limit=limit))
    print_table(rows, json)
    if total > len(rows):
        print(f"the newest {len(rows)} of {total}; --limit shows more", file=sys.stderr)


@codes.command("void")
def void(batch: Annotated[str, typer.Option()], json: Json = False) -> None:
    """Ends all codes of a batch that were not redeemed; points already given stay."""
    from app.points.redeem_codes import void_batch

    print_record({"batch": batch, "voided": run_with_database(lambda database: void_batch(database, batch))}, json)
