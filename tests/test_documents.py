"""The README is short, and every file and section that a document names exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
MAX_README_WORDS = 900
DOCUMENTS = sorted(
    path for where in ("*.md", "docs/**/*.md", "bench/*.md", "clients/*/*.md") for path in ROOT.glob(where)
)
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)\s]*)\)")
PATH = re.compile(r"`((?:app|worker|migrations|tests|bench|clients|docs)/[\w./-]*)")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def anchors_of(document: Path) -> set[str]:
    """GitHub's anchors of the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", document.read_text("utf-8")), re.MULTILINE)
    texts = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-") for text in texts}


def test_the_readme_fits_on_two_screens() -> None:
    assert len(README.read_text("utf-8").split()) <= MAX_README_WORDS


def test_the_readme_links_every_document() -> None:
    linked = {target.partition("#")[0] for target in LINK.findall(README.read_text("utf-8"))}
    assert {name_of(path) for path in ROOT.glob("docs/*.md")} <= linked


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_link_has_its_file_and_section(document: Path) -> None:
    for target in LINK.findall(document.read_text("utf-8")):
        path, _, anchor = target.partition("#")
        file = (document.parent / path) if path else document
        assert file.exists(), target
        assert not anchor or anchor in anchors_of(file), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_file_that_is_named_exists(document: Path) -> None:
    for path in PATH.findall(document.read_text("utf-8")):
        assert (ROOT / path).exists(), path
