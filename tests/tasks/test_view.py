"""A new field of the task answer is edited in three places: the view, and the types of both clients."""

import importlib.util
import re
from pathlib import Path

from app.main import create_app
from app.settings import Settings
from app.tasks.view import ResultView, TaskView

CLIENTS = Path(__file__).parents[2] / "clients"
DECLARATIONS = (CLIENTS / "js" / "gateway.d.ts").read_text("utf-8")


def python_fields(name: str) -> set[str]:
    spec = importlib.util.spec_from_file_location("shapes", CLIENTS / "python" / "gateway_client" / "shapes.py")
    assert spec
    assert spec.loader
    shapes = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(shapes)
    return set(getattr(shapes, name).__annotations__)


def javascript_fields(interface: str) -> set[str]:
    body = re.search(rf"interface {interface} (?:extends \w+ )?{{(.*?)^}}", DECLARATIONS, re.DOTALL | re.MULTILINE)
    assert body, interface
    return set(re.findall(r"^  (\w+)\??:", body[1], re.MULTILINE))


def test_the_clients_know_every_field_of_a_task() -> None:
    fields = set(TaskView.__annotations__)
    assert python_fields("Task") == fields
    assert javascript_fields("Task") == fields
    assert python_fields("SubmittedTask") == fields | {"balance"}


def test_the_clients_know_every_field_of_a_result() -> None:
    assert python_fields("Result") == javascript_fields("Result") == set(ResultView.__annotations__)


def test_every_route_that_answers_with_a_task_uses_the_view() -> None:
    schemas = create_app(Settings(_env_file=None)).openapi()["components"]["schemas"]
    assert set(schemas["TaskView"]["properties"]) == set(TaskView.__annotations__)
    assert set(schemas["SubmitResponse"]["properties"]) == {*TaskView.__annotations__, "balance"}
