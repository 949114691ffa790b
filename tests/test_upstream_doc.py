"""docs/upstream.md lists the state words that the code knows."""

import re
from pathlib import Path

import pytest

from app.upstreams.see2ai import responses

PAGE = (Path(__file__).parents[1] / "docs" / "upstream.md").read_text("utf-8")
SECTION = PAGE.partition("\n## Words for states\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize(
    ("meaning", "words"),
    [
        ("success", responses.SUCCESS),
        ("failure", responses.FAILURE),
        ("waiting", responses.WAITING),
        ("running", responses.RUNNING),
    ],
)
def test_the_words_of_a_meaning_are_those_of_the_code(meaning: str, words: frozenset[str]) -> None:
    row = re.search(rf"^\| {meaning} \| (.+) \|$", SECTION, re.MULTILINE)
    assert row is not None
    assert set(re.findall(r"`(\w+)`", row[1])) == words
