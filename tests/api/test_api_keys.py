"""`/user/keys`: what users do with their API keys, and what a key with limits is refused."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from app.accounts.api_keys import create_key
from app.accounts.keys import user_keys
from app.api.access.rate_limits import FIXED_RATES, HOUR, Rate
from app.datetimes import format_local
from app.runtime import Runtime
from app.tables import api_keys
from tests.support.apps import open_app
from tests.support.makers import IMAGE_MODEL, TEXT_MODEL, Maker, User
from tests.support.responses import BALANCE, LIST, MODELS, SUBMIT, data, door, refusal
from tests.support.worlds import execute

pytestmark = pytest.mark.anyio

KEYS = "/user/keys"
REDEEM = "/user/points/redeem"
QUOTE = "/user/ai/tasks/quote"
TICKET = "/user/ai/tasks/ws-ticket"
UNKNOWN = (404, "NOT_FOUND", "密钥不存在")
NO_LIMITS = {"daily": None, "monthly": None, "total": None, "maxTasks": None}
BODY = {"modelName": TEXT_MODEL, "prompt": "一只猫"}


async def post(make: Maker, user: User, path: str = "", **body: Any) -> httpx.Response:
    return await make.api.post(KEYS + path, json=body, headers=user.headers)


async def made(make: Maker, user: User, **body: Any) -> dict[str, Any]:
    return dict(data(await post(make, user, **body)))


def by(key: dict[str, Any]) -> dict[str, str]:
    return {"X-API-Key": key["apiKey"]}


async def shown(make: Maker, user: User, key: dict[str, Any]) -> dict[str, Any]:
    return dict(data(await make.api.get(f"{KEYS}/{key['id']}", headers=user.headers)))


async def test_a_new_key_is_shown_once_and_has_every_scope_and_no_limit(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=100)
    key = await made(make, user, name="shop")
    assert key["apiKey"].startswith(key["prefix"])
    assert (key["name"], key["status"], key["runningTasks"]) == ("shop", "active", 0)
    assert key["scopes"] == ["tasks:submit", "tasks:read", "points:read", "files:write", "webhooks"]
    assert key["models"] is key["addresses"] is key["expireTime"] is key["lastUseTime"] is key["revokeTime"] is None
    assert key["caps"] == key["endUserCaps"] == NO_LIMITS
    assert key["spent"] == {"today": 0, "thisMonth": 0, "total": 0}
    task = data(await make.api.post(SUBMIT, json=BODY, headers=by(key)))
    later = await shown(make, user, key)
    assert "apiKey" not in later
    assert later["spent"] == {"today": 30, "thisMonth": 30, "total": 30}
    assert later["runningTasks"] == 1
    assert later["lastUseTime"] is not None
    data(await make.api.post(f"/user/ai/tasks/{task['taskNo']}/cancel", headers=by(key)))
    assert (await shown(make, user, key))["spent"] == {"today": 0, "thisMonth": 0, "total": 0}
    listed = data(await make.api.get(KEYS, headers=user.headers))
    assert key["apiKey"] not in str(listed)
    async with runtime.database.read() as connection:
        assert key["apiKey"] not in str((await connection.execute(select(api_keys))).all())


async def test_counters_of_an_earlier_day_are_shown_as_zero(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=100)
    key = await made(make, user)
    await make.api.post(SUBMIT, json=BODY, headers=by(key))
    await execute(runtime, "UPDATE key_budgets SET day = '2020-01-31' WHERE spent_total > 0")
    assert (await shown(make, user, key))["spent"] == {"today": 0, "thisMonth": 0, "total": 30}


async def test_the_list_is_the_newest_first_by_pages_and_hides_revoked_keys(make: Maker) -> None:
    user, other = await make.user(), await make.user()  # each has one key already
    keys = [await made(make, user, name=f"{number}") for number in range(3)]
    data(await post(make, user, f"/{keys[1]['id']}/revoke"))

    async def names(**query: Any) -> list[str]:
        page = data(await make.api.get(KEYS, params=query, headers=user.headers))
        assert page["total"] == (4 if query.get("withRevoked") else 3)
        return [one["name"] for one in page["records"]]

    assert await names() == ["2", "0", ""]
    assert await names(withRevoked="true") == ["2", "1", "0", ""]
    assert await names(page=2, size=2) == [""]
    assert len(data(await make.api.get(KEYS, headers=other.headers))["records"]) == 1
    for wrong in ({"page": 0}, {"size": 101}, {"withRevoked": "maybe"}):
        assert refusal(await make.api.get(KEYS, params=wrong, headers=user.headers))[0] == 400


# ------------------------------------------------------------------ who may call


async def test_no_key_reaches_keys_whatever_its_scopes(make: Maker, runtime: Runtime) -> None:
    user = await make.user(admin=True)
    mine = await made(make, user)
    scopes = ("tasks", "points", "admin", "tasks:submit", "tasks:read", "points:read", "files:write", "webhooks", "jwt")
    strong = {"X-API-Key": await create_key(runtime.database, user.id, scopes=scopes)}
    paths = ["", f"/{mine['id']}", f"/{mine['id']}/rotate", f"/{mine['id']}/revoke"]
    for method, path in [("GET", paths[0]), ("GET", paths[1]), *[("POST", path) for path in paths]]:
        answer = await make.api.request(method, KEYS + path, json={}, headers=strong)
        assert refusal(answer) == (403, "FORBIDDEN", "此接口须登录后使用（JWT），不接受 API Key")
        assert refusal(await make.api.request(method, KEYS + path, json={}))[0] == 401
    assert (await shown(make, user, mine))["status"] == "active"


async def test_anothers_key_is_an_unknown_one(make: Maker) -> None:
    user, other = await make.user(), await make.user()
    key = await made(make, other)
    for number in (key["id"], 987_654):
        assert refusal(await make.api.get(f"{KEYS}/{number}", headers=user.headers)) == UNKNOWN
        for path, body in (("", {"name": "mine"}), ("/rotate", {"overlapHours": 1}), ("/revoke", {})):
            assert refusal(await post(make, user, f"/{number}{path}", **body)) == UNKNOWN
        assert refusal(await post(make, user, f"/{number}", models=[TEXT_MODEL])) == UNKNOWN
    assert (await shown(make, other, key))["status"] == "active"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"nmae": "x"}, "nmae"),
        ({"name": "x" * 101}, "name"),
        ({"name": "a\x00b"}, "name"),
        ({"name": None}, "name"),
        ({"name": 1}, "name"),
        ({"scopes": []}, "scopes"),
        ({"scopes": None}, "scopes"),
        ({"scopes": ["points"]}, "scopes"),
        ({"scopes": ["admin"]}, "scopes"),
        ({"scopes": "tasks:read"}, "scopes"),
        ({"models": []}, "models"),
        ({"models": ["no such model"]}, "models"),
        ({"models": ["a\x00b"]}, "models"),
        ({"models": ["m"] * 101}, "models"),
        ({"addresses": []}, "addresses"),
        ({"addresses": ["10.0.0.1/8"]}, "addresses"),
        ({"addresses": ["example.com"]}, "addresses"),
        ({"addresses": ["1.1.1.1"] * 51}, "addresses"),
        ({"expireTime": "soon"}, "expireTime"),
        ({"expireTime": "2020-01-01T00:00:00"}, "expireTime"),
        ({"expireTime": "9999-12-31T23:59:59Z"}, "expireTime"),
        ({"caps": {"daily": -1}}, "caps"),
        ({"caps": {"daily": 2**53 + 1}}, "caps"),
        ({"caps": {"daily": "10"}}, "caps"),
        ({"caps": {"daily": 1.5}}, "caps"),
        ({"caps": {"daily": True}}, "caps"),
        ({"caps": {"dayly": 10}}, "caps"),
        ({"caps": {"maxTasks": 1_000_001}}, "caps"),
        ({"caps": []}, "caps"),
        ({"endUserCaps": {"total": -1}}, "endUserCaps"),
    ],
)
async def test_a_wrong_field_is_named_and_changes_nothing(make: Maker, body: dict[str, Any], field: str) -> None:
    user = await make.user()
    key = await made(make, user, caps={"daily": 5})
    before = await shown(make, user, key)
    for path in ("", f"/{key['id']}"):
        status, code, message = refusal(await post(make, user, path, **body))
        assert (status, code) == (400, "INVALID_PARAMETER")
        assert message.startswith(f"参数错误: {field}"), message
    assert await shown(make, user, key) == before
    assert data(await make.api.get(KEYS, headers=user.headers))["total"] == 2


async def test_a_user_has_a_hundred_valid_keys_at_most(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_keys, "MAX_KEYS", 5)
    user = await make.user()  # has one key
    answers = await asyncio.gather(*[post(make, user) for _ in range(10)])
    keys = [data(answer) for answer in answers if answer.status_code == 200]
    assert len(keys) == 4
    message = "参数错误: 密钥 最多 5 个有效的，请先吊销不用的密钥"
    assert {refusal(answer) for answer in answers if answer.status_code != 200} == {(400, "INVALID_PARAMETER", message)}
    path = f"/{keys[0]['id']}/rotate"
    assert refusal(await post(make, user, path, overlapHours=1))[0] == 400
    data(await post(make, user, path, overlapHours=0))
    data(await post(make, user, f"/{keys[1]['id']}/revoke"))
    data(await post(make, user))
    data(await post(make, await make.user()))


async def test_changes_are_counted_by_the_hour(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FIXED_RATES, "key-change", Rate(3, HOUR))
    user = await make.user()
    answers = [await post(make, user) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert (await make.api.get(KEYS, headers=user.headers)).status_code == 200


# ------------------------------------------------------------------ change, rotate, revoke


async def test_a_change_keeps_what_it_does_not_name_and_null_removes_a_limit(make: Maker) -> None:
    user = await make.user()
    caps = {"daily": 100, "monthly": 1000, "total": None, "maxTasks": 3}
    key = await made(
        make,
        user,
        name="shop",
        models=[TEXT_MODEL],
        addresses=["10.0.0.0/8"],
        expireTime="2090-01-01T00:00:00",
        caps=caps,
        endUserCaps={"daily": 7},
    )
    path = f"/{key['id']}"
    assert data(await post(make, user, path)) == await shown(make, user, key)
    changed = data(await post(make, user, path, name="", scopes=["tasks:read"], caps={"daily": None, "total": 5}))
    assert changed["caps"] == {"daily": None, "monthly": 1000, "total": 5, "maxTasks": 3}
    assert changed["endUserCaps"] == NO_LIMITS | {"daily": 7}
    assert (changed["name"], changed["scopes"], changed["models"]) == ("", ["tasks:read"], [TEXT_MODEL])
    assert changed["expireTime"] == "2090-01-01T00:00:00"
    free = data(await post(make, user, path, models=None, addresses=None, expireTime=None, caps=None, endUserCaps=None))
    assert free["models"] is free["addresses"] is free["expireTime"] is None
    assert free["caps"] == free["endUserCaps"] == NO_LIMITS
    assert free["scopes"] == ["tasks:read"]


async def test_a_model_that_is_not_on_sale_any_more_may_stay_in_the_list(make: Maker, runtime: Runtime) -> None:
    user = await make.user()
    key = await made(make, user, models=[TEXT_MODEL, IMAGE_MODEL])
    await execute(runtime, f"UPDATE points_config SET enabled = 0 WHERE model_name = '{IMAGE_MODEL}'")
    path = f"/{key['id']}"
    assert data(await post(make, user, path, models=[IMAGE_MODEL]))["models"] == [IMAGE_MODEL]
    data(await post(make, user, path, models=[TEXT_MODEL]))
    assert refusal(await post(make, user, path, models=[IMAGE_MODEL]))[0] == 400


async def test_a_change_of_rights_counts_from_the_next_request_on(make: Maker) -> None:
    user = await make.user()
    key = await made(make, user)
    assert (await make.api.get(BALANCE, headers=by(key))).status_code == 200
    data(await post(make, user, f"/{key['id']}", scopes=["tasks:read"]))
    assert refusal(await make.api.get(BALANCE, headers=by(key))) == (403, "FORBIDDEN", "该密钥无权访问此接口")


async def test_after_a_rotation_both_keys_work_until_the_overlap_ends(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=1000)
    old = await made(make, user, name="shop", scopes=["tasks:submit"], models=[TEXT_MODEL], caps={"total": 60})
    new = data(await post(make, user, f"/{old['id']}/rotate", overlapHours=2))
    assert new["apiKey"] != old["apiKey"]
    kept = ("name", "scopes", "models", "addresses", "caps", "endUserCaps", "expireTime")
    assert {name: new[name] for name in kept} == {name: old[name] for name in kept}
    assert new["previous"]["id"] == old["id"]
    zone = runtime.settings.zone
    soon, late = [format_local(datetime.now(UTC) + timedelta(hours=hours), zone) for hours in (1, 3)]
    assert str(soon) < new["previous"]["expireTime"] < str(late)
    for key in (old, new):
        data(await make.api.post(SUBMIT, json=BODY, headers=by(key)))
    refused = refusal(await make.api.post(SUBMIT, json=BODY, headers=by(new)))
    assert refused == (402, "KEY_BUDGET_EXCEEDED", "积分不足: 超出密钥的总额度 60，已用 60，本次需要 30")
    again = refusal(await post(make, user, f"/{old['id']}/rotate", overlapHours=2))
    assert again == (400, "INVALID_PARAMETER", "参数错误: id 该密钥已被更换，请更换新的密钥")
    await execute(runtime, f"UPDATE api_keys SET expires_at = '2020-01-01 00:00:00.000' WHERE id = {old['id']}")
    assert refusal(await make.api.post(QUOTE, json=BODY, headers=by(old)))[0] == 401
    assert (await make.api.post(QUOTE, json=BODY, headers=by(new))).status_code == 200
    assert (await shown(make, user, old))["status"] == "expired"
    assert refusal(await post(make, user, f"/{old['id']}/rotate"))[0] == 400


async def test_a_rotation_without_overlap_ends_the_old_key_at_once(make: Maker) -> None:
    user = await make.user()
    old = await made(make, user)
    answers = await asyncio.gather(*[post(make, user, f"/{old['id']}/rotate", overlapHours=0) for _ in range(5)])
    (new,) = [data(answer) for answer in answers if answer.status_code == 200]
    assert {answer.status_code for answer in answers} == {200, 400}
    assert refusal(await make.api.get(BALANCE, headers=by(old)))[0] == 401
    assert (await make.api.get(BALANCE, headers=by(new))).status_code == 200
    for wrong in ({"overlapHours": 169}, {"overlapHours": -1}, {"overlapHours": 1.5}, {"hours": 1}):
        assert refusal(await post(make, user, f"/{new['id']}/rotate", **wrong))[0] == 400


async def test_a_rotation_never_prolongs_the_old_key(make: Maker) -> None:
    user = await make.user()
    soon = (datetime.now(UTC) + timedelta(minutes=30)).isoformat(timespec="seconds")
    old = await made(make, user, expireTime=soon)
    new = data(await post(make, user, f"/{old['id']}/rotate", overlapHours=168))
    assert new["previous"]["expireTime"] == new["expireTime"] == old["expireTime"]


async def test_a_revoked_key_ends_at_once_and_stays_so(make: Maker, runtime: Runtime) -> None:
    user = await make.user()
    key = await made(make, user)
    assert (await make.api.get(BALANCE, headers=by(key))).status_code == 200
    revoked = data(await post(make, user, f"/{key['id']}/revoke"))
    assert revoked["status"] == "revoked"
    assert data(await post(make, user, f"/{key['id']}/revoke")) == revoked
    async with open_app(runtime) as app:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://other.test") as other:
            assert refusal(await other.get(BALANCE, headers=by(key)))[0] == 401
    for path, body in (("", {"name": "x"}), ("/rotate", {})):
        problem = refusal(await post(make, user, f"/{key['id']}{path}", **body))
        assert problem == (400, "INVALID_PARAMETER", "参数错误: id 该密钥已吊销，不能修改或更换")


# ------------------------------------------------------------------ what limits refuse


async def test_each_scope_opens_its_routes_and_no_other(make: Maker) -> None:
    user = await make.user(points=1000)
    requests = {
        "tasks:submit": [("POST", SUBMIT), ("POST", QUOTE), ("POST", "/user/ai/tasks/TASK-1/cancel")],
        "tasks:read": [("GET", LIST), ("GET", "/user/ai/tasks/TASK-1"), ("GET", MODELS), ("POST", TICKET)],
        "points:read": [("GET", BALANCE), ("GET", "/user/points/consumption/records")],
        "files:write": [("POST", "/user/files/upload")],
        "webhooks": [("GET", "/user/webhooks/endpoints"), ("POST", "/user/webhooks/test")],
        "redeem": [("POST", REDEEM)],
    }
    for scope in [one for one in requests if one != "redeem"]:
        key = await made(make, user, scopes=[scope])
        for opened, calls in requests.items():
            for method, path in calls:
                answer = await make.api.request(method, path, json=BODY, headers=by(key))
                assert (answer.status_code == 403) == (opened != scope), (scope, method, path, answer.text)


async def test_keys_of_before_keep_their_rights(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=100)
    key = {"X-API-Key": await create_key(runtime.database, user.id, scopes=("tasks", "points"))}
    for method, path in (("GET", BALANCE), ("GET", LIST), ("POST", QUOTE), ("GET", "/user/webhooks/endpoints")):
        assert (await make.api.request(method, path, json=BODY, headers=key)).status_code == 200
    assert refusal(await make.api.post(REDEEM, json={"code": "x"}, headers=key))[0] == 400


async def test_a_key_uses_and_sees_its_models_only(make: Maker) -> None:
    user = await make.user(points=1000)
    key = await made(make, user, models=[TEXT_MODEL])
    assert [one["modelName"] for one in data(await make.api.get(MODELS, headers=by(key)))] == [TEXT_MODEL]
    for path in (SUBMIT, QUOTE):
        assert (await make.api.post(path, json=BODY, headers=by(key))).status_code == 200
        for name in ("sc_soraimg_text_2x3", "no such model"):
            answer = await make.api.post(path, json=BODY | {"modelName": name}, headers=by(key))
            assert refusal(answer) == (403, "FORBIDDEN", f"该密钥不能使用模型 {name}")
    assert (await make.balance(user))[1] == 30


@pytest.mark.settings(trusted_proxies="10.0.0.0/8")
async def test_a_key_is_used_from_its_addresses_only(make: Maker, runtime: Runtime) -> None:
    user = await make.user()
    key = await made(make, user, addresses=["203.0.113.0/24", "2001:db8::/32"])
    async with open_app(runtime) as app:

        async def status(client: str, forwarded: str | None = None, headers: dict[str, str] | None = None) -> int:
            transport = httpx.ASGITransport(app=app, client=(client, 1234))
            async with httpx.AsyncClient(transport=transport, base_url="http://gateway.test") as caller:
                extra = {} if forwarded is None else {"X-Forwarded-For": forwarded}
                return (await caller.get(BALANCE, headers=(headers or by(key)) | extra)).status_code

        assert await status("203.0.113.9") == await status("2001:db8::7") == await status("::ffff:203.0.113.9") == 200
        assert await status("198.51.100.1") == 403
        assert await status("198.51.100.1", "203.0.113.9") == 403, "anybody can write this header"
        assert await status("10.0.0.1", "203.0.113.9") == 200
        assert await status("10.0.0.1", "203.0.113.9, 198.51.100.1") == 403
        assert await status("198.51.100.1", headers=user.headers) == 200


async def test_a_ticket_and_a_stream_keep_the_address_of_their_key(make: Maker, runtime: Runtime) -> None:
    from app.accounts.authentication import authenticate, reauthenticate
    from app.accounts.tickets import make_ticket, redeem_ticket
    from app.errors import Forbidden

    user = await make.user()
    key = await made(make, user, addresses=["203.0.113.9"])
    caller = (await authenticate(runtime, key["apiKey"])).at_address("203.0.113.9")
    first, second = await make_ticket(runtime, caller), await make_ticket(runtime, caller)
    assert (await redeem_ticket(runtime, first)).address == "203.0.113.9"
    data(await post(make, user, f"/{key['id']}", addresses=["203.0.113.10"]))
    with pytest.raises(Forbidden):
        await redeem_ticket(runtime, second)
    with pytest.raises(Forbidden):
        await reauthenticate(runtime, caller)


# ------------------------------------------------------------------ end users


async def test_the_end_user_is_in_the_answer_and_filters_the_list(make: Maker) -> None:
    user = await make.user(points=1000)
    for name in (" alice ", "小明", None):
        task = data(await make.submit(user, endUser=name))
        assert task["endUser"] == (name and name.strip())
        assert (await make.task(user, task["taskNo"]))["endUser"] == task["endUser"]
    for name, number in (("alice", 1), ("小明", 1), ("Alice", 0), ("", 3)):
        page = data(await make.api.get(LIST, params={"endUser": name}, headers=user.headers))
        assert page["total"] == number, name


@pytest.mark.parametrize("wrong", ["", "   ", "x" * 129, "a\nb", "a\x00", "a\x7fb", 7, ["alice"], {"id": 1}])
async def test_a_wrong_end_user_is_refused(make: Maker, wrong: Any) -> None:
    user = await make.user(points=100)
    status, _, message = refusal(await make.submit(user, endUser=wrong))
    assert (status, "endUser" in message) == (400, True)
    assert await make.balance(user) == (100, 0)


async def test_another_end_user_is_another_request_for_an_idempotency_key(make: Maker) -> None:
    user = await make.user(points=100)
    headers = user.headers | {"Idempotency-Key": "k"}
    first = data(await make.api.post(SUBMIT, json=BODY | {"endUser": "alice"}, headers=headers))
    again = data(await make.api.post(SUBMIT, json=BODY | {"endUser": "alice"}, headers=headers))
    assert first["taskNo"] == again["taskNo"]
    assert again["endUser"] == "alice"
    assert refusal(await make.api.post(SUBMIT, json=BODY | {"endUser": "bob"}, headers=headers))[0] == 409


async def test_the_caps_of_an_end_user_reach_the_caller(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=1000)
    key = await made(make, user, endUserCaps={"daily": 30})
    async with door(runtime) as api:
        answers = [await api.post(SUBMIT, json=BODY | {"endUser": "alice"}, headers=by(key)) for _ in range(2)]
        assert refusal(answers[1])[:2] == (402, "KEY_BUDGET_EXCEEDED")
        assert "积分不足" in refusal(answers[1])[2]
        data(await api.post(SUBMIT, json=BODY | {"endUser": "bob"}, headers=by(key)))
        data(await api.post(SUBMIT, json=BODY, headers=by(key)))
