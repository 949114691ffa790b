"""docs/reliability.md names only tests that exist, a test for every failpoint, and every mutant of the simulator."""

import ast
import re
from pathlib import Path

import pytest

from app.failpoints import FAILPOINTS
from tests.simulator.mutants import MUTANTS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
NAMED = re.compile(r"`(\w+\.py)::(\w+)(?:\[[^\]`]*\])?`")
NOT_YET = "not there yet"


def matrix(title: str = "The fault matrix") -> list[list[str]]:
    """The cells of every row of the table below this title."""
    section = PAGE.read_text("utf-8").partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows[1:]]


def functions_of(name: str) -> set[str]:
    (path,) = [path for path in ROOT.glob("tests/**/*.py") if path.name == name]
    nodes = ast.walk(ast.parse(path.read_text("utf-8")))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize(("file", "test"), sorted(set(NAMED.findall(PAGE.read_text("utf-8")))))
def test_a_named_test_exists(file: str, test: str) -> None:
    assert test.startswith("test_")
    assert test in functions_of(file)


def test_every_row_of_the_matrix_has_its_test() -> None:
    rows = matrix()
    assert len(rows) > 30
    for row in rows:
        fault, must_hold, where, how = row
        assert must_hold, fault
        assert how, fault
        assert NAMED.search(where) or where == NOT_YET, fault


def test_every_failpoint_is_in_the_matrix() -> None:
    payload = " ".join(cell for row in matrix() for cell in row)
    assert {point for point in FAILPOINTS if f"`{point}`" not in payload} == set()


def test_the_mutants_are_those_of_the_simulator() -> None:
    rows = matrix("Mutants")
    assert [row[0] for row in rows] == [mutant.name for mutant in MUTANTS]
    for mutant, (name, taken_out, killed_after, judgement) in zip(MUTANTS, rows, strict=True):
        assert taken_out, name
        begin = f", from seed {mutant.first_seed}" if mutant.first_seed else ""
        assert re.fullmatch(rf"[1-9]\d* seeds?{begin}", killed_after), name
        assert judgement, name
