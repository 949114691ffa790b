"""`/admin/models` and `/admin/actions`: what each route answers, and what a wrong request gets."""

from typing import Any

import httpx
import pytest

from tests.support.makers import TEXT_MODEL, Maker, User
from tests.support.responses import MODELS, data, refusal
from tests.support.worlds import execute

pytestmark = pytest.mark.anyio
PATH = "/admin/models"
NEW = {
    "modelName": "sc_wide",
    "pointsCost": 40,
    "taskType": "text_to_image",
    "action": "see2ai_image_generation_fast_v1",
    "params": {"aspectRatio": "16:9"},
}


async def post(make: Maker, admin: User, path: str, **body: Any) -> httpx.Response:
    return await make.api.post(PATH + path, json=body, headers=admin.headers)


async def read(make: Maker, admin: User, path: str, **query: Any) -> Any:
    return data(await make.api.get(path, params=query, headers=admin.headers))


async def model(make: Maker, admin: User, name: str) -> dict[str, Any]:
    (found,) = [one for one in await read(make, admin, PATH) if one["modelName"] == name]
    return dict(found)


async def test_the_list_has_disabled_and_broken_models(make: Maker) -> None:
    admin = await make.user(admin=True)
    data(await post(make, admin, f"/{TEXT_MODEL}/disable"))
    await execute(make.runtime, "UPDATE points_config SET params = 'x' WHERE model_name = 'sc_soraimg_text_2x3'")
    disabled = await model(make, admin, TEXT_MODEL)
    assert (disabled["enabled"], disabled["pointsCost"], disabled["params"]) == (False, 30, {"aspectRatio": "1:1"})
    broken = await model(make, admin, "sc_soraimg_text_2x3")
    assert (broken["pointsCost"], "params" in broken["problem"]) == (None, True)
    offered = [one["modelName"] for one in await read(make, admin, MODELS)]
    assert TEXT_MODEL not in offered


async def test_a_model_is_added_changed_and_disabled(make: Maker) -> None:
    admin, user = await make.user(admin=True, username="root"), await make.user(points=100)
    assert data(await post(make, admin, "", **NEW)) == {"modelName": "sc_wide", "applied": True}
    await make.task_no(user, model="sc_wide")
    change = {"pointsCost": 45, "reason": "成本上涨", "ref": "up-1"}
    for applied in (True, False):
        assert data(await post(make, admin, "/sc_wide", **change)) == {"modelName": "sc_wide", "applied": applied}
    await make.task_no(user, model="sc_wide")
    assert await make.balance(user) == (15, 85)
    data(await post(make, admin, "/sc_wide/disable", reason="下架"))
    assert refusal(await make.submit(user, model="sc_wide"))[:2] == (400, "MODEL_NOT_FOUND")
    history = (await read(make, admin, f"{PATH}/sc_wide/history"))["records"]
    assert [(one["action"], one["reason"], one["adminName"]) for one in history] == [
        ("model.disable", "下架", "root"),
        ("model.set", "成本上涨", "root"),
        ("model.create", "", "root"),
    ]
    assert history[1]["changes"] == [{"column": "points_cost", "from": 40, "to": 45}]
    query = {"targetType": "model", "target": "sc_wide", "action": "model.set"}
    shown = (await read(make, admin, "/admin/actions", **query))["records"]
    assert [(one["before"], one["after"], one["ref"]) for one in shown] == [
        ({"points_cost": 40}, {"points_cost": 45}, "up-1")
    ]


async def test_a_quote_of_a_change(make: Maker) -> None:
    admin = await make.user(admin=True)
    rules = [{"param": "resolution", "points": {"1K": 30, "2K": 45}}]
    body = {"prompt": "猫", "params": {"resolution": "2K"}, "change": {"priceRules": rules}}
    assert data(await post(make, admin, f"/{TEXT_MODEL}/quote", **body)) == {
        "modelName": TEXT_MODEL,
        "pointsCost": 30,
        "changedPointsCost": 45,
    }
    assert (await model(make, admin, TEXT_MODEL))["priceRules"] is None
    new = {name: value for name, value in NEW.items() if name != "modelName"}
    assert data(await post(make, admin, "/sc_wide/quote", prompt="猫", change=new))["changedPointsCost"] == 40
    assert (await read(make, admin, "/admin/actions"))["total"] == 0


@pytest.mark.worlds("embedded")
async def test_the_difference_from_the_release(make: Maker) -> None:
    admin = await make.user(admin=True)
    data(await post(make, admin, "", **NEW))
    data(await post(make, admin, f"/{TEXT_MODEL}/disable"))
    found = await read(make, admin, f"{PATH}/diff")
    assert (found["equal"], "sc_wide" in found["added"]) == (False, True)
    assert {"modelName": TEXT_MODEL, "column": "enabled", "seeded": True, "now": False} in found["changed"]


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("", NEW | {"modelName": TEXT_MODEL}, "modelName"),
        ("", NEW | {"modelName": "模型"}, "modelName"),
        ("", NEW | {"modelName": " x"}, "modelName"),
        ("", NEW | {"modelName": "a/b"}, "modelName"),
        ("", NEW | {"modelName": "a\n"}, "modelName"),
        ("", NEW | {"modelName": ""}, "modelName"),
        ("", NEW | {"modelName": "x" * 101}, "modelName"),
        ("", {"modelName": "sc_x"}, "pointsCost"),
        ("", NEW | {"pointsCost": "40"}, "pointsCost"),
        ("", NEW | {"pointsCost": 2**53 + 1}, "pointsCost"),
        ("", NEW | {"taskType": "text_to_video"}, "taskType"),
        ("", NEW | {"action": "x"}, "action"),
        ("", NEW | {"params": []}, "params"),
        ("", NEW | {"price": 5}, "price"),
        (f"/{TEXT_MODEL}", {}, "请求体"),
        (f"/{TEXT_MODEL}", {"reason": "nothing"}, "请求体"),
        (f"/{TEXT_MODEL}", {"pointsCost": -1}, "pointsCost"),
        (f"/{TEXT_MODEL}", {"params": {"aspectRatio": "7:5"}}, "params.aspectRatio"),
        (f"/{TEXT_MODEL}", {"priceRules": [{"param": "resolution", "points": {"1K": 1}}]}, "priceRules 第 1 条"),
        (f"/{TEXT_MODEL}", {"priceRules": [{}] * 21}, "priceRules"),
        (f"/{TEXT_MODEL}", {"priceRules": {}}, "priceRules"),
        (f"/{TEXT_MODEL}", {"description": "x" * 256}, "description"),
        (f"/{TEXT_MODEL}", {"description": "\x00"}, "description"),
        (f"/{TEXT_MODEL}", {"sort": 2**31}, "sort"),
        (f"/{TEXT_MODEL}", {"enabled": 1}, "enabled"),
        (f"/{TEXT_MODEL}", {"modelName": "x"}, "modelName"),
        (f"/{TEXT_MODEL}/disable", {"enabled": False}, "enabled"),
        (f"/{TEXT_MODEL}/quote", {"prompt": ""}, "prompt"),
        (f"/{TEXT_MODEL}/quote", {"prompt": "猫", "params": {"resolution": "9K"}}, "params"),
        (f"/{TEXT_MODEL}/quote", {"prompt": "猫", "change": {"reason": "x"}}, "change"),
    ],
)
@pytest.mark.worlds("embedded")
async def test_a_wrong_body_changes_nothing(make: Maker, path: str, body: dict[str, Any], field: str) -> None:
    admin = await make.user(admin=True)
    before = await read(make, admin, PATH)
    status, code, message = refusal(await post(make, admin, path, **body))
    assert (status, code) == (400, "INVALID_PARAMETER")
    assert field in message
    assert "points_cost" not in message
    assert await read(make, admin, PATH) == before
    assert (await read(make, admin, "/admin/actions"))["total"] == 0


@pytest.mark.parametrize("path", ["", "/disable"])
async def test_an_unknown_model_cannot_be_changed(make: Maker, path: str) -> None:
    admin = await make.user(admin=True)
    body = {} if path else NEW | {"modelName": None}
    body.pop("modelName", None)
    assert refusal(await post(make, admin, f"/sc_none{path}", **body))[:2] == (400, "MODEL_NOT_FOUND")


async def test_an_unknown_model_has_no_history(make: Maker) -> None:
    admin = await make.user(admin=True)
    assert await read(make, admin, f"{PATH}/sc_none/history") == {
        "records": [],
        "total": 0,
        "page": 1,
        "size": 10,
        "pages": 0,
    }


# ------------------------------------------------------------------ /admin/actions


async def test_the_actions_are_filtered_and_paged(make: Maker) -> None:
    admin, other, user = await make.user(admin=True), await make.user(admin=True), await make.user()
    data(await make.api.post(f"/admin/users/{user.id}/ban", json={"ref": "b-1"}, headers=admin.headers))
    data(await make.api.post(f"/admin/users/{user.id}/unban", json={}, headers=other.headers))
    data(await post(make, other, f"/{TEXT_MODEL}", sort=5))

    async def found(**query: Any) -> list[str]:
        return [one["action"] for one in (await read(make, admin, "/admin/actions", **query))["records"]]

    assert await found() == ["model.set", "user.unban", "user.ban"]
    assert await found(adminId=admin.id) == await found(ref="b-1") == await found(action="user.ban") == ["user.ban"]
    assert await found(targetType="user", target=str(user.id)) == ["user.unban", "user.ban"]
    assert await found(adminId=0) == await found(endTime="2020-01-01") == await found(action="user") == []
    assert await found(startTime="2020-01-01", action="", target="") == ["model.set", "user.unban", "user.ban"]
    assert await found(page=2, size=2) == ["user.ban"]


@pytest.mark.parametrize(
    "query", [{"page": 0}, {"size": 0}, {"adminId": -1}, {"startTime": "soon"}, {"target": "x" * 129}]
)
async def test_a_wrong_query_of_the_actions_is_refused(make: Maker, query: dict[str, Any]) -> None:
    admin = await make.user(admin=True)
    answer = await make.api.get("/admin/actions", params=query, headers=admin.headers)
    assert refusal(answer)[:2] == (400, "INVALID_PARAMETER")
