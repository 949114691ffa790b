"""`gateway points` and `gateway codes`: top-ups that expire, and codes that are made, exported, listed and voided."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

pytestmark = pytest.mark.both_worlds

Run = Callable[..., Result]


def said(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def new_user(gateway: Run) -> str:
    return str(said(gateway("users", "create", "--json"))["userId"])


def test_points_that_expire_and_a_sweep(gateway: Run) -> None:
    user = new_user(gateway)
    top_up = ("points", "grant", user, "20", "--ref", "order-7", "--expires", "2090-01-01", "--json")
    assert said(gateway(*top_up)) == {"userId": int(user), "balance": 20, "applied": True}
    assert said(gateway(*top_up)) == {"userId": int(user), "balance": 20, "applied": False}
    assert said(gateway("points", "expire", "--json")) == {"users": 0, "lots": 0, "points": 0, "failed_users": 0}
    assert said(gateway("audit", "--json"))["ok"]


def test_a_known_reference_with_other_values_is_exit_1(gateway: Run) -> None:
    user, other = new_user(gateway), new_user(gateway)
    said(gateway("points", "grant", user, "20", "--ref", "order-7", "--json"))
    assert gateway("points", "grant", user, "21", "--ref", "order-7").exit_code == 1
    assert gateway("points", "grant", other, "20", "--ref", "order-7").exit_code == 1
    assert gateway("points", "grant", user, "20", "--ref", "order-7", "--expires", "2090-01-01").exit_code == 1
    assert said(gateway("points", "grant", user, "20", "--ref", "order-7", "--json"))["balance"] == 20


def test_a_key_for_admins_needs_its_scope_by_name(gateway: Run) -> None:
    said(gateway("users", "create", "--id", "5", "--admin", "--json"))
    assert said(gateway("keys", "create", "5", "--admin", "--json"))["apiKey"].startswith("sk-")


def test_codes_are_shown_once(gateway: Run) -> None:
    made = said(gateway("codes", "create", "--count", "3", "--points", "50", "--batch", "spring", "--json"))
    assert made["batch"] == "spring"
    assert len(set(made["codes"])) == 3
    rows = said(gateway("codes", "list", "--batch", "spring", "--json"))
    assert {row["prefix"] for row in rows} == {code[:5] for code in made["codes"]}
    assert {(row["status"], row["points"]) for row in rows} == {("unused", 50)}
    assert not any(code in gateway("codes", "list").stdout for code in made["codes"])
    assert said(gateway("codes", "void", "--batch", "spring", "--json")) == {"batch": "spring", "voided": 3}
    assert said(gateway("codes", "void", "--batch", "spring", "--json"))["voided"] == 0
    assert gateway("codes", "create", "--count", "1", "--points", "5").stdout.count("-") >= 4


def test_codes_are_listed_newest_first_up_to_a_limit(gateway: Run) -> None:
    for batch, count in (("old", "100"), ("new", "4")):
        said(gateway("codes", "create", "--count", count, "--points", "5", "--batch", batch, "--json"))
    first = gateway("codes", "list", "--json")
    assert [row["batch"] for row in said(first)] == ["new"] * 4 + ["old"] * 96
    assert first.stderr.splitlines()[-1] == "the newest 100 of 104; --limit shows more"
    assert len(said(gateway("codes", "list", "--limit", "3", "--json"))) == 3
    whole = gateway("codes", "list", "--limit", "104", "--json")
    assert (len(said(whole)), "newest" in whole.stderr) == (104, False)
    assert len(gateway("codes", "list", "--batch", "new", "--limit", "2").stdout.splitlines()) == 3  # and a header


def test_codes_are_exported_to_a_new_file(gateway: Run, tmp_path: Path) -> None:
    path = tmp_path / "codes.csv"
    options = ("--count", "2", "--points", "50", "--lot-days", "30", "--expires", "2090-01-01", "--csv", str(path))
    payload = said(gateway("codes", "create", *options, "--json"))
    assert payload["count"] == 2
    assert path.stat().st_mode & 0o777 == 0o600
    with path.open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["code", "points", "batch"]
    assert {row[2] for row in rows} == {payload["batch"]}
    assert len({row[0] for row in rows}) == 2
    assert gateway("codes", "create", *options).exit_code == 1, "an existing file is not overwritten"
    assert len(said(gateway("codes", "list", "--json"))) == 2


def test_no_empty_file_is_left_after_an_error(gateway: Run, tmp_path: Path) -> None:
    path = tmp_path / "codes.csv"
    bad = ("codes", "create", "--count", "1", "--points", "1", "--batch", " x", "--csv", str(path))
    assert gateway(*bad).exit_code == 1
    assert not path.exists()


@pytest.mark.parametrize(
    "words",
    [
        ("codes", "create", "--points", "5"),
        ("codes", "create", "--count", "0", "--points", "5"),
        ("codes", "create", "--count", "10001", "--points", "5"),
        ("codes", "create", "--count", "1", "--points", "5", "--lot-days", "0"),
        ("codes", "create", "--count", "1", "--points", "5", "--expires", "soon"),
        ("codes", "create", "--count", "1", "--points", "5", "--expires", ""),
        ("codes", "list", "--limit", "0"),
        ("codes", "void"),
        ("points", "grant", "1", "5", "--ref", "x", "--expires", "tomorrow"),
        ("points", "grant", "1", "5", "--ref", "x", "--expires", ""),
    ],
)
def test_bad_usage_is_exit_2(gateway: Run, words: tuple[str, ...]) -> None:
    assert gateway(*words).exit_code == 2


@pytest.mark.parametrize(
    "words",
    [
        ("codes", "void", "--batch", "none"),
        ("codes", "create", "--count", "1", "--points", "5", "--expires", "2020-01-01"),
        ("points", "grant", "1", "5", "--ref", "expire:7"),
        ("points", "grant", "1", "5", "--ref", "users-create:7"),
        ("points", "grant", "1", "5", "--ref", "x", "--remark", "r" * 256),
        ("points", "grant", "1", "5", "--ref", "x", "--expires", "2020-01-01"),
    ],
)
def test_what_cannot_be_done_is_exit_1(gateway: Run, words: tuple[str, ...]) -> None:
    said(gateway("users", "create", "--id", "1", "--json"))
    assert gateway(*words).exit_code == 1
    assert said(gateway("audit", "--json"))["ok"]
