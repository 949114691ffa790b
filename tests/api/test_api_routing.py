"""Routes that FastAPI documents and does not call: which they are, how they are found, and what they answer."""

import json
from collections.abc import Iterable
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, BackgroundTasks, Cookie, Depends, FastAPI, Query
from fastapi.routing import APIRoute, iter_route_contexts
from pydantic import BaseModel
from sqlalchemy import update
from starlette.routing import Match

from app.api.access import callers
from app.api.access.callers import Access, PublicRuntime, RequestContext
from app.api.access.guests import Guest, GuestContext
from app.api.routes import tasks as task_routes
from app.api.routing import DirectRoute, DirectRouting
from app.api.schemas import Envelope
from app.main import ROUTES, create_app
from app.runtime import Runtime
from app.tables import tasks
from tests.support.makers import Maker
from tests.support.responses import BALANCE, LIST, MODELS, SUBMIT, data, refusal

pytestmark = [pytest.mark.anyio, pytest.mark.worlds("embedded")]
SEGMENTS = (
    "TASK-1",
    "7",
    "submit",
    "quote",
    "list",
    "events",
    "ws",
    "ws-ticket",
    "models",
    "secret",
    "test",
    "a b",
    "猫",
)
PARAMETERS = ("{task_no}", "{endpoint_id}", "{delivery_id}", "{key:path}")
RESULTS = [
    {
        "key": "results/a.jpg",
        "thumbnailKey": "results/b.jpg",
        "type": "image/jpeg",
        "bytes": 9,
        "width": 1,
        "height": 2,
    },
    {"key": "results/c.mp4", "type": "video/mp4", "bytes": 9, "width": 1, "height": 2, "durationSeconds": 5.0},
]


def direct_routes() -> list[DirectRoute]:
    return [route for module in ROUTES for route in module.router.routes if isinstance(route, DirectRoute)]


def test_every_route_with_an_access_is_direct() -> None:
    """Any other would read its body before it knows the caller, and would be slow."""
    for module in ROUTES:
        for route in module.router.routes:
            if isinstance(route, APIRoute):
                has_access = any(isinstance(one.call, Access | Guest) for one in route.dependant.dependencies)
                assert isinstance(route, DirectRoute) is has_access, route.path
    assert len(direct_routes()) > 20


def test_the_table_finds_what_fastapi_would_find(runtime: Runtime) -> None:
    app = create_app(runtime.settings, runtime)
    table = DirectRouting(app, direct_routes())
    contexts = [one for one in iter_route_contexts(app.routes) if isinstance(one.original_route, APIRoute)]
    found = set()
    for path in sample_paths(str(one.path) for one in contexts):
        for method in ("GET", "POST", "HEAD", "PUT", "DELETE"):
            scope = {"type": "http", "method": method, "path": path, "root_path": "", "headers": []}
            matches = ((one.original_route, *one.matches(scope)) for one in contexts)
            expected = next(((route, child["path_params"]) for route, how, child in matches if how is Match.FULL), None)
            known = table.find(method, path)
            if known is not None:
                assert expected is not None, (method, path)
                assert (known[0].endpoint, known[1]) == (expected[0].endpoint, expected[1]), (method, path)
                found.add(known[0].endpoint)
    hot = {task_routes.submit, task_routes.get, task_routes.list_}
    assert hot <= found
    assert {route.endpoint for route in direct_routes() if "}/" not in route.path} == found


def sample_paths(known: Iterable[str]) -> set[str]:
    paths = set()
    for path in known:
        for segment in SEGMENTS:
            replaced = path
            for parameter in PARAMETERS:
                replaced = replaced.replace(parameter, segment)
            paths |= {replaced, f"{replaced}/", f"{replaced}/{segment}", replaced.rpartition("/")[0] or "/"}
    return paths


@pytest.mark.usefixtures("working")
async def test_an_answer_is_what_its_documented_model_encodes(make: Maker, runtime: Runtime) -> None:
    """No model validates an envelope before it is sent, so FastAPI's own model reads it here and encodes it again."""
    user = await make.user(points=1000)
    ended = await make.task_no(user, prompt="一只猫，在看月亮" * 5)
    assert (await make.ended(user, ended))["status"] == "completed"
    async with runtime.database.begin() as connection:
        values = {"results": RESULTS, "params": {"seed": 1.5, "more": [None]}}
        await connection.execute(update(tasks).where(tasks.c.task_no == ended).values(**values))
    body = {"modelName": "sc_soraimg_text_1x1", "prompt": "猫", "callbackUrl": "https://receiver.example.com/hook"}
    calls: list[tuple[str, str, Any]] = [
        ("POST", SUBMIT, body),
        ("POST", "/user/ai/tasks/quote", body),
        ("POST", "/user/ai/tasks/ws-ticket", None),
        ("POST", "/user/webhooks/endpoints", {"url": "https://receiver.example.com/hook"}),
        ("POST", "/user/webhooks/secret/rotate", None),
        ("GET", "/user/webhooks/secret", None),
        ("GET", "/user/webhooks/endpoints", None),
        ("GET", "/user/webhooks/deliveries", None),
        ("GET", f"/user/ai/tasks/{ended}", None),
        ("GET", LIST, None),
        ("GET", BALANCE, None),
        ("GET", "/user/points/consumption/records", None),
        ("GET", MODELS, None),
    ]
    table = DirectRouting(FastAPI(), direct_routes())
    for method, path, sent in calls:
        answer = await make.api.request(method, path, json=sent, headers=user.headers)
        assert data(answer) is not None, path
        found = table.find(method, path)
        assert found is not None
        model = found[0].response_field
        assert model is not None
        value, errors = model.validate(json.loads(answer.content))
        assert errors == [], path
        assert model.serialize_json(value) == answer.content, path


async def test_a_caller_is_authenticated_once_for_each_request(
    make: Maker, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await make.user(points=100)
    authenticated: list[str] = []
    authenticate = callers.authenticate

    async def recorded(runtime: Runtime, credential: str) -> Any:
        authenticated.append(credential)
        return await authenticate(runtime, credential)

    monkeypatch.setattr(callers, "authenticate", recorded)
    for method, path, body in (("GET", BALANCE, None), ("POST", SUBMIT, {"modelName": "none"}), ("GET", LIST, None)):
        authenticated.clear()
        await api.request(method, path, json=body, headers=user.headers)
        assert authenticated == [user.token], path


async def test_the_first_wrong_parameter_is_named(make: Maker, api: httpx.AsyncClient) -> None:
    user = await make.user()
    for query, problem in (
        ("page=0&size=0", "page 不能小于 1"),
        ("size=x&page=0", "page 不能小于 1"),
        ("size=101", "size 不能大于 100"),
        ("size=1&size=101", "size 不能大于 100"),  # the last one counts
        ("page=1.5", "page 须为整数"),
        ("page=", "page 须为整数"),
        ("keyword=%00", "keyword 包含无效字符"),
        ("status=gone", "status 取值无效，可选: 'created', 'queued', 'processing', 'completed', 'failed'"),
    ):
        answer = await api.get(f"{LIST}?{query}", headers=user.headers)
        assert refusal(answer)[:2] == (400, "INVALID_PARAMETER"), query
        assert problem in answer.json()["message"], answer.json()["message"]
    for query in ("size=101&size=1", "status=&taskType=&unknown=1", "page=%31"):
        assert data(await api.get(f"{LIST}?{query}", headers=user.headers))["page"] == 1


async def test_it_answers_below_a_root_path(make: Maker, runtime: Runtime) -> None:
    """`uvicorn --root-path` puts the prefix of a proxy before each path."""
    user = await make.user(points=10)
    app = create_app(runtime.settings, runtime)
    transport = httpx.ASGITransport(app=app, root_path="/gateway")
    client = httpx.AsyncClient(transport=transport, base_url="http://gateway.test/gateway")
    async with app.router.lifespan_context(app), client:
        assert data(await client.get(BALANCE, headers=user.headers))["balance"] == 10
        assert refusal(await client.get(BALANCE))[0] == 401


# ------------------------------------------------------------------ what a direct route cannot be

AnyAccess = Annotated[RequestContext, Depends(Access(scope="tasks:read", limit="read"))]


class Body(BaseModel):
    a: int = 1


async def without_access(body: Body) -> Envelope[None]:
    return Envelope(data=None)


async def with_two_accesses(one: AnyAccess, two: AnyAccess, body: Body) -> Envelope[None]:
    return Envelope(data=None)


async def with_an_access_and_a_guest(
    one: AnyAccess, two: Annotated[GuestContext, Depends(Guest(limit="log-in"))]
) -> Envelope[None]:
    return Envelope(data=None)


async def with_another_dependency(context: AnyAccess, runtime: PublicRuntime) -> Envelope[None]:
    return Envelope(data=None)


async def with_two_bodies(context: AnyAccess, one: Body, two: Body) -> Envelope[None]:
    return Envelope(data=None)


async def with_a_cookie(context: AnyAccess, one: Annotated[str, Cookie()] = "") -> Envelope[None]:
    return Envelope(data=None)


async def with_a_background_task(context: AnyAccess, later: BackgroundTasks) -> Envelope[None]:
    return Envelope(data=None)


async def with_a_list(context: AnyAccess, one: Annotated[list[str], Query()]) -> Envelope[None]:
    return Envelope(data=None)


@pytest.mark.parametrize(
    "endpoint",
    [
        without_access,
        with_two_accesses,
        with_an_access_and_a_guest,
        with_another_dependency,
        with_two_bodies,
        with_a_cookie,
        with_a_background_task,
        with_a_list,
    ],
)
def test_what_it_would_not_read_is_refused_when_it_is_first_used(endpoint: Any) -> None:
    """`test_openapi_document` uses every route of the application."""
    router = APIRouter(route_class=DirectRoute)
    router.get("/x")(endpoint)
    (route,) = router.routes
    with pytest.raises(TypeError, match="DirectRoute"):
        getattr(route, "dependant")  # noqa: B009


async def test_a_required_parameter_is_required(make: Maker, runtime: Runtime, api: httpx.AsyncClient) -> None:
    async def endpoint(context: AnyAccess, size: Annotated[int, Query(alias="pageSize")]) -> Envelope[int]:
        return Envelope(data=size)

    router = APIRouter(route_class=DirectRoute)
    router.get("/sized")(endpoint)
    user = await make.user()
    app = create_app(runtime.settings, runtime)
    app.include_router(router)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gateway.test")
    async with app.router.lifespan_context(app), client:
        missing = await client.get("/sized", headers=user.headers)
        assert refusal(missing) == (400, "INVALID_PARAMETER", "参数错误: pageSize 不能为空")
        assert data(await client.get("/sized?pageSize=7", headers=user.headers)) == 7
