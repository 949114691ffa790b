"""docs/guide.zh-CN.md has every error by its code, and the texts of one code that need different reactions."""

import re
from pathlib import Path

from app.errors import ActionConflict, GatewayError, GrantConflict, TaskFailure, Unavailable
from app.upstreams.breaker import UNAVAILABLE_TEXT

GUIDE = (Path(__file__).parents[1] / "docs" / "guide.zh-CN.md").read_text("utf-8")
ERRORS = re.findall(r"^\| (\d{3}) \| `([A-Z_]+)` \| (.+?) \| (.+?) \|$", GUIDE, re.MULTILINE)
FAILURES = re.findall(r"^\| `([A-Z_]+)` \| (.+?) \| .+ \|$", GUIDE, re.MULTILINE)


def kinds(of: type[GatewayError] = GatewayError) -> set[type[GatewayError]]:
    return {of}.union(*(kinds(one) for one in of.__subclasses__()))


def test_every_error_has_its_row_and_every_row_its_error() -> None:
    payload = {
        (str(kind.status), kind.error_code) for kind in kinds() - {ActionConflict, GrantConflict}
    }  # only for admins
    assert {(status, code) for status, code, *_ in ERRORS} == payload


def test_the_503_of_an_outage_has_its_own_row() -> None:
    """The text of the error, and what to do: nothing was deducted, and `Retry-After` says when to try again."""
    rows = [(what, do) for status, _, what, do in ERRORS if status == "503"]
    assert [text for text in (Unavailable.text, UNAVAILABLE_TEXT) for what, _ in rows if f"`{text}`" in what] == [
        Unavailable.text,
        UNAVAILABLE_TEXT,
    ]
    what, do = next(row for row in rows if f"`{UNAVAILABLE_TEXT}`" in row[0])
    assert "没有扣费" in what
    assert "Retry-After" in do


def test_every_end_of_a_task_has_its_row_with_its_text() -> None:
    assert {name: text for name, text in FAILURES if name in TaskFailure.__members__} == {
        failure.name: failure.value for failure in TaskFailure
    }
