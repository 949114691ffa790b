"""`gateway` as an operator types it: answers, exit codes, one-line reasons."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from app.cli.commands import app
from app.errors import GatewayError
from tests.worlds import World

Run = Callable[..., Result]


@pytest.fixture
def gateway(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Run:
    """Runs a command against this world's database; an error of ours comes out as exit 1, as `main` has it."""
    monkeypatch.chdir(tmp_path)
    for name, value in world.settings.items():
        monkeypatch.setenv(name.upper(), str(value))
    runner = CliRunner()

    def run(*words: str) -> Result:
        result = runner.invoke(app, list(words))
        if isinstance(result.exception, GatewayError):
            result.exit_code = 1
        return result

    return run


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
    assert said(gateway("users", "token", str(user_id), "--hours", "1", "--json"))["token"].count(".") == 2
    assert said(gateway("audit", "--json")) == {"ok": True, "violations": []}


def test_an_imported_id_is_kept_and_does_not_push_new_ones_up(gateway: Run) -> None:
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


def test_a_name_or_id_taken_twice_is_refused(gateway: Run) -> None:
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


def test_for_people_it_prints_plain_lines(gateway: Run) -> None:
    assert "userId: " in gateway("users", "create").stdout
    assert "sc_soraimg_text_1x1" in gateway("models", "list").stdout
    assert gateway("audit").stdout.startswith("ok")
