"""The OpenAPI document is complete: a code generator and a reader find for each route what they need."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from app.main import create_app
from app.runtime import Runtime
from tests.support.responses import CHINESE

pytestmark = [pytest.mark.anyio, pytest.mark.worlds("embedded")]
CREDENTIAL_ERRORS = {"401", "403"}
ERRORS = {"400", "404", "429", "500", "503"}


def operations(runtime: Runtime) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Each route by its name, with its operation and the whole document."""
    document = create_app(runtime.settings, runtime).openapi()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation, document


def resolve(schema: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    return dict(document["components"]["schemas"][name]) if name else schema


async def test_each_route_has_a_tag_a_chinese_summary_and_an_id_of_its_own(runtime: Runtime) -> None:
    ids = []
    for route, operation, _ in operations(runtime):
        assert operation.get("tags"), route
        assert CHINESE.search(operation.get("summary", "")), route
        ids.append(operation["operationId"])
    assert len(ids) == len(set(ids))


async def test_each_body_has_an_example_that_its_schema_knows(runtime: Runtime) -> None:
    bodies = 0
    for route, operation, document in operations(runtime):
        content = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if content is not None:
            schema = resolve(content["schema"], document)
            fields = schema["properties"]
            has_own = bool(schema.get("required")) and all("examples" in fields[name] for name in schema["required"])
            assert has_own or schema.get("examples"), f"{route}: neither its body nor its fields have an example"
            for example in schema.get("examples", ()):
                assert set(schema.get("required", ())) <= set(example) <= set(fields), route
            bodies += 1
    assert bodies > 8


async def test_each_route_tells_its_errors(runtime: Runtime) -> None:
    for route, operation, document in operations(runtime):
        responses = operation["responses"]
        assert responses.keys() >= ERRORS | CREDENTIAL_ERRORS, route
        for status, answer in responses.items():
            if status in ERRORS | CREDENTIAL_ERRORS:
                schema = resolve(answer["content"]["application/json"]["schema"], document)
                assert schema["properties"].keys() >= {"code", "message", "errorCode", "requestId"}, (route, status)


async def test_each_success_has_a_schema_with_named_types(runtime: Runtime) -> None:
    """No answer is `any`: a generated client would have no fields."""
    for route, operation, document in operations(runtime):
        if route.startswith("GET /files/"):
            continue
        content = operation["responses"]["200"]["content"]
        if content.keys() == {"text/csv"}:
            assert content["text/csv"]["schema"] == {"type": "string"}, route
            continue
        schema = resolve(content["application/json"]["schema"], document)
        assert schema["properties"].keys() >= {"code", "message", "data"}, route
        assert schema["properties"]["data"] != {}, route


async def test_each_parameter_is_bounded(runtime: Runtime) -> None:
    """A text in a query has a greatest length, and a number its bounds."""
    for route, operation, _ in operations(runtime):
        for parameter in operation.get("parameters", ()):
            if parameter["in"] == "query":
                for schema in variants(parameter["schema"]):
                    assert is_bounded(schema), f"{route}: {parameter['name']} {schema}"


def variants(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for one in schema.get("anyOf", [schema]):
        yield from variants(one) if "anyOf" in one else [one]


def is_bounded(schema: dict[str, Any]) -> bool:
    if "enum" in schema or "const" in schema:
        return True
    match schema.get("type"):
        case "string":
            return "maxLength" in schema
        case "integer" | "number":
            return {"minimum", "maximum"} <= schema.keys()
        case "boolean" | "null":
            return True
    return False


async def test_no_name_is_in_two_spellings(runtime: Runtime) -> None:
    """Fields and parameters are in camelCase. Only what stands in the path is not."""
    for route, operation, document in operations(runtime):
        names = [one["name"] for one in operation.get("parameters", ()) if one["in"] == "query"]
        for content in operation.get("requestBody", {}).get("content", {}).values():
            names += resolve(content["schema"], document).get("properties", {})
        assert [name for name in names if not re.fullmatch(r"[a-z][a-zA-Z0-9]*", name)] == [], route
