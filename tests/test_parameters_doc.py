"""docs/parameters.md names every property of the four Input Schemas, and tests that exist."""

import json
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PAGE = (HERE.parent / "docs" / "parameters.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"^## .*?: `(\w+)`\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
SEEDS = {
    "see2ai_image_generation_fast_v1": "fast_image",
    "see2ai_image_uniworld_v2": "uniworld",
    "see2ai_video_generation_v1": "video",
    "see2ai_image_normalize_v1": "normalize",
}


@pytest.mark.parametrize("action", SEEDS)
def test_the_table_has_every_property_and_no_other(action: str) -> None:
    schema = json.loads((HERE / "seeds" / f"{SEEDS[action]}_input.json").read_text("utf-8"))
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| `(.+?)` \|$", SECTIONS[action], re.MULTILINE)
    assert sorted(name for name, *_ in rows) == sorted(schema["properties"])
    assert all(how.strip() for _, how, _ in rows)


def test_every_test_it_names_is_there() -> None:
    named = set(re.findall(r"`tests/([\w/]+\.py)::(\w+)`", PAGE))
    assert len(named) > 10
    for path, test in named:
        assert f"def {test}(" in (HERE / path).read_text("utf-8"), (path, test)
