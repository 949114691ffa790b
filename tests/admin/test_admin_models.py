"""Changes of models by admins: each leaves a row with the columns before and after, and counts in every process."""

import asyncio
from typing import Any

import pytest

from app.admin.actions import COMMAND_LINE, ActionFilters, Admin, list_actions
from app.admin.models import (
    create_model,
    create_or_set_model,
    disable_model,
    list_price_history,
    quote_model,
    set_model,
)
from app.catalog.model_diff import find_diff
from app.catalog.models import list_models
from app.database import Database
from app.errors import ActionConflict, InvalidParameter, ModelNotFound
from app.runtime import Runtime, open_runtime
from app.settings import Settings
from app.tasks.validation import Submission
from tests.support.makers import IMAGE_MODEL, TEXT_MODEL, Maker
from tests.support.worlds import execute

pytestmark = [pytest.mark.anyio, pytest.mark.both_worlds]
NEW = {"points_cost": 9, "task_type": "text_to_image", "action": "see2ai_image_generation_fast_v1"}
RULES = [{"param": "resolution", "points": {"1K": 30, "2K": 45}}]


async def columns_of(database: Database, name: str) -> dict[str, Any] | None:
    found = await list_models(database, only_enabled=False)
    return next((model.columns for model in found if model.model_name == name), None)


async def acts(runtime: Runtime) -> list[tuple[str, Any, Any]]:
    rows, _ = await list_actions(runtime.database, 1, ActionFilters(), page=1, size=100)
    return [(row["action"], row["before"], row["after"]) for row in rows]


async def history(runtime: Runtime, name: str) -> list[dict[str, Any]]:
    return (await list_price_history(runtime.database, 1, name, page=1, size=100))[0]


async def test_a_change_leaves_the_columns_before_and_after(runtime: Runtime) -> None:
    changes = {"points_cost": 28, "price_rules": RULES, "description": None}
    await set_model(runtime.database, Admin(7), TEXT_MODEL, changes, reason="促销")
    before, after = {"points_cost": 30, "price_rules": None}, {"points_cost": 28, "price_rules": RULES}
    assert await acts(runtime) == [("model.set", before, after)]
    found = await columns_of(runtime.database, TEXT_MODEL)
    assert found is not None
    assert (found["points_cost"], found["price_rules"]) == (28, RULES)


async def test_a_change_counts_at_once_in_every_process(runtime: Runtime, settings: Settings, make: Maker) -> None:
    user = await make.user(points=100)
    await make.task_no(user)
    async with open_runtime(settings) as second:
        await set_model(second.database, Admin(7), TEXT_MODEL, {"points_cost": 28})
        quoted = await make.api.post(
            "/user/ai/tasks/quote", json={"modelName": TEXT_MODEL, "prompt": "猫"}, headers=user.headers
        )
        assert quoted.json()["data"]["pointsCost"] == 28
        await make.task_no(user)
        assert await make.balance(user) == (42, 58)
        await disable_model(second.database, Admin(7), TEXT_MODEL)
        assert (await make.submit(user)).status_code == 400


async def test_an_unknown_model_is_not_changed(runtime: Runtime) -> None:
    for act in (
        set_model(runtime.database, Admin(7), "none", NEW),
        disable_model(runtime.database, Admin(7), "none"),
        disable_model(runtime.database, Admin(7), f"{TEXT_MODEL} "),
    ):
        with pytest.raises(ModelNotFound):
            await act
    assert (await acts(runtime), await columns_of(runtime.database, "none")) == ([], None)


async def test_a_creation_needs_a_free_name(runtime: Runtime) -> None:
    await create_model(runtime.database, Admin(7), "sc_new", NEW)
    for name in ("sc_new", TEXT_MODEL):
        with pytest.raises(InvalidParameter, match="已存在"):
            await create_model(runtime.database, Admin(7), name, NEW | {"points_cost": 1})
    found = await columns_of(runtime.database, "sc_new")
    assert found is not None
    assert found["points_cost"] == 9
    ((action, before, after),) = await acts(runtime)
    assert (action, before, after["enabled"], after["points_cost"]) == ("model.create", None, True, 9)


async def test_of_equal_creations_at_once_one_is_taken(runtime: Runtime) -> None:
    made = [create_model(runtime.database, Admin(7), "sc_new", NEW) for _ in range(5)]
    results = await asyncio.gather(*made, return_exceptions=True)
    assert [type(result) for result in results].count(InvalidParameter) == 4
    assert len(await acts(runtime)) == 1


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"points_cost": -1}, "points_cost"),
        ({"action": "see2ai_nonsense"}, "action"),
        ({"task_type": "text_to_video"}, "task_type"),
        ({"params": {"aspectRatio": "7:5"}}, "params.aspectRatio"),
        ({"price_rules": [{"param": "resolution", "points": {"1K": 1}}]}, "price_rules"),
        ({}, "请求体"),
        ({"points_cost": None}, "请求体"),
    ],
)
async def test_a_change_that_breaks_the_rules_changes_nothing(
    runtime: Runtime, changes: dict[str, Any], field: str
) -> None:
    before = await columns_of(runtime.database, TEXT_MODEL)
    with pytest.raises(InvalidParameter, match=field):
        await set_model(runtime.database, Admin(7), TEXT_MODEL, changes)
    assert (await columns_of(runtime.database, TEXT_MODEL), await acts(runtime)) == (before, [])


async def test_a_change_by_reference_happens_once(runtime: Runtime) -> None:
    for points, applied in ((28, True), (28, False)):
        changes = {"points_cost": points, "price_rules": []}
        result = await set_model(runtime.database, Admin(7), TEXT_MODEL, changes, ref="sale-1")
        assert result.applied is applied
    await set_model(runtime.database, Admin(7), TEXT_MODEL, {"points_cost": 30})
    for other in ({"points_cost": 27, "price_rules": []}, {"points_cost": 28}, {"sort": 1}):
        with pytest.raises(ActionConflict):
            await set_model(runtime.database, Admin(7), TEXT_MODEL, other, ref="sale-1")
    found = await columns_of(runtime.database, TEXT_MODEL)
    assert found is not None
    assert (found["points_cost"], len(await acts(runtime))) == (30, 2)


async def test_a_model_whose_row_is_broken_can_be_disabled_and_repaired(runtime: Runtime) -> None:
    await execute(runtime, f"UPDATE points_config SET params = 'x' WHERE model_name = '{TEXT_MODEL}'")
    await disable_model(runtime.database, Admin(7), TEXT_MODEL)
    await set_model(runtime.database, Admin(7), TEXT_MODEL, {"params": {"aspectRatio": "1:1"}, "enabled": True})
    assert await acts(runtime) == [
        (
            "model.set",
            {"params": None, "enabled": False},
            {"params": {"aspectRatio": "1:1"}, "enabled": True},
        ),
        ("model.disable", {"enabled": True}, {"enabled": False}),
    ]


async def test_the_command_creates_or_changes(runtime: Runtime) -> None:
    await create_or_set_model(runtime.database, COMMAND_LINE, "sc_new", NEW)
    await create_or_set_model(runtime.database, COMMAND_LINE, "sc_new", {"points_cost": 8})
    assert [action for action, *_ in await acts(runtime)] == ["model.set", "model.create"]


async def test_the_history_says_who_changed_what(runtime: Runtime, make: Maker) -> None:
    admin = await make.user(admin=True, username="root")
    await create_model(runtime.database, Admin(admin.id), "sc_new", NEW)
    await set_model(runtime.database, Admin(admin.id), "sc_new", {"points_cost": 8, "sort": 0}, reason="促销")
    await disable_model(runtime.database, COMMAND_LINE, "sc_new")
    await set_model(runtime.database, Admin(admin.id), TEXT_MODEL, {"points_cost": 8})
    disabled, repriced, created = await history(runtime, "sc_new")
    assert (disabled["admin_id"], disabled["changes"]) == (None, [{"column": "enabled", "from": True, "to": False}])
    assert (repriced["admin_name"], repriced["reason"]) == ("root", "促销")
    assert repriced["changes"] == [{"column": "points_cost", "from": 9, "to": 8}]
    assert {"column": "points_cost", "from": None, "to": 9} in created["changes"]


# ------------------------------------------------------------------ quotes


async def test_a_quote_of_a_change_stores_nothing(runtime: Runtime) -> None:
    before = await columns_of(runtime.database, TEXT_MODEL)
    cat = Submission(TEXT_MODEL, "猫", params={"resolution": "2K"})
    assert await quote_model(runtime, cat, {}) == (30, 30)
    assert await quote_model(runtime, cat, {"points_cost": 28}) == (30, 28)
    assert await quote_model(runtime, cat, {"price_rules": RULES}) == (30, 45)
    assert (await columns_of(runtime.database, TEXT_MODEL), await acts(runtime)) == (before, [])


async def test_a_quote_of_a_new_or_disabled_model(runtime: Runtime) -> None:
    assert await quote_model(runtime, Submission("sc_new", "猫"), NEW) == (None, 9)
    await disable_model(runtime.database, COMMAND_LINE, TEXT_MODEL)
    assert await quote_model(runtime, Submission(TEXT_MODEL, "猫"), {"points_cost": 5}) == (30, 5)
    references = "https://example.com/1.jpg,https://example.com/2.jpg"
    rule = [{"param": "references", "each": 2}]
    assert await quote_model(runtime, Submission(IMAGE_MODEL, "猫", references), {"price_rules": rule}) == (35, 39)


async def test_a_quote_refuses_what_a_change_or_a_submit_refuses(runtime: Runtime) -> None:
    with pytest.raises(InvalidParameter, match="points_cost"):
        await quote_model(runtime, Submission(TEXT_MODEL, "猫"), {"points_cost": -1})
    with pytest.raises(InvalidParameter, match="prompt"):
        await quote_model(runtime, Submission(TEXT_MODEL, " "), {})
    with pytest.raises(InvalidParameter, match="points_cost"):
        await quote_model(runtime, Submission("sc_none", "猫"), {})


# ------------------------------------------------------------------ the release


async def test_the_difference_from_the_release(runtime: Runtime) -> None:
    """The tests have prices of their own, so the change is looked for by name."""
    await create_model(runtime.database, COMMAND_LINE, "sc_new", NEW)
    before = await find_diff(runtime.database)
    await disable_model(runtime.database, COMMAND_LINE, TEXT_MODEL)
    after = await find_diff(runtime.database)
    assert "sc_new" in after.added
    assert [one for one in after.changed if one not in before.changed] == [
        {"modelName": TEXT_MODEL, "column": "enabled", "seeded": True, "now": False}
    ]
