"""Top-ups by REST: by admins only, once for each reference. All other callers are refused on every `/admin` route."""

import asyncio
import re
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from app.accounts.api_keys import ADMIN_SCOPE, ALL_SCOPES, create_key
from app.admin.actions import COMMAND_LINE
from app.admin.users import set_status
from app.points.balance import get_balance
from app.points.ledger import MAX_POINTS
from app.runtime import Runtime
from app.settings import Settings
from tests.support.makers import Maker, User
from tests.support.responses import data, refusal

pytestmark = [pytest.mark.anyio, pytest.mark.both_worlds]
GRANTS = "/admin/points/grants"


async def top_up(make: Maker, by: dict[str, str], user_id: int, **changes: Any) -> httpx.Response:
    body = {"userId": user_id, "points": 100, "ref": "order-1"} | changes
    return await make.api.post(GRANTS, json=body, headers=by)


async def admin_key(runtime: Runtime, admin: User) -> dict[str, str]:
    return {"X-API-Key": await create_key(runtime.database, admin.id, scopes=(*ALL_SCOPES, ADMIN_SCOPE))}


async def test_twenty_parallel_repeats_apply_once(make: Maker) -> None:
    admin, user = await make.user(admin=True), await make.user(points=5)
    answers = [data(one) for one in await asyncio.gather(*[top_up(make, admin.headers, user.id) for _ in range(20)])]
    assert sorted(answer["applied"] for answer in answers) == [False] * 19 + [True]
    assert {(answer["userId"], answer["balance"]) for answer in answers} == {(user.id, 105)}
    assert await make.balance(user) == (105, 0)


async def test_granted_points_may_expire(make: Maker, runtime: Runtime, settings: Settings) -> None:
    admin, user = await make.user(admin=True), await make.user()
    by = await admin_key(runtime, admin)
    data(await top_up(make, by, user.id, expires="2090-01-02T03:04:05", remark="活动赠送"))
    payload = await make.api.get("/user/points/consumption/balance", headers=user.headers)
    assert data(payload)["expireTime"] == "2090-01-02T03:04:05"
    data(await top_up(make, by, user.id, ref="order-2", expires="2089-12-31T00:00:00+00:00"))
    soonest = (await get_balance(runtime.database, user.id)).expires
    assert soonest == datetime(2089, 12, 31, tzinfo=UTC)


async def test_a_known_reference_with_other_values_is_reported(make: Maker) -> None:
    admin, user, other = await make.user(admin=True), await make.user(), await make.user()
    data(await top_up(make, admin.headers, user.id))
    for user_id, changes in ((user.id, {"points": 99}), (other.id, {}), (user.id, {"expires": "2090-01-01"})):
        status, code, message = refusal(await top_up(make, admin.headers, user_id, **changes))
        assert (status, code) == (409, "GRANT_CONFLICT")
        assert "ref" in message
    assert await make.balance(user) == (100, 0)
    assert await make.balance(other) == (0, 0)


async def test_a_known_reference_is_a_replay_on_a_full_account_too(make: Maker) -> None:
    admin, user = await make.user(admin=True), await make.user()
    for applied in (True, False):
        payload = data(await top_up(make, admin.headers, user.id, points=MAX_POINTS))
        assert (payload["applied"], payload["balance"]) == (applied, MAX_POINTS)
    assert refusal(await top_up(make, admin.headers, user.id, points=1))[:2] == (409, "GRANT_CONFLICT")
    status, _, message = refusal(await top_up(make, admin.headers, user.id, points=1, ref="order-2"))
    assert (status, message) == (400, "参数错误: points 超出账户上限")
    assert await make.balance(user) == (MAX_POINTS, 0)


async def test_a_known_reference_with_another_expiry_is_reported_too(make: Maker) -> None:
    admin, user = await make.user(admin=True), await make.user()
    for _ in range(2):
        data(await top_up(make, admin.headers, user.id, expires="2090-01-01T08:00:00.123456"))
    assert not data(await top_up(make, admin.headers, user.id, expires="2090-01-01T00:00:00.123Z"))["applied"]
    for other in (None, "2090-01-01", "2090-01-01T08:00:00.124"):
        answer = await top_up(make, admin.headers, user.id, expires=other)
        assert refusal(answer)[:2] == (409, "GRANT_CONFLICT")
    assert await make.balance(user) == (100, 0)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"points": 0}, "points"),
        ({"points": -5}, "points"),
        ({"points": "5"}, "points"),
        ({"points": True}, "points"),
        ({"points": 1.0}, "points"),
        ({"points": 2**53 + 1}, "points"),
        ({"ref": ""}, "ref"),
        ({"ref": " x"}, "ref"),
        ({"ref": None}, "ref"),
        ({"ref": "x" * 129}, "ref"),
        ({"ref": "a\x00"}, "ref"),
        ({"ref": "expire:1"}, "ref"),
        ({"ref": "code:1"}, "ref"),
        ({"ref": "users-create:7"}, "ref"),
        ({"userId": 0}, "userId"),
        ({"userId": 2**63}, "userId"),
        ({"expires": ""}, "expires"),
        ({"expires": " "}, "expires"),
        ({"expires": "tomorrow"}, "expires"),
        ({"expires": "2020-01-01"}, "expires"),
        ({"expires": "9999-12-31T23:59:59"}, "expires"),
        ({"remark": "x" * 256}, "remark"),
        ({"amount": 5}, "amount"),
        ({"expire": "2090-01-01"}, "expire"),
    ],
)
@pytest.mark.worlds("embedded")
async def test_an_invalid_body_moves_no_points(make: Maker, changes: dict[str, Any], field: str) -> None:
    admin, user = await make.user(admin=True), await make.user()
    status, code, message = refusal(await top_up(make, admin.headers, changes.pop("userId", user.id), **changes))
    assert (status, code) == (400, "INVALID_PARAMETER")
    assert field in message
    assert await make.balance(user) == (0, 0)


async def test_a_top_up_needs_a_reference_and_a_user(make: Maker) -> None:
    admin = await make.user(admin=True)
    answer = await make.api.post(GRANTS, json={"userId": admin.id, "points": 5}, headers=admin.headers)
    assert refusal(answer)[:2] == (400, "INVALID_PARAMETER")
    assert refusal(await top_up(make, admin.headers, 424242)) == (404, "NOT_FOUND", "用户不存在")


# ------------------------------------------------------------------ permissions


def admin_routes(document: dict[str, Any]) -> list[tuple[str, str]]:
    return [(verb, path) for path, verbs in document["paths"].items() if path.startswith("/admin") for verb in verbs]


async def test_every_admin_route_is_closed_to_all_but_admins(make: Maker, runtime: Runtime) -> None:
    user, admin = await make.user(points=1), await make.user(admin=True)
    grabbed = await create_key(runtime.database, user.id, scopes=(*ALL_SCOPES, ADMIN_SCOPE))
    strangers = [user.headers, user.key_headers, {"X-API-Key": grabbed}, admin.key_headers]
    routes = admin_routes((await make.api.get("/openapi.json")).json())
    assert ("post", GRANTS) in routes
    body = {"userId": user.id, "points": 5, "ref": "stolen"}
    for verb, path in routes:
        place = re.sub(r"\{.*?\}", "1", path)
        for headers in strangers:
            answer = await make.api.request(verb, place, json=body, headers=headers)
            assert refusal(answer)[:2] == (403, "FORBIDDEN"), (verb, place)
        anonymous = await make.api.request(verb, place, json=body)
        assert refusal(anonymous)[:2] == (401, "UNAUTHENTICATED"), (verb, place)
    assert await make.balance(user) == (1, 0)


async def test_a_banned_admin_is_refused(make: Maker, runtime: Runtime) -> None:
    admin, user = await make.user(admin=True), await make.user()
    by = await admin_key(runtime, admin)
    data(await top_up(make, by, user.id))
    await make.user(admin=True)  # one must remain
    await set_status(runtime.database, COMMAND_LINE, admin.id, "banned")
    for headers in (by, admin.headers):
        assert refusal(await top_up(make, headers, user.id, ref="order-2"))[:2] == (401, "UNAUTHENTICATED")
