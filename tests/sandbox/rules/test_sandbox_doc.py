"""docs/sandbox.md: each example in it works, and it names every key, fault and value of the rules."""

import inspect
import re
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from starlette.routing import Match

from app.cli.commands import sandbox as sandbox_command
from app.sandbox import create_sandbox
from app.sandbox.action_names import ACTION_NAMES, FAST_IMAGE
from app.sandbox.error_responses import DETAIL_FORMS
from app.sandbox.request_log import Entry
from app.sandbox.rules.rule import FAULT_PLACES, PLACES, FaultRule, JobRule
from app.sandbox.rules.scenario import FAILURE_STATES, IMAGE_FIELDS, SUCCESS_STATES
from tests.support.sandbox_server import ACTION, KEY, NORMALIZE, Server

DOC = (Path(__file__).parents[3] / "docs" / "sandbox.md").read_text("utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", DOC, re.DOTALL)
SPANS = set(re.findall(r"`([^`\n]+)`", DOC))
DIRECTIVES = sorted(set(re.findall(r"\[\[sandbox: .*?\}\]*\]\]", DOC.replace('\\"', '"'))))


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCKS if kind == language]


def test_the_doc_names_every_key_and_value() -> None:
    rules = set(FaultRule.model_fields) | set(JobRule.model_fields)
    values = {*FAULT_PLACES, *DETAIL_FORMS, *FAILURE_STATES, *SUCCESS_STATES, *IMAGE_FIELDS, *PLACES, "never", "all"}
    fields = set(Entry.__dataclass_fields__) - {"upload", "received_at"}
    assert (rules | values | fields) - SPANS == set()
    assert all(name in DOC for name in ACTION_NAMES)


def test_the_table_of_faults_is_the_one_in_force() -> None:
    table = {}
    (rows,) = re.findall(r"^\| `fault` \| where \| effect \|\n(.*?)\n\n", DOC, re.MULTILINE | re.DOTALL)
    for names, places in re.findall(r"^\| ((?:`[a-z-]+`(?:, )?)+) \| ([a-z, ]+) \|", rows, re.MULTILINE):
        for name in re.findall(r"`([a-z-]+)`", names):
            table[name] = PLACES if places == "all" else frozenset(places.split(", "))
    assert table == FAULT_PLACES


@pytest.mark.parametrize("directive", DIRECTIVES)
def test_a_directive_of_the_doc_is_understood(sandbox: Server, directive: str) -> None:
    answer = sandbox.client.post(f"{ACTION}/async", json={"prompt": f"a cat {directive}", "aspect_ratio": "1:1"})
    assert (answer.status_code == 200) == ('"fail"' not in directive), answer.text
    sandbox.control()
    assert len(sandbox.journal()) == 1


def test_the_doc_has_directives() -> None:
    assert len(DIRECTIVES) == 9


def test_the_url_of_a_normalization_works(sandbox: Server) -> None:
    (url,) = re.findall(r"https://example\.com/a\.jpg\?sandbox=[^`]+", DOC)
    assert unquote(url).endswith('{"fail":503}')
    assert sandbox.post(NORMALIZE, image_url=url).status_code == 503


def test_the_commands_for_control_run(sandbox: Server) -> None:
    (commands,) = [block for block in blocks("bash") if "/control" in block]
    commands = commands.replace("sk-sandbox", KEY).replace("localhost:8091", sandbox.origin)
    commands = commands.replace("curl ", "curl --silent --show-error --fail ")
    done = subprocess.run(["bash", "-ec", commands], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert '"probability":0.3' in done.stdout
    assert sandbox.client.get("/control").json() == []


def test_the_python_example_runs() -> None:
    namespace: dict[str, Any] = {}
    for block in blocks("python"):
        exec(block, namespace)
    assert namespace["app"].title == "SEE2AI sandbox"


def test_the_command_is_one_of_the_gateway() -> None:
    (command,) = [block for block in blocks("bash") if "gateway sandbox" in block]
    options = {option.replace("-", "_") for option in re.findall(r"--([a-z-]+)", command)}
    assert options == {"port", "api_key"}
    assert options <= set(inspect.signature(sandbox_command).parameters)


def test_the_routes_of_the_doc_are_those_of_the_sandbox() -> None:
    section = DOC.partition("## Routes")[2].partition("## The request log")[0]
    cells = re.findall(r"^\| (`[^|]+`) \|", section, re.MULTILINE)
    paths = [span.split()[-1] for cell in cells for span in re.findall(r"`([^`]+)`", cell) if "/" in span]
    assert len(paths) == 12
    routes = create_sandbox(api_key="k").routes
    for path in paths:
        concrete = path.replace("…", "/api/v1/actions").replace("{action}", FAST_IMAGE)
        scope = {"type": "http", "path": concrete, "method": "GET", "headers": [], "root_path": ""}
        assert any(route.matches(scope)[0] != Match.NONE for route in routes), path
