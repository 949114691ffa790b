"""docs/operations.md names every log event, metric and readiness word there is, and no other."""

import ast
import re
from pathlib import Path

from app.upstreams.see2ai.account import AccountStatus

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "operations.md").read_text("utf-8")
LEVELS = {"debug", "info", "warning", "error", "exception"}


def named_in(title: str, form: str) -> set[str]:
    """The words in backticks in the first column of the table below this title."""
    section = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    cells = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(form, cell)}


def logged() -> set[str]:
    calls = [
        node
        for folder in ("app", "worker")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS
    ]
    owned = [call for call in calls if isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) == "log"]
    return {str(call.args[0].value) for call in owned if isinstance(call.args[0], ast.Constant)}


def test_every_log_line_is_explained_and_no_other() -> None:
    assert named_in("Log lines", r"`(\w+)`") == logged()


def test_every_metric_is_explained_and_no_other() -> None:
    metrics = set(re.findall(r'"(gateway_\w+)"', (ROOT / "app" / "telemetry" / "metrics.py").read_text("utf-8")))
    assert named_in("Metrics", r"`(gateway_\w+)[{`]") == metrics


def test_every_readiness_word_of_see2ai_is_explained_and_no_other() -> None:
    words = {str(status) for status in AccountStatus} | {"no key", "no answer yet"}
    assert named_in("Readiness", r"^\| `([^`]+)`") == words
