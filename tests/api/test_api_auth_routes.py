"""`/user/auth/...` and `/user/info` over HTTP: answers, cookies, origins, limits, and the ends of everything."""

import asyncio
import io
import json
from http.cookies import SimpleCookie
from typing import Any

import httpx
import pytest

from app.accounts.api_keys import create_key
from app.admin.actions import COMMAND_LINE
from app.admin.users import set_status
from app.api.access import rate_limits
from app.api.access.callers import OWN_SCOPES
from app.api.access.rate_limits import Rate
from app.runtime import Runtime
from app.settings import Settings
from tests.support.log_ins import PASSWORD
from tests.support.makers import Maker
from tests.support.responses import BALANCE, data, door, refusal

pytestmark = [pytest.mark.anyio, pytest.mark.worlds("embedded")]
OURS = {"Origin": "http://gateway.test"}
STRANGER = (401, "UNAUTHENTICATED", "未登录或Token过期")
WRONG = (401, "UNAUTHENTICATED", "未登录: 用户名或密码错误")
FOREIGN_LOG_IN = (403, "FORBIDDEN", "本平台由其他系统登录，此接口不可用")


async def post(api: httpx.AsyncClient, path: str, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
    return await api.post(f"/user/auth/{path}", json=body, headers=headers)


async def register(api: httpx.AsyncClient, username: str = "alice", **fields: Any) -> dict[str, Any]:
    session: dict[str, Any] = data(await post(api, "register", username=username, password=PASSWORD, **fields))
    return session


def bearer(session: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {session['accessToken']}"}


def cookie_of(answer: httpx.Response) -> Any:
    """The cookie of our answer, with its attributes."""
    (header,) = answer.headers.get_list("set-cookie")
    (morsel,) = SimpleCookie(header).values()
    return morsel


# ------------------------------------------------------------------ tokens in the JSON


@pytest.mark.settings(signup_points=25)
async def test_from_registration_to_log_out(api: httpx.AsyncClient) -> None:
    session = await register(api)
    assert session["expiresIn"] == 1800
    user = session["user"]
    expected = {
        "username": "alice",
        "role": "user",
        "scopes": list(OWN_SCOPES),
        "hasPassword": True,
        "totpEnabled": False,
    }
    assert {name: user[name] for name in expected} == expected
    assert data(await api.get("/user/info", headers=bearer(session))) == user
    balance = data(await api.get(BALANCE, headers=bearer(session)))
    assert (balance["userId"], balance["balance"]) == (user["userId"], 25)

    again = data(await post(api, "login", username="ALICE", password=PASSWORD))
    assert again["user"] == user
    assert data(await api.get(BALANCE, headers=bearer(again)))["balance"] == 25, "granted twice"

    renewed = data(await post(api, "refresh", refreshToken=again["refreshToken"]))
    assert renewed["user"] == user
    assert (await api.get(BALANCE, headers=bearer(renewed))).status_code == 200
    assert data(await post(api, "logout", refreshToken=renewed["refreshToken"])) is None
    assert refusal(await post(api, "refresh", refreshToken=renewed["refreshToken"])) == STRANGER
    assert data(await post(api, "logout", refreshToken=renewed["refreshToken"])) is None
    assert data(await post(api, "logout", refreshToken="unknown")) is None
    data(await post(api, "refresh", refreshToken=session["refreshToken"]))


async def test_an_answer_with_tokens_is_stored_nowhere(api: httpx.AsyncClient) -> None:
    await register(api)
    answer = await post(api, "login", username="alice", password=PASSWORD)
    assert answer.headers["cache-control"] == "no-store"
    assert "set-cookie" not in answer.headers


async def test_every_refusal_of_a_log_in_is_the_same(make: Maker, api: httpx.AsyncClient, runtime: Runtime) -> None:
    await register(api)
    banned = await register(api, "banned")
    await set_status(runtime.database, COMMAND_LINE, banned["user"]["userId"], "banned")
    await make.user(username="without-password")
    answers = []
    for username, password in (
        ("alice", PASSWORD[:-1]),
        ("nobody", PASSWORD),
        ("banned", PASSWORD),
        ("without-password", PASSWORD),
        ("424242", PASSWORD),
    ):
        answer = await post(api, "login", username=username, password=password)
        assert refusal(answer) == WRONG
        heads = {name: value for name, value in answer.headers.items() if name != "x-request-id"}
        answers.append((answer.json() | {"requestId": ""}, heads))
    assert all(one == answers[0] for one in answers)


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("register", {"password": PASSWORD}, "username"),
        ("register", {"username": "alice"}, "password"),
        ("register", {"username": "alice", "password": PASSWORD, "role": "admin"}, "role"),
        ("register", {"username": "alice", "password": PASSWORD, "session": "forever"}, "session"),
        ("register", {"username": 7, "password": PASSWORD}, "username"),
        ("register", {"username": "alice", "password": 12345678}, "password"),
        ("register", {"username": "alice", "password": "x" * 129}, "password"),
        ("register", {"username": "alice", "password": "x\x00xxxxxxxx"}, "password"),
        ("register", {"username": "alice", "password": "password1"}, "password"),
        ("register", {"username": "alice", "password": "Alice"}, "password"),
        ("register", {"username": "аlice", "password": PASSWORD}, "username"),
        ("register", {"username": "12345", "password": PASSWORD}, "username"),
        ("login", {"username": "", "password": PASSWORD}, "username"),
        ("login", {"username": "x" * 65, "password": PASSWORD}, "username"),
        ("login", {"username": "alice", "password": ""}, "password"),
        ("login", {"username": "alice", "password": PASSWORD, "code": 123456}, "code"),
        ("login", {"username": ["alice"], "password": PASSWORD}, "username"),
        ("refresh", {"refreshToken": ""}, "refreshToken"),
        ("refresh", {"refreshToken": "x" * 200}, "refreshToken"),
        ("refresh", {"token": "x"}, "token"),
        ("logout", {"refreshToken": 1}, "refreshToken"),
    ],
)
async def test_a_wrong_field_is_named(api: httpx.AsyncClient, path: str, body: dict[str, Any], field: str) -> None:
    status, code, message = refusal(await post(api, path, **body))
    assert (status, code) == (400, "INVALID_PARAMETER")
    assert message.startswith(f"参数错误: {field} ")


async def test_bodies_that_no_client_sends_are_refused(api: httpx.AsyncClient) -> None:
    for path in ("register", "login", "refresh", "logout"):
        for body, status in (
            (b"", 400),
            (b"[]", 400),
            (b"null", 400),
            (b'{"username": "\\ud800", "password": "\\ud800aaaaaaaa", "refreshToken": "\\ud800"}', 400),
            (b'{"username": "' + b"x" * 20_000 + b'"}', 413),
        ):
            headers = {"Content-Type": "application/json"}
            answer = await api.post(f"/user/auth/{path}", content=body, headers=headers)
            assert refusal(answer)[0] == status, (path, body[:40])


async def test_a_name_that_is_taken_is_a_409(api: httpx.AsyncClient) -> None:
    await register(api)
    answer = await post(api, "register", username="ＡＬＩＣＥ", password=PASSWORD)
    assert refusal(answer) == (409, "USERNAME_TAKEN", "用户名已被使用")


async def test_registration_is_closed_unless_it_is_opened(runtime: Runtime) -> None:
    async with door(runtime, registration="closed") as api:
        answer = await post(api, "register", username="alice", password=PASSWORD)
        assert refusal(answer) == (403, "REGISTRATION_CLOSED", "未开放注册，请联系平台方")


def test_in_production_registration_is_closed_by_default() -> None:
    assert Settings(_env_file=None).is_registration_open
    production = {"environment": "production", "jwt_secret": "s" * 40, "see2ai_api_key": "k" * 20}
    assert not Settings(_env_file=None, public_url="https://api.example.com", **production).is_registration_open


async def test_where_another_service_signs_nobody_logs_in_here(make: Maker, runtime: Runtime) -> None:
    pem = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"
    user = await make.user()
    async with door(runtime, jwt_algorithm="RS256", jwt_public_key=pem) as api:
        for path, body in (
            ("register", {"username": "alice", "password": PASSWORD}),
            ("login", {"username": "alice", "password": PASSWORD}),
            ("refresh", {"refreshToken": "x"}),
            ("logout", {"refreshToken": "x"}),
        ):
            assert refusal(await post(api, path, **body)) == FOREIGN_LOG_IN, path
        assert data(await api.get("/user/info", headers=user.key_headers))["userId"] == user.id


# ------------------------------------------------------------------ cookies


@pytest.mark.settings(cors_origins="https://console.example.com", public_url="https://gateway.test")
async def test_a_session_by_cookie_never_shows_its_refresh_token(api: httpx.AsyncClient) -> None:
    ours = {"Origin": "https://gateway.test"}
    answer = await post(api, "register", ours, username="alice", password=PASSWORD, session="cookie")
    assert data(answer)["refreshToken"] is None
    cookie = cookie_of(answer)
    assert cookie.value not in answer.text
    assert (cookie["path"], cookie["samesite"].lower(), cookie["max-age"]) == ("/user/auth", "strict", "2592000")
    assert cookie["httponly"]
    assert cookie["secure"]
    assert not cookie["domain"]

    for origin in ("https://gateway.test", "https://console.example.com"):
        headers = {"Origin": origin, "Cookie": f"{cookie.key}={cookie.value}"}
        renewed = await post(api, "refresh", headers)
        assert data(renewed)["refreshToken"] is None
        assert cookie_of(renewed).value != cookie.value
        cookie = cookie_of(renewed)
    headers = {"Origin": "https://gateway.test", "Cookie": f"{cookie.key}={cookie.value}"}
    gone = cookie_of(await post(api, "logout", headers))
    assert (gone.value, gone["max-age"], gone["path"]) == ("", "0", "/user/auth")
    assert refusal(await post(api, "refresh", headers)) == STRANGER


@pytest.mark.settings(cors_origins="https://console.example.com,null")
async def test_a_page_of_another_origin_cannot_use_the_cookie(api: httpx.AsyncClient) -> None:
    answer = await post(api, "register", OURS, username="alice", password=PASSWORD, session="cookie")
    cookie = cookie_of(answer)
    with_cookie = {"Cookie": f"{cookie.key}={cookie.value}"}
    foreign: list[dict[str, str]] = [{}] + [
        {"Origin": origin}
        for origin in (
            "",
            "null",
            "https://evil.example",
            "https://gateway.test",  # another scheme
            "http://gateway.test.evil.example",
            "http://console.example.com",
            "http://[",
            "gateway.test",
        )
    ]
    for headers in foreign:
        for path in ("refresh", "logout"):
            refused = await post(api, path, headers | with_cookie)
            assert refusal(refused) == (403, "FORBIDDEN", "来源不被允许"), headers
        body = {"username": "alice", "password": PASSWORD, "session": "cookie"}
        assert refusal(await post(api, "login", headers, **body))[0] == 403
    data(await post(api, "refresh", OURS | with_cookie))


async def test_a_token_of_one_kind_does_not_work_as_the_other(api: httpx.AsyncClient) -> None:
    by_json = await register(api)
    cookie = cookie_of(await post(api, "register", OURS, username="bobby", password=PASSWORD, session="cookie"))
    assert refusal(await post(api, "refresh", refreshToken=cookie.value)) == STRANGER
    as_cookie = OURS | {"Cookie": f"{cookie.key}={by_json['refreshToken']}"}
    assert refusal(await post(api, "refresh", as_cookie)) == STRANGER
    assert refusal(await post(api, "refresh", OURS)) == STRANGER
    data(await post(api, "refresh", refreshToken=by_json["refreshToken"]))
    data(await post(api, "refresh", OURS | {"Cookie": f"{cookie.key}={cookie.value}"}))


@pytest.mark.parametrize(
    ("changes", "is_secure"),
    [
        ({"public_url": ""}, False),
        ({"public_url": "http://localhost:9000"}, False),
        ({"public_url": "http://gateway.example.com"}, True),
        ({"public_url": "https://localhost"}, True),
    ],
)
async def test_a_cookie_is_secure_except_on_this_machine(
    runtime: Runtime, changes: dict[str, str], is_secure: bool
) -> None:
    async with door(runtime, **changes) as api:
        ours = {"Origin": changes["public_url"] or "http://gateway.test"}  # without PUBLIC_URL: that of the request
        answer = await post(api, "register", ours, username="alice", password=PASSWORD, session="cookie")
        assert bool(cookie_of(answer)["secure"]) is is_secure


@pytest.mark.settings(cors_origins="https://console.example.com")
async def test_a_console_of_another_origin_may_send_its_cookie(api: httpx.AsyncClient) -> None:
    headers = {"Origin": "https://console.example.com"}
    answer = await post(api, "register", headers, username="alice", password=PASSWORD, session="cookie")
    assert answer.headers["access-control-allow-credentials"] == "true"
    assert answer.headers["access-control-allow-origin"] == "https://console.example.com"
    foreign = await post(api, "refresh", {"Origin": "https://evil.example"}, refreshToken="x")
    assert "access-control-allow-origin" not in foreign.headers


async def test_with_any_origin_no_browser_sends_a_cookie(runtime: Runtime) -> None:
    async with door(runtime, cors_origins="*") as api:
        answer = await post(api, "refresh", {"Origin": "https://evil.example"}, refreshToken="x")
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in answer.headers


# ------------------------------------------------------------------ rights


async def test_a_key_shows_its_rights_and_cannot_touch_the_account(make: Maker, runtime: Runtime) -> None:
    user = await make.user(admin=True)
    key = {"X-API-Key": await create_key(runtime.database, user.id, scopes=("points",))}
    assert data(await make.api.get("/user/info", headers=key))["scopes"] == ["points", "points:read"]
    assert data(await make.api.get("/user/info", headers=user.headers))["scopes"][-1] == "admin"
    admin_key = {"X-API-Key": await create_key(runtime.database, user.id, scopes=("tasks", "admin"))}
    former = ["tasks", "tasks:submit", "tasks:read", "files:write", "webhooks"]
    assert data(await make.api.get("/user/info", headers=admin_key))["scopes"] == [*former, "admin"]
    for path, body in (
        ("logout-all", {}),
        ("password", {"oldPassword": PASSWORD, "newPassword": "another-long-password"}),
        ("totp/enrol", {}),
        ("totp/confirm", {"code": "123456"}),
        ("totp/disable", {"code": "123456"}),
    ):
        for headers in (key, admin_key):
            answer = await post(make.api, path, headers, **body)
            assert refusal(answer) == (403, "FORBIDDEN", "此接口须登录后使用（JWT），不接受 API Key"), path
        assert refusal(await post(make.api, path, **body)) == STRANGER, path


async def test_a_new_password_ends_every_other_session(api: httpx.AsyncClient) -> None:
    first = await register(api)
    second = data(await post(api, "login", username="alice", password=PASSWORD))
    new = "another-long-password"
    wrong = await post(api, "password", bearer(first), oldPassword=new, newPassword=new)
    assert refusal(wrong)[2] == "参数错误: oldPassword 不正确，或该用户未设置密码"
    changed = data(await post(api, "password", bearer(first), oldPassword=PASSWORD, newPassword=new))
    for session in (first, second):
        assert refusal(await api.get(BALANCE, headers=bearer(session))) == STRANGER
        assert refusal(await post(api, "refresh", refreshToken=session["refreshToken"])) == STRANGER
    assert data(await api.get(BALANCE, headers=bearer(changed)))["userId"] == first["user"]["userId"]
    data(await post(api, "refresh", refreshToken=changed["refreshToken"]))
    assert refusal(await post(api, "login", username="alice", password=PASSWORD)) == WRONG
    data(await post(api, "login", username="alice", password=new))


async def test_a_log_out_everywhere_ends_tokens_and_leaves_keys(api: httpx.AsyncClient, runtime: Runtime) -> None:
    first = await register(api)
    second = data(await post(api, "login", username="alice", password=PASSWORD))
    key = await create_key(runtime.database, first["user"]["userId"])
    assert data(await api.post("/user/auth/logout-all", headers=bearer(first))) is None
    for session in (first, second):
        assert refusal(await api.get(BALANCE, headers=bearer(session))) == STRANGER
        assert refusal(await post(api, "refresh", refreshToken=session["refreshToken"])) == STRANGER
    assert (await api.get(BALANCE, headers={"X-API-Key": key})).status_code == 200
    at_once = data(await post(api, "login", username="alice", password=PASSWORD))
    assert (await api.get(BALANCE, headers=bearer(at_once))).status_code == 200


async def test_a_ban_ends_everything_at_once(api: httpx.AsyncClient, runtime: Runtime) -> None:
    session = await register(api)
    await set_status(runtime.database, COMMAND_LINE, session["user"]["userId"], "banned")
    assert refusal(await api.get(BALANCE, headers=bearer(session))) == STRANGER
    assert refusal(await post(api, "refresh", refreshToken=session["refreshToken"])) == STRANGER
    assert refusal(await post(api, "login", username="alice", password=PASSWORD)) == WRONG
    await set_status(runtime.database, COMMAND_LINE, session["user"]["userId"], "active")
    assert refusal(await post(api, "refresh", refreshToken=session["refreshToken"])) == STRANGER
    data(await post(api, "login", username="alice", password=PASSWORD))


# ------------------------------------------------------------------ limits


@pytest.mark.usefixtures("endless_minute")
async def test_a_client_address_has_a_limit_on_each_way_in(
    api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit, path, body in (
        ("log-in", "login", {"username": "x", "password": "y"}),
        ("register", "register", {"username": "x", "password": "y"}),
        ("refresh", "refresh", {"refreshToken": "x"}),
    ):
        monkeypatch.setitem(rate_limits.FIXED_RATES, limit, Rate(3, 60))
        statuses = [(await post(api, path, **body)).status_code for _ in range(5)]
        assert 429 not in statuses[:3], path
        assert statuses[3:] == [429, 429], path
        answer = await post(api, path, **body)
        assert refusal(answer)[1] == "RATE_LIMITED"
        assert int(answer.headers["retry-after"]) > 0
        empty = await api.post(f"/user/auth/{path}")
        assert empty.status_code == 429, "counted before the body is read"


@pytest.mark.usefixtures("endless_minute")
@pytest.mark.settings(trusted_proxies="127.0.0.0/8")
async def test_a_username_has_a_limit_from_all_addresses_together(
    api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await register(api)
    monkeypatch.setitem(rate_limits.USERNAME_RATES, "log-in-name", Rate(4, 60))
    names = ["alice", "ALICE", "ａｌｉｃｅ", "Alice", "alice"]
    for number, name in enumerate(names):
        answer = await post(api, "login", {"X-Forwarded-For": f"192.0.2.{number}"}, username=name, password="wrong")
        assert answer.status_code == (429 if number == 4 else 401)
    unknown = [await post(api, "login", username="nobody", password="wrong") for _ in range(5)]
    assert [one.status_code for one in unknown] == [401] * 4 + [429], "an unknown name must count like a known one"
    data(await post(api, "refresh", refreshToken=(await register(api, "bobby"))["refreshToken"]))


@pytest.mark.usefixtures("endless_minute")
@pytest.mark.settings(trusted_proxies="127.0.0.0/8")
async def test_a_forwarded_address_counts_for_itself_and_an_ipv6_network_as_one(
    api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(rate_limits.FIXED_RATES, "refresh", Rate(2, 60))

    async def status(address: str) -> int:
        return (await post(api, "refresh", {"X-Forwarded-For": address}, refreshToken="x")).status_code

    assert [await status(f"192.0.2.{number}") for number in range(5)] == [401] * 5
    assert [await status("192.0.2.9") for _ in range(3)] == [401, 401, 429]
    assert [await status(f"2001:db8:1:2::{number}") for number in range(3)] == [401, 401, 429]
    assert await status("2001:db8:1:3::1") == 401


@pytest.mark.usefixtures("endless_minute")
async def test_a_stranger_cannot_choose_an_address(api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rate_limits.FIXED_RATES, "refresh", Rate(2, 60))
    statuses = [
        (await post(api, "refresh", {"X-Forwarded-For": f"192.0.2.{number}"}, refreshToken="x")).status_code
        for number in range(4)
    ]
    assert statuses == [401, 401, 429, 429]


async def test_of_many_registrations_of_a_name_at_once_one_succeeds(api: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(
        *(post(api, "register", username="alice", password=f"{PASSWORD}-{n}") for n in range(8))
    )
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 7


@pytest.mark.settings(log_level="DEBUG")
async def test_no_answer_and_no_log_line_holds_a_password(log: io.StringIO, api: httpx.AsyncClient) -> None:
    session = await register(api)
    answers = [
        await post(api, "login", username="alice", password="planted-password"),
        await post(api, "register", username="alice", password="planted-password"),
        await post(api, "login", username="alice", password="planted-password", session="planted-password"),
        await post(api, "refresh", refreshToken="planted-password"),
        await post(api, "password", bearer(session), oldPassword="planted-password", newPassword="planted-password2"),
    ]
    assert not any("planted" in json.dumps(answer.json(), ensure_ascii=False) for answer in answers)
    assert "planted" not in log.getvalue()
