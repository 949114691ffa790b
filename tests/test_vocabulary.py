"""Names are the field's standard terms. This test refuses private words in names, and folders with many files."""

import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("app", "worker", "migrations", "bench", "clients/python", "tests")
CODE = sorted(path for folder in FOLDERS for path in ROOT.glob(f"{folder}/**/*.py"))
INSTEAD = {
    "told": "sent, shown, or the name of the value",
    "untold": "pending",
    "heed": "record",
    "heard": "received",
    "unheard": "lost",
    "looks": "polls, queries",
    "asked": "requested, or the name of the value",
    "chore": "job",
    "chores": "jobs",
    "bell": "wakeup",
    "bells": "wakeups",
    "stepper": "runner",
    "steppers": "runners",
    "courier": "dispatcher",
    "visit": "task",
    "visits": "tasks",
    "verdict": "result",
    "verdicts": "results",
    "purse": "balance",
    "lane": "pool",
    "lanes": "pools",
    "hands": "slots",
    "parked": "waiting",
    "lapse": "expiry",
    "lapsed": "expired",
    "relooked": "refreshed",
    "desk": "context",
    "seats": "limiter",
    "spell": "normalize",
    "film": "video",
    "films": "videos",
    "shelf": "store",
    "wiretap": "proxy",
}
"""Words that a new reader would not search for, and their replacement."""
BOUNDS = {
    "MOST": "MAX",
    "LONGEST": "MAX",
    "LARGEST": "MAX",
    "HIGHEST": "MAX",
    "FARTHEST": "MAX",
    "SLOWEST": "MAX",
    "SHORTEST": "MIN",
    "LEAST": "MIN",
}
"""The same for the names of constants."""
MAX_FILES_IN_A_FOLDER = 8
TOP_LEVEL = {ROOT / "app": 11}  # settings, errors and other modules without a topic


def words_of(name: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def names_in(path: Path) -> Iterator[str]:
    yield path.stem
    for token in tokenize.generate_tokens(io.StringIO(path.read_text("utf-8")).readline):
        if token.type == tokenize.NAME:
            yield token.string


def test_no_name_uses_a_private_word() -> None:
    found: Counter[str] = Counter()
    for path in CODE:
        if path != Path(__file__):
            for name in set(names_in(path)):
                for word in set(words_of(name)) & set(INSTEAD):
                    found[f"{path.relative_to(ROOT)}: {name}: write {INSTEAD[word]}"] += 1
                for word in set(name.split("_")) & set(BOUNDS) if name.isupper() else ():
                    found[f"{path.relative_to(ROOT)}: {name}: write {BOUNDS[word]}"] += 1
    assert sorted(found) == []


def test_a_folder_of_the_application_holds_few_files() -> None:
    folders = {path.parent for folder in ("app", "worker") for path in ROOT.glob(f"{folder}/**/*.py")}
    counts = {folder: len(list(folder.glob("*.py"))) for folder in folders}
    crowded = {str(folder): n for folder, n in counts.items() if n > TOP_LEVEL.get(folder, MAX_FILES_IN_A_FOLDER)}
    assert crowded == {}
