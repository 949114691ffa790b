"""The commands of `gateway`: output, exit codes, and errors of one line."""

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import Result

from app.cli.commands import main
from tests.support.sql import run_sql
from tests.support.worlds import World

Run = Callable[..., Result]


def said(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_users_points_keys_and_tokens(gateway: Run) -> None:
    user_id = said(gateway("users", "create", "--username", "李雷", "--points", "50", "--json"))["userId"]
    first = said(gateway("points", "grant", str(user_id), "20", "--ref", "order-7", "--json"))
    assert first == {"userId": user_id, "balance": 70, "applied": True}
    again = said(gateway("points", "grant", str(user_id), "20", "--ref", "order-7", "--json"))
    assert again == {"userId": user_id, "balance": 70, "applied": False}
    assert said(gateway("keys", "create", str(user_id), "--json"))["apiKey"].startswith("sk-")
    limits = ("--scope", "tasks:submit", "--scope", "tasks:read", "--daily-cap", "100", "--max-tasks", "2")
    assert said(gateway("keys", "create", str(user_id), *limits, "--json"))["apiKey"].startswith("sk-")
    assert gateway("keys", "create", str(user_id), "--scope", "points", "--json").exit_code == 1
    assert said(gateway("users", "token", str(user_id), "--hours", "1", "--json"))["token"].count(".") == 2
    assert said(gateway("audit", "--json")) == {"ok": True, "violations": []}


def test_an_imported_id_is_kept_and_does_not_raise_new_ids(gateway: Run) -> None:
    assert said(gateway("users", "create", "--id", "17563793187762127", "--json"))["userId"] == 17563793187762127
    assert said(gateway("users", "create", "--json"))["userId"] < 2**53


@pytest.mark.parametrize(
    "words",
    [
        ("users", "create", "--id", "0"),
        ("users", "create", "--points", "-1"),
        ("users", "token", "abc"),
        ("points", "grant", "1", "5"),
        ("points", "grant", "1", "0", "--ref", "x"),
        ("models", "set", "m", "--params", "[1]"),
        ("nonsense",),
    ],
)
def test_bad_usage_is_exit_2(gateway: Run, words: tuple[str, ...]) -> None:
    assert gateway(*words).exit_code == 2


@pytest.mark.parametrize(
    "words",
    [
        ("users", "token", "424242"),
        ("keys", "create", "424242"),
        ("points", "grant", "424242", "5", "--ref", "x"),
        ("keys", "revoke", "1", "sk-none"),
        ("users", "ban", "424242"),
        ("tasks", "show", "TASK-none"),
        ("models", "disable", "none"),
        ("models", "set", "sc_new", "--points-cost", "5"),
        ("models", "set", "sc_soraimg_text_1x1", "--params", '{"aspectRatio": "7:5"}'),
        ("models", "set", "sc_soraimg_text_1x1", "--action", "see2ai_nonsense"),
        ("models", "set", "sc_soraimg_text_1x1", "--task-type", "text_to_video"),
    ],
)
def test_what_cannot_be_done_is_exit_1(gateway: Run, words: tuple[str, ...]) -> None:
    assert gateway(*words).exit_code == 1
    assert said(gateway("audit", "--json"))["ok"]


def test_a_name_or_id_that_exists_is_refused(gateway: Run) -> None:
    said(gateway("users", "create", "--id", "7", "--username", "han", "--json"))
    assert gateway("users", "create", "--id", "7").exit_code == 1
    assert gateway("users", "create", "--username", "han").exit_code == 1


def test_models_are_created_repriced_and_disabled(gateway: Run) -> None:
    new = ("models", "set", "sc_wide", "--points-cost", "40", "--task-type", "text_to_image", "--description", "宽")
    action = ("--action", "see2ai_image_generation_fast_v1", "--params", '{"aspectRatio": "16:9"}', "--json")
    said(gateway(*new, *action))
    said(gateway("models", "set", "sc_wide", "--points-cost", "45", "--json"))
    said(gateway("models", "disable", "sc_wide", "--json"))
    row = next(row for row in said(gateway("models", "list", "--json")) if row["model_name"] == "sc_wide")
    assert (row["points_cost"], row["enabled"], row["params"]) == (45, False, {"aspectRatio": "16:9"})


def test_without_json_it_prints_plain_lines(gateway: Run) -> None:
    assert "userId: " in gateway("users", "create").stdout
    assert "sc_soraimg_text_1x1" in gateway("models", "list").stdout
    assert gateway("audit").stdout.startswith("ok")


@pytest.mark.parametrize("as_json", [False, True])
def test_an_audit_of_wrong_books_is_exit_1_with_the_rows(gateway: Run, world: World, as_json: bool) -> None:
    user_id = said(gateway("users", "create", "--points", "50", "--json"))["userId"]
    wrong = "UPDATE points_accounts SET available = available - 20, held = held + 20"
    asyncio.run(run_sql(str(world.settings["database_url"]), wrong))
    result = gateway("audit", "--json") if as_json else gateway("audit")
    assert result.exit_code == 1
    if as_json:
        payload = json.loads(result.stdout)
        (violation,) = payload["violations"]
        assert (payload["ok"], violation["invariant"]) == (False, "I1")
        assert violation["meaning"] == "an account equals the sum of its ledger entries"
        row = violation["row"]
        assert (row["user_id"], row["held"], int(row["sum_held"])) == (user_id, 20, 0)
        return
    first, second, last = result.stdout.splitlines()
    assert first == "I1  an account equals the sum of its ledger entries"
    assert f"'user_id': {user_id}" in second
    assert last == "1 violations"


def test_arguments_that_are_not_utf_8_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["gateway", "points", "grant", "1", "5", "--ref", b"\xff".decode(errors="surrogateescape")]
    )
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    assert capsys.readouterr().err == "the arguments are not UTF-8\n"
