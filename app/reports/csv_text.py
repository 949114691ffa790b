"""Writes CSV that spreadsheet programs read as data: UTF-8 with a BOM, and no cell that they take for a formula."""

import csv
import io
from collections.abc import Iterable, Sequence

CSV_TYPE = "text/csv; charset=utf-8"
BOM = "\ufeff"
"""Without it, spreadsheet programs in China read a file as GBK."""
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""A text that begins with one of these would be computed. Some programs treat full-width signs like the others."""

Cell = str | int | float | None


def csv_lines(rows: Iterable[Sequence[Cell]]) -> str:
    """The rows as lines. Texts are quoted, and an apostrophe precedes one like a formula; numbers stay numbers."""
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\r\n")
    writer.writerows([_safe(cell) for cell in row] for row in rows)
    return text.getvalue()


def _safe(cell: Cell) -> str | int | float:
    if cell is None:
        return ""
    if isinstance(cell, str) and cell.startswith(FORMULA_STARTS):
        return f"'{cell}"
    return cell
