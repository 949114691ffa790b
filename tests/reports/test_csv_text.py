"""CSV for spreadsheet programs: what looks like a formula is a text, and numbers stay numbers."""

import csv
import io

import pytest

from app.reports.csv_text import csv_lines


def read(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text)))


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠"])
def test_a_text_that_begins_like_a_formula_is_escaped(start: str) -> None:
    cell = f'{start}HYPERLINK("http://evil.example","x")'
    assert read(csv_lines([(cell, f"a{start}b")])) == [[f"'{cell}", f"a{start}b"]]


def test_numbers_and_empty_cells_are_no_texts() -> None:
    assert csv_lines([("a", -5, 0.25, None)]) == '"a",-5,0.25,""\r\n'


def test_separators_quotes_and_line_breaks_stay_in_their_cell() -> None:
    cells = ["a,b", 'say "x"', "two\nlines", ";=1+1", "猫"]
    assert read(csv_lines([cells])) == [cells]
