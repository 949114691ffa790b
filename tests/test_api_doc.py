"""docs/api.md lists every route; the webhooks have a page of their own."""

import re
from pathlib import Path

import pytest

from app.main import create_app
from tests.support.makers import Maker

PAGE = (Path(__file__).parents[1] / "docs" / "api.md").read_text("utf-8")
WITHOUT_SCHEMA = {("GET", "/user/ai/tasks/events"), ("WS", "/user/ai/tasks/ws")}


@pytest.mark.worlds("embedded")
@pytest.mark.anyio
async def test_every_route_has_its_row_and_every_row_its_route(make: Maker) -> None:
    paths = create_app(make.runtime.settings, make.runtime).openapi()["paths"]
    routes = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    listed = re.findall(r"^\| `([A-Z]+) (/\S+)` \|", PAGE, re.MULTILINE)
    assert len(listed) == len(set(listed))
    wanted = {(method, re.sub(r"\{\w+\}", "{}", path)) for method, path in routes | WITHOUT_SCHEMA}
    wanted = {one for one in wanted if not one[1].startswith("/user/webhooks/")}
    assert {(method, re.sub(r"\{\w+\}", "{}", path)) for method, path in listed} == wanted
