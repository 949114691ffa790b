"""`gateway models`: `diff` finds changes by hand, `check` finds models that cannot be sold, `set` changes prices."""

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import Result

from tests.support.sql import run_sql
from tests.support.worlds import World

pytestmark = pytest.mark.both_worlds

Run = Callable[..., Result]
RULES = '[{"param": "resolution", "points": {"1K": 30, "2K": 45}}]'
SQUARE = "sc_soraimg_text_1x1"


def write(world: World, *statements: str) -> None:
    asyncio.run(run_sql(world.settings["database_url"], *statements))


def drift(gateway: Run) -> dict[str, Any]:
    result = gateway("models", "diff", "--json")
    found: dict[str, Any] = json.loads(result.stdout)
    assert result.exit_code == (0 if found["equal"] else 1)
    return found


def test_a_migrated_database_is_equal(gateway: Run) -> None:
    assert drift(gateway) == {"equal": True, "added": [], "missing": [], "changed": [], "invalid": []}
    result = gateway("models", "diff")
    assert (result.exit_code, result.stdout) == (0, "equal: points_config is what the migrations seed\n")


def test_every_sort_of_difference_is_reported(gateway: Run, world: World) -> None:
    new = ("--task-type", "text_to_image", "--action", "see2ai_image_generation_fast_v1", "--points-cost", "9")
    assert gateway("models", "set", "sc_by_hand", *new).exit_code == 0
    assert gateway("models", "set", SQUARE, "--points-cost", "31", "--price-rules", RULES).exit_code == 0
    assert gateway("models", "disable", "sc_soraimg_text_2x3").exit_code == 0
    write(
        world,
        "DELETE FROM points_config WHERE model_name = 'sc_soraimg_text_3x2'",
        "UPDATE points_config SET params = '{\"aspectRatio\":\"7:5\"}' WHERE model_name = 'sc_soraimg_img2img_1x1'",
    )
    found = drift(gateway)
    assert (found["equal"], found["added"], found["missing"]) == (False, ["sc_by_hand"], ["sc_soraimg_text_3x2"])
    assert found["changed"] == [
        {"modelName": SQUARE, "column": "points_cost", "seeded": 30, "now": 31},
        {"modelName": SQUARE, "column": "price_rules", "seeded": None, "now": json.loads(RULES)},
        {"modelName": "sc_soraimg_text_2x3", "column": "enabled", "seeded": True, "now": False},
        {
            "modelName": "sc_soraimg_img2img_1x1",
            "column": "params",
            "seeded": {"aspectRatio": "1:1"},
            "now": {"aspectRatio": "7:5"},
        },
    ]
    assert [row["modelName"] for row in found["invalid"]] == ["sc_soraimg_img2img_1x1"]
    assert "params.aspectRatio" in found["invalid"][0]["reason"]
    lines = gateway("models", "diff").stdout.splitlines()
    assert lines[:2] == ["added    sc_by_hand", "missing  sc_soraimg_text_3x2"]
    assert f"changed  {SQUARE}  points_cost: 30 → 31" in lines
    assert lines[-1].startswith("invalid  sc_soraimg_img2img_1x1  参数错误: params.aspectRatio")


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("action", "'see2ai_gone'", "action"),
        ("task_type", "'text_to_video'", "task_type"),
        ("price_rules", '\'[{"param":"seconds","each":1}]\'', "price_rules 第 1 条"),
    ],
)
def test_a_row_that_breaks_todays_rules_is_named(
    gateway: Run, world: World, column: str, value: str, reason: str
) -> None:
    write(world, f"UPDATE points_config SET {column} = {value} WHERE model_name = '{SQUARE}'")
    found = drift(gateway)
    assert [(row["modelName"], row["column"]) for row in found["changed"]] == [(SQUARE, column)]
    assert [row["modelName"] for row in found["invalid"]] == [SQUARE]
    assert reason in found["invalid"][0]["reason"]


@pytest.mark.parametrize(("column", "value"), [("params", "[]"), ("defaults", "5"), ("price_rules", '["x"]')])
def test_a_row_in_a_wrong_form_is_invalid(gateway: Run, world: World, column: str, value: str) -> None:
    write(world, f"UPDATE points_config SET {column} = '{value}' WHERE model_name = '{SQUARE}'")
    found = drift(gateway)
    assert [row["modelName"] for row in found["invalid"]] == [SQUARE]
    assert column in found["invalid"][0]["reason"]
    assert found["missing"] == []


def test_json_spelling_and_times_are_no_difference(gateway: Run, world: World) -> None:
    named = f"WHERE model_name = '{SQUARE}'"
    write(world, f'UPDATE points_config SET params = \'{{ "aspectRatio" : "1:1" }}\' {named}')
    assert gateway("models", "set", SQUARE, "--points-cost", "30").exit_code == 0  # a new updated_at
    assert drift(gateway)["equal"]


@pytest.mark.parametrize("column", ["params", "defaults", "price_rules"])
def test_invalid_json_is_named_and_hides_nothing_else(gateway: Run, world: World, column: str) -> None:
    write(world, f"UPDATE points_config SET {column} = '{{\"a\":' WHERE model_name = '{SQUARE}'")
    assert gateway("models", "disable", "sc_soraimg_text_2x3").exit_code == 0
    found = drift(gateway)
    assert found["invalid"] == [{"modelName": SQUARE, "reason": f"参数错误: {column} 不是 JSON"}]
    assert [row["modelName"] for row in found["changed"]] == ["sc_soraimg_text_2x3"]
    assert found["missing"] == []
    result = gateway("models", "list", "--json")
    assert (result.exit_code, SQUARE in result.stdout) == (0, False)
    assert "sc_soraimg_text_2x3" in result.stdout
    assert ("model_invalid" in result.stderr, SQUARE in result.stderr) == (True, True)


def test_invalid_json_is_repaired_only_by_writing_the_whole_value(gateway: Run, world: World) -> None:
    write(world, f"UPDATE points_config SET params = '{{\"a\":' WHERE model_name = '{SQUARE}'")
    refused = gateway("models", "set", SQUARE, "--points-cost", "30")
    assert (refused.exit_code, "params 不是 JSON" in str(refused.exception)) == (1, True)
    assert gateway("models", "set", SQUARE, "--params", '{"aspectRatio": "1:1"}').exit_code == 0
    assert drift(gateway)["equal"]


def test_price_rules_by_hand(gateway: Run) -> None:
    def rules() -> Any:
        rows = json.loads(gateway("models", "list", "--json").stdout)
        return next(row["price_rules"] for row in rows if row["model_name"] == SQUARE)

    assert gateway("models", "set", SQUARE, "--price-rules", RULES).exit_code == 0
    assert rules() == json.loads(RULES)
    assert gateway("models", "set", SQUARE, "--points-cost", "31").exit_code == 0
    assert rules() == json.loads(RULES)
    refused = gateway("models", "set", SQUARE, "--price-rules", '[{"param": "resolution", "points": {"1K": 1}}]')
    assert (refused.exit_code, "缺少取值 2K" in str(refused.exception)) == (1, True)
    for usage in ("{}", "5", "[", "null"):
        assert gateway("models", "set", SQUARE, "--price-rules", usage).exit_code == 2
    assert rules() == json.loads(RULES)
    assert gateway("models", "set", SQUARE, "--price-rules", "[]").exit_code == 0
    assert rules() is None


def test_check_names_the_enabled_models_that_cannot_be_sold(gateway: Run, world: World) -> None:
    result = gateway("models", "check")
    assert result.exit_code == 0
    assert re.fullmatch(r"ok: \d+ models can be sold\n", result.stdout)
    write(
        world,
        f"UPDATE points_config SET action = 'see2ai_gone' WHERE model_name = '{SQUARE}'",
        "UPDATE points_config SET action = 'see2ai_gone', enabled = 0 WHERE model_name = 'sc_soraimg_text_2x3'",
        "UPDATE points_config SET params = '{\"a\":' WHERE model_name = 'sc_soraimg_text_3x2'",
    )
    result = gateway("models", "check")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0] == "invalid  sc_soraimg_text_3x2  参数错误: params 不是 JSON"
    assert lines[1].startswith(f"invalid  {SQUARE}  参数错误: action 未知")
    assert len(lines) == 2
    found = json.loads(gateway("models", "check", "--json").stdout)
    assert (found["ok"], [row["modelName"] for row in found["invalid"]]) == (False, ["sc_soraimg_text_3x2", SQUARE])
