"""Every page of docs/decisions has its sections and its line in the index, and every link between documents works."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "decisions"
PAGES = sorted(FOLDER.glob("[0-9]*.md"))
INDEX = re.findall(r"^- \[(\d{4})\]\(([^)]+)\): (.+)$", (FOLDER / "README.md").read_text("utf-8"), re.MULTILINE)
SECTIONS = ["Context", "Decision", "Alternatives", "Consequences"]
STATUS = re.compile(r"^Status: (accepted|superseded by \d{4})$", re.MULTILINE)
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("clients/*/*.md")])
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)")


def test_the_index_lists_every_page_by_its_number_and_title() -> None:
    titles = [page.read_text("utf-8").partition("\n")[0] for page in PAGES]
    assert [(f"# {number}: {title}", name) for number, name, title in INDEX] == [
        (title, page.name) for title, page in zip(titles, PAGES, strict=True)
    ]
    assert [int(number) for number, _, _ in INDEX] == list(range(1, len(PAGES) + 1))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_a_status_and_the_four_sections(page: Path) -> None:
    text = page.read_text("utf-8")
    assert STATUS.search(text)
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SECTIONS


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_relative_link_of_a_document_has_its_file(document: Path) -> None:
    targets = [document.parent / target for target in LINK.findall(document.read_text("utf-8"))]
    assert [target for target in targets if not target.exists()] == []
