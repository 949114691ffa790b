"""`/user/auth/totp/...`: enrolment, log-in with a code, and what an admin may do in production."""

import time
from dataclasses import replace
from typing import Any

import httpx
import pyotp
import pytest
from sqlalchemy import update

from app.accounts.log_in import sessions, totp
from app.accounts.users import create_user
from app.api.access import rate_limits
from app.api.access.rate_limits import HOUR, Rate
from app.runtime import Runtime
from app.tables import users
from tests.support.apps import open_app
from tests.support.log_ins import PASSWORD
from tests.support.responses import data, refusal

pytestmark = [pytest.mark.anyio, pytest.mark.worlds("embedded")]
LOG_IN = "/user/auth/login"


def code_of(secret: str, steps: int = 0) -> str:
    return pyotp.TOTP(secret).generate_otp(int(time.time()) // 30 + steps)


async def post(api: httpx.AsyncClient, path: str, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
    return await api.post(f"/user/auth/{path}", json=body, headers=headers)


async def registered(api: httpx.AsyncClient) -> dict[str, str]:
    """The headers of a new user."""
    session = data(await post(api, "register", username="alice", password=PASSWORD))
    return {"Authorization": f"Bearer {session['accessToken']}"}


async def test_from_enrolment_to_the_end_of_it(api: httpx.AsyncClient) -> None:
    mine = await registered(api)
    made = data(await post(api, "totp/enrol", mine))
    assert made["secret"] in made["otpauthUrl"]
    wrong = await post(api, "totp/confirm", mine, code="abcdef")
    assert refusal(wrong) == (400, "INVALID_PARAMETER", "参数错误: code 不正确")
    codes = data(await post(api, "totp/confirm", mine, code=code_of(made["secret"])))["recoveryCodes"]
    assert data(await api.get("/user/info", headers=mine))["totpEnabled"]

    credentials = {"username": "alice", "password": PASSWORD}
    missing = await post(api, "login", **credentials)
    assert refusal(missing) == (401, "SECOND_FACTOR_REQUIRED", "未登录: 请输入动态验证码")
    used = await post(api, "login", **credentials, code=code_of(made["secret"]))
    assert refusal(used) == (401, "SECOND_FACTOR_REQUIRED", "未登录: 动态验证码错误或已使用")
    assert data(await post(api, "login", **credentials, code=code_of(made["secret"], 1)))["user"]["totpEnabled"]
    data(await post(api, "login", **credentials, code=codes[0]))
    assert refusal(await post(api, "login", **credentials, code=codes[0]))[0] == 401

    again = await post(api, "totp/enrol", mine)
    assert refusal(again) == (403, "FORBIDDEN", "已启用动态验证码，停用后才能重新设置")
    assert data(await post(api, "totp/disable", mine, code=codes[1])) is None
    data(await post(api, "login", **credentials))


@pytest.mark.usefixtures("endless_minute")
async def test_codes_are_not_guessed_without_end(api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rate_limits.FIXED_RATES, "second-factor", Rate(4, HOUR))
    mine = await registered(api)
    made = data(await post(api, "totp/enrol", mine))
    data(await post(api, "totp/confirm", mine, code=code_of(made["secret"])))
    credentials = {"username": "alice", "password": PASSWORD}
    answers = [await post(api, "login", **credentials, code="abcdef") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [401, 401, 429]
    assert (await post(api, "login", **credentials, code=code_of(made["secret"], 1))).status_code == 429
    assert (await post(api, "totp/disable", mine, code=code_of(made["secret"], 1))).status_code == 429
    assert (await post(api, "login", **credentials)).status_code == 401, "without a code nothing is guessed"


async def test_in_production_an_admin_is_enrolled_by_an_operator_only(runtime: Runtime) -> None:
    """Else a stolen password alone would give an admin's rights: the thief would enrol."""
    production = replace(runtime, settings=runtime.settings.model_copy(update={"environment": "production"}))
    admin = await create_user(runtime.database, username="root", admin=True)
    await sessions.set_password(runtime.database, admin, PASSWORD)
    grant = {"userId": admin, "points": 1, "ref": "once"}
    async with open_app(production) as app:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway.test") as api:
            session = data(await post(api, "login", username="root", password=PASSWORD))
            assert (session["user"]["role"], "admin" in session["user"]["scopes"]) == ("admin", False)
            mine = {"Authorization": f"Bearer {session['accessToken']}"}
            assert "admin" not in data(await api.get("/user/info", headers=mine))["scopes"]
            refused = await api.post("/admin/points/grants", json=grant, headers=mine)
            assert refusal(refused) == (403, "FORBIDDEN", "管理员须先启用动态验证码，请联系平台方")
            assert refusal(await post(api, "totp/enrol", mine))[:2] == (403, "FORBIDDEN")

            made, _ = await totp.enrol(runtime.database, admin)
            code = code_of(made.secret)
            session = data(await post(api, "login", username="root", password=PASSWORD, code=code))
            assert session["user"]["scopes"][-1] == "admin"
            mine = {"Authorization": f"Bearer {session['accessToken']}"}
            assert data(await api.post("/admin/points/grants", json=grant, headers=mine))["applied"]

            async with runtime.database.begin() as connection:
                await connection.execute(update(users).where(users.c.id == admin).values(totp_step=1))
            assert data(await post(api, "totp/disable", mine, code=code_of(made.secret))) is None
            refused = await api.post("/admin/points/grants", json=grant, headers=mine)
            assert refusal(refused)[0] == 403
