"""docs/configuration.md explains every setting with its default, and no other."""

import re
from pathlib import Path

import pytest

from app.settings import Settings

PAGE = (Path(__file__).parents[1] / "docs" / "configuration.md").read_text("utf-8")
ROWS = re.findall(r"^\| `([A-Z0-9_]+)` \| (?:`([^`]*)` )?\| (.+) \|$", PAGE, re.MULTILINE)


def test_it_names_every_setting_once_and_no_other() -> None:
    assert sorted(name for name, *_ in ROWS) == sorted(name.upper() for name in Settings.model_fields)


@pytest.mark.parametrize(("name", "value", "meaning"), ROWS, ids=[name for name, *_ in ROWS])
def test_it_shows_the_default_and_a_meaning(name: str, value: str, meaning: str) -> None:
    default = Settings.model_fields[name.lower()].default
    assert value == (str(default).lower() if isinstance(default, bool) else str(default))
    assert meaning.strip()
