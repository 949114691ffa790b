"""Who may call which route: one row for each route of the OpenAPI document, one column for each kind of caller.

A route without a row fails. `docs/authorization.md` is this table; `WRITE_AUTHORIZATION=1` writes it anew. A row whose
route does not exist is ignored.
"""

import importlib.util
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from sqlalchemy import insert, select, update

from app.accounts.api_keys import create_key
from app.accounts.credentials import sign_token
from app.admin.actions import COMMAND_LINE
from app.admin.users import set_status
from app.api.access import rate_limits
from app.database import utc_now
from app.main import create_app
from app.runtime import Runtime
from app.tables import api_keys, key_budgets
from tests.support.makers import TEXT_MODEL, Maker, User
from tests.support.responses import data, refusal

pytestmark = [pytest.mark.anyio, pytest.mark.worlds("embedded")]
PAGE = Path(__file__).parents[2] / "docs" / "authorization.md"
HOOK = "https://receiver.example.com/hook"
SUBMIT = {"modelName": TEXT_MODEL, "prompt": "猫"}
REASON = {"reason": "投诉"}
CAPS_HOLD = importlib.util.find_spec("app.accounts.keys") is not None
"""Whether this gateway counts what a key spends."""

NOBODY, OWNER, OTHER, ADMIN = "nobody", "the user", "another user", "admin"
NO_SCOPE, OVER_CAP = "key without the scope", "key over its cap"
BANNED, EXPIRED = "banned", "expired"
COLUMNS = (NOBODY, OWNER, OTHER, NO_SCOPE, OVER_CAP, BANNED, EXPIRED, ADMIN)
CALLED = (NOBODY, BANNED, EXPIRED, NO_SCOPE, OTHER, ADMIN, OVER_CAP, OWNER)
"""The order of the calls. Its owner may change or delete the thing, so the owner comes last."""

PUBLIC, GUEST, TOKEN, ADMINS = "everybody", "log-in", "own log-in", "admins"
TASKS, POINTS, ANY = "tasks", "points", "every credential"
REDEEM = "own log-in, older keys"
"""No scope of a new key redeems a code. A key of before with the word `points` does."""
LET_IN, SAME = 0, -1
"""LET_IN: the credential is good; what the request then answers is another matter. SAME: one answer for all callers."""


@dataclass(frozen=True)
class Row:
    """Who may call a route, and a request that shows it.

    `status` is the answer to a caller who is let in. `is_owned`: the path names a thing of one user. `charges`: the
    request costs points. `streams`: the answer has no end, so only refusals are called.
    """

    audience: str
    body: dict[str, Any] | None = None
    status: int = 200
    is_owned: bool = False
    charges: bool = False
    streams: bool = False
    files: bool = False

    def answer(self, caller: str) -> int:
        """The expected status of this caller's request."""
        if self.audience in {PUBLIC, GUEST}:
            return self.status if self.audience == PUBLIC else SAME
        if caller in {NOBODY, BANNED, EXPIRED}:
            return 401
        if self.audience == ADMINS:
            return self.status if caller == ADMIN else 403
        if (caller == NO_SCOPE and self.audience != ANY) or (caller == OVER_CAP and self.audience in {TOKEN, REDEEM}):
            return 403
        if caller == OVER_CAP and self.charges:
            return 402
        return 404 if self.is_owned and caller in {OTHER, ADMIN} else self.status


def mine(audience: str, **options: Any) -> Row:
    return Row(audience, is_owned=True, **options)


ROWS: dict[str, Row] = {
    # tasks
    "POST /user/ai/tasks/submit": Row(TASKS, SUBMIT, charges=True),
    "POST /user/ai/tasks/quote": Row(TASKS, SUBMIT),
    "GET /user/ai/tasks/list": Row(TASKS),
    "GET /user/ai/tasks/events": Row(TASKS, streams=True),
    "GET /user/ai/tasks/{task_no}": mine(TASKS),
    "DELETE /user/ai/tasks/{task_no}": mine(TASKS, status=LET_IN),
    "POST /user/ai/tasks/{task_no}/cancel": mine(TASKS),
    "GET /user/ai/tasks/{task_no}/points": mine(POINTS),
    "GET /user/ai/models": Row(TASKS),
    "POST /user/ai/tasks/ws-ticket": Row(TASKS),
    "POST /user/files/upload": Row(TASKS, files=True),
    # webhooks
    "GET /user/webhooks/secret": Row(TASKS),
    "POST /user/webhooks/secret/rotate": Row(TASKS),
    "GET /user/webhooks/endpoints": Row(TASKS),
    "POST /user/webhooks/endpoints": Row(TASKS, {"url": HOOK}),
    "POST /user/webhooks/endpoints/{endpoint_id}": mine(TASKS, body={"enabled": True}),
    "POST /user/webhooks/endpoints/{endpoint_id}/rotate": mine(TASKS),
    "POST /user/webhooks/endpoints/{endpoint_id}/delete": mine(TASKS),
    "GET /user/webhooks/deliveries": Row(TASKS),
    "POST /user/webhooks/deliveries/{delivery_id}/replay": mine(TASKS, status=LET_IN),
    "POST /user/webhooks/test": Row(TASKS, {}, status=400),
    # points
    "GET /user/points/consumption/balance": Row(POINTS),
    "GET /user/points/consumption/records": Row(POINTS),
    "POST /user/points/redeem": Row(REDEEM, {"code": "XXXX-XXXX"}, status=400),
    "GET /user/usage": Row(POINTS),
    # the account
    "POST /user/auth/register": Row(GUEST, {}),
    "POST /user/auth/login": Row(GUEST, {}),
    "POST /user/auth/refresh": Row(GUEST, {}),
    "POST /user/auth/logout": Row(GUEST, {}),
    "POST /user/auth/logout-all": Row(TOKEN, status=LET_IN),
    "POST /user/auth/password": Row(TOKEN, {}, status=LET_IN),
    "POST /user/auth/totp/enrol": Row(TOKEN, {}, status=LET_IN),
    "POST /user/auth/totp/confirm": Row(TOKEN, {}, status=LET_IN),
    "POST /user/auth/totp/disable": Row(TOKEN, {}, status=LET_IN),
    "GET /user/info": Row(ANY),
    "POST /user/erase": Row(TOKEN, {"confirm": "ERASE"}),
    "GET /user/keys": Row(TOKEN),
    "POST /user/keys": Row(TOKEN, {}, status=LET_IN),
    "GET /user/keys/{key_id}": mine(TOKEN),
    "POST /user/keys/{key_id}": mine(TOKEN, body={"name": "新名称"}),
    "POST /user/keys/{key_id}/rotate": mine(TOKEN, body={}),
    "POST /user/keys/{key_id}/revoke": mine(TOKEN),
    # admins
    "POST /admin/points/grants": Row(ADMINS, {"userId": 1, "points": 1, "ref": "r"}, status=LET_IN),
    "GET /admin/points/ledger": Row(ADMINS),
    "POST /admin/points/codes": Row(ADMINS, {}, status=LET_IN),
    "GET /admin/points/codes/batches": Row(ADMINS),
    "GET /admin/points/codes/export": Row(ADMINS, status=LET_IN),
    "POST /admin/points/codes/void": Row(ADMINS, {}, status=LET_IN),
    "GET /admin/points/audit": Row(ADMINS),
    "POST /admin/points/audit": Row(ADMINS, status=LET_IN),
    "GET /admin/actions": Row(ADMINS),
    "GET /admin/users": Row(ADMINS),
    "POST /admin/users": Row(ADMINS, {}, status=LET_IN),
    "GET /admin/users/{user_id}": Row(ADMINS),
    "GET /admin/users/{user_id}/records": Row(ADMINS),
    "GET /admin/users/{user_id}/tasks": Row(ADMINS),
    "POST /admin/users/{user_id}/ban": Row(ADMINS, REASON, status=LET_IN),
    "POST /admin/users/{user_id}/unban": Row(ADMINS, REASON, status=LET_IN),
    "POST /admin/users/{user_id}/role": Row(ADMINS, {}, status=LET_IN),
    "POST /admin/users/{user_id}/adjust": Row(ADMINS, {}, status=LET_IN),
    "GET /admin/models": Row(ADMINS),
    "POST /admin/models": Row(ADMINS, {}, status=LET_IN),
    "GET /admin/models/diff": Row(ADMINS),
    "POST /admin/models/{model_name}": Row(ADMINS, {}, status=LET_IN),
    "POST /admin/models/{model_name}/disable": Row(ADMINS, {}, status=LET_IN),
    "POST /admin/models/{model_name}/quote": Row(ADMINS, {}, status=LET_IN),
    "GET /admin/models/{model_name}/history": Row(ADMINS),
    "GET /admin/tasks": Row(ADMINS),
    "GET /admin/tasks/{task_no}": Row(ADMINS),
    "POST /admin/tasks/{task_no}/end": Row(ADMINS, REASON),
    "POST /admin/tasks/{task_no}/rehost": Row(ADMINS, REASON, status=409),
    "POST /admin/tasks/{task_no}/close-orphan": Row(ADMINS, REASON, status=409),
    "GET /admin/upstreams": Row(ADMINS),
    "GET /admin/upstreams/bill": Row(ADMINS),
    "GET /admin/statistics": Row(ADMINS),
    "GET /admin/overview": Row(ADMINS),
    # without a credential
    "GET /healthz": Row(PUBLIC),
    "GET /readyz": Row(PUBLIC),
    "GET /files/{key}": Row(PUBLIC),
}
NOT_IN_THE_DOCUMENT = {"GET /user/ai/tasks/events"}


def documented(runtime: Runtime) -> dict[str, Row]:
    """The rows of the routes that exist, in the order of the table. Fails for a route without a row."""
    paths = create_app(runtime.settings, runtime).openapi()["paths"]
    routes = {f"{method.upper()} {path}" for path, item in paths.items() for method in item} | NOT_IN_THE_DOCUMENT
    assert sorted(routes - ROWS.keys()) == [], "a route without a row: add one to ROWS"
    return {route: row for route, row in ROWS.items() if route in routes}


@dataclass
class Scene:
    """The callers of one row, each with all credentials that must have the same answer, and the things of the user."""

    callers: dict[str, list[dict[str, str]]]
    owner: User
    things: dict[str, str] = field(default_factory=dict)


async def make_scene(make: Maker, runtime: Runtime, route: str, row: Row) -> Scene:
    owner, other = await make.user(points=1000), await make.user(points=1000)
    admin, banned = await make.user(points=1000, admin=True), await make.user(points=1000)
    await set_status(runtime.database, COMMAND_LINE, banned.id, "banned")
    wrong = ("points",) if row.audience == TASKS else ("tasks",)
    past = datetime.now(UTC) - timedelta(hours=1)
    no_scope = await create_key(runtime.database, admin.id if row.audience == ADMINS else owner.id, scopes=wrong)
    expired_key = await create_key(runtime.database, owner.id, expires_at=past)
    scene = Scene(
        {
            NOBODY: [{}, {"Authorization": "Bearer sk-unknown"}, {"Authorization": "Bearer x.y.z"}],
            OWNER: [owner.headers],
            OTHER: [other.headers],
            ADMIN: [admin.headers],
            BANNED: [banned.headers, banned.key_headers],
            EXPIRED: [
                {"Authorization": f"Bearer {sign_token(runtime.settings, owner.id, hours=-1)}"},
                {"X-API-Key": expired_key},
            ],
            NO_SCOPE: [{"X-API-Key": no_scope}],
            OVER_CAP: [{"X-API-Key": await capped_key(runtime, owner.id)}],
        },
        owner,
    )
    for name in re.findall(r"\{(\w+)\}", route):
        scene.things[name] = await make_thing(make, runtime, owner, name)
    return scene


async def capped_key(runtime: Runtime, user_id: int) -> str:
    """A key that may spend nothing."""
    api_key = await create_key(runtime.database, user_id, name="capped")
    this = (api_keys.c.user_id == user_id) & (api_keys.c.name == "capped")
    async with runtime.database.begin() as connection:
        budget_id = await connection.scalar(select(api_keys.c.budget_id).where(this))
        if budget_id is None:
            made = await connection.execute(insert(key_budgets).values(user_id=user_id, updated_at=utc_now()))
            assert made.inserted_primary_key is not None
            budget_id = made.inserted_primary_key[0]
        await connection.execute(update(key_budgets).where(key_budgets.c.id == budget_id).values(total_cap=0))
        await connection.execute(update(api_keys).where(this).values(budget_id=budget_id))
    return api_key


async def make_thing(make: Maker, runtime: Runtime, owner: User, name: str) -> str:
    """What a parameter of a path names: a thing of the user, or something that everybody has."""
    match name:
        case "task_no":
            return await make.task_no(owner)
        case "endpoint_id":
            made = await make.api.post("/user/webhooks/endpoints", json={"url": HOOK}, headers=owner.headers)
            return str(data(made)["id"])
        case "delivery_id":
            task_no = await make.task_no(owner, callbackUrl=HOOK)
            data(await make.api.post(f"/user/ai/tasks/{task_no}/cancel", headers=owner.headers))
            listed = data(await make.api.get("/user/webhooks/deliveries", headers=owner.headers))
            return str(listed["records"][0]["id"])
        case "key_id":
            async with runtime.database.read() as connection:
                query = select(api_keys.c.id).where(api_keys.c.user_id == owner.id).order_by(api_keys.c.id)
                return str((await connection.scalars(query)).first())
        case "user_id":
            return str((await make.user()).id)  # not that of a caller: some requests ban the user
        case "model_name":
            return "sc_soraimg_text_2x3"
        case "key":
            await runtime.store.put("results/a.jpg", b"a picture", "image/jpeg")
            return "results/a.jpg"
    raise AssertionError(f"what is a {name}? Add it to make_thing")


async def call(api: httpx.AsyncClient, route: str, row: Row, things: dict[str, str], headers: Any) -> httpx.Response:
    method, _, path = route.partition(" ")
    sent: dict[str, Any] = {} if row.body is None else {"json": row.body}
    if row.files:
        picture = BytesIO()
        Image.new("RGB", (64, 64)).save(picture, "PNG")
        sent = {"files": {"file": ("a.png", picture.getvalue(), "image/png")}}
    return await api.request(method, path.format(**things), headers=headers, **sent)


def expectations(row: Row) -> Iterator[tuple[str, int]]:
    for caller in CALLED:
        status = row.answer(caller)
        if status == 402 and not CAPS_HOLD:
            status = row.status
        if not (row.streams and status == row.status):
            yield caller, status


@pytest.mark.settings(max_tasks_in_flight=10**6)
async def test_each_route_answers_each_caller_as_the_table_says(
    make: Maker, runtime: Runtime, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in rate_limits.FIXED_RATES:
        monkeypatch.setitem(rate_limits.FIXED_RATES, limit, rate_limits.Rate(10**6, rate_limits.HOUR))
    wrong = []
    for route, row in documented(runtime).items():
        scene = await make_scene(make, runtime, route, row)
        for caller, expected in expectations(row):
            if row.is_owned and caller in {OVER_CAP, OWNER}:  # an earlier caller may have deleted it
                scene.things = {name: await make_thing(make, runtime, scene.owner, name) for name in scene.things}
            for headers in scene.callers[caller]:
                answer = await call(api, route, row, scene.things, headers)
                if not fits(answer.status_code, expected):
                    wrong.append(f"{route}, {caller}: {answer.status_code} in place of {expected}: {answer.text[:200]}")
                if expected == 404:
                    await check_same_as_unknown(api, route, row, scene, headers, answer)
    assert wrong == []


def fits(status: int, expected: int) -> bool:
    if expected == LET_IN:
        return status not in {401, 403} and status < 500
    return status == expected or (expected == SAME and status < 500)


async def check_same_as_unknown(
    api: httpx.AsyncClient, route: str, row: Row, scene: Scene, headers: dict[str, str], answer: httpx.Response
) -> None:
    """A thing of another user and a thing that nobody has: the same answer, but for the request id."""
    unknown = {
        name: "TASK-20251026153045123-4567" if name == "task_no" else "4503599627370496" for name in scene.things
    }
    assert refusal(answer) == refusal(await call(api, route, row, unknown, headers)), route


@pytest.mark.settings(max_tasks_in_flight=10**6)
async def test_a_log_in_does_not_look_at_the_credential(
    make: Maker, runtime: Runtime, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in rate_limits.FIXED_RATES:
        monkeypatch.setitem(rate_limits.FIXED_RATES, limit, rate_limits.Rate(10**6, rate_limits.HOUR))
    for route, row in documented(runtime).items():
        if row.audience == GUEST:
            scene = await make_scene(make, runtime, route, row)
            answers = [await call(api, route, row, {}, one[0]) for one in scene.callers.values()]
            assert len({without_request_id(answer) for answer in answers}) == 1, route


def without_request_id(answer: httpx.Response) -> tuple[int, str]:
    body = {name: value for name, value in answer.json().items() if name != "requestId"}
    return answer.status_code, repr(body)


async def test_the_page_is_the_table(runtime: Runtime) -> None:
    expected = write_page(documented(runtime))
    if os.environ.get("WRITE_AUTHORIZATION"):
        PAGE.write_text(expected, "utf-8")
    assert PAGE.read_text("utf-8") == expected, "run with WRITE_AUTHORIZATION=1"


def write_page(rows: dict[str, Row]) -> str:
    lines = [
        "# Authorization",
        "",
        "Who may call which route, and what others get. `tests/api/test_authorization.py` sends every request of this"
        " table, and writes this page.",
        "",
        "- **✓**: let in. What the request then answers depends on the request.",
        "- **401**: no valid credential. **402**: the key may not spend so much. **403**: this caller may never do it.",
        "- **404**: the thing belongs to another user. The answer is that of a thing which does not exist.",
        "- **=**: the credential makes no difference.",
        "- *admin* is an admin by JWT. On a route for users an admin is one more user. An API key of an admin needs the"
        " scope `admin`.",
        "- *banned* and *expired* stand for JWTs and for API keys.",
        "",
        f"| route | for | {' | '.join(COLUMNS)} |",
        f"|{'---|' * (len(COLUMNS) + 2)}",
    ]
    for route, row in rows.items():
        cells = [_cell(row, row.answer(caller)) for caller in COLUMNS]
        lines.append(f"| `{route}` | {row.audience} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(row: Row, status: int) -> str:
    if row.audience in {PUBLIC, GUEST} or status == SAME:
        return "="
    return "✓" if status in {LET_IN, row.status} else str(status)
