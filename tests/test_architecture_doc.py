"""docs/architecture.md shows the layers of import-linter, and calls that only go down."""

import re
import tomllib
from pathlib import Path

from app.engine.pools import FAST_CONCURRENCY, SLOW_CONCURRENCY

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
LAYERS = next(one["layers"] for one in CONTRACTS if one["id"] == "floors")
FLOOR = {room: place for place, layer in enumerate(LAYERS) for room in layer.split(" | ")}
MAX_FILES_OF_A_SUBMIT = 12


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def tree(title: str) -> list[tuple[int, str]]:
    """(indent, path) of each line of the first diagram below this title."""
    drawing = section(title).partition("```\n")[2].partition("```")[0]
    return [(len(indent), path) for indent, path in re.findall(r"^( *)((?:app|worker)/\S+)", drawing, re.MULTILINE)]


def layer_of(path: str) -> int:
    """The worker is above all packages of `app` that it may import."""
    return FLOOR[path.split("/")[1].removesuffix(".py")] if path.startswith("app/") else -1


def check_that_calls_go_down(lines: list[tuple[int, str]]) -> None:
    for place, (indent, path) in enumerate(lines):
        assert (ROOT / path).exists(), path
        callers = [caller for depth, caller in lines[:place] if depth < indent]
        if callers:
            assert layer_of(callers[-1]) <= layer_of(path), (callers[-1], path)


def test_the_layers_are_those_of_import_linter() -> None:
    drawing = section("Floors").partition("```\n")[2].partition("```")[0]
    drawn = [re.split(r"  {2,}", line.strip())[0] for line in drawing.splitlines() if line.strip() != ""]
    assert [line for line in drawn if line != "worker"] == LAYERS


def test_a_submit_goes_through_few_files_and_only_down() -> None:
    lines = tree("The path of a submit")
    assert 0 < len(lines) <= MAX_FILES_OF_A_SUBMIT
    check_that_calls_go_down(lines)


def test_a_task_goes_only_down() -> None:
    lines = tree("The path of a task")
    assert len(lines) > 5
    check_that_calls_go_down(lines)


def test_the_limits_of_the_pools_are_those_of_the_code() -> None:
    said = re.search(r"up to (\d+) submits, (\d+) polls, (\d+) preparations and (\d+) downloads at once", PAGE)
    assert said is not None
    assert [int(number) for number in said.groups()] == [FAST_CONCURRENCY] * 2 + [SLOW_CONCURRENCY] * 2
