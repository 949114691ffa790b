"""`.env.example` names every setting, with its default and a line about it, and nothing else."""

import os
from pathlib import Path

import pytest

from app.settings import Settings

EXAMPLE = Path(__file__).parents[1] / ".env.example"
LINES = EXAMPLE.read_text("utf-8").splitlines()
ASSIGNED = [line.partition("=")[::2] for line in LINES if line and not line.startswith("#")]


def test_it_names_every_setting_once_and_no_other() -> None:
    assert sorted(name for name, _ in ASSIGNED) == sorted(name.upper() for name in Settings.model_fields)


@pytest.mark.parametrize(("name", "value"), ASSIGNED, ids=[name for name, _ in ASSIGNED])
def test_it_shows_the_default(name: str, value: str) -> None:
    default = Settings.model_fields[name.lower()].default
    assert value == (str(default).lower() if isinstance(default, bool) else str(default))


def test_a_copy_of_it_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.lower() in Settings.model_fields:
            monkeypatch.delenv(name)
    assert Settings(_env_file=EXAMPLE) == Settings(_env_file=None)


@pytest.mark.parametrize("name", [name for name, _ in ASSIGNED])
def test_a_line_above_each_setting_explains_it(name: str) -> None:
    before = LINES[[line.partition("=")[0] for line in LINES].index(name) - 1]
    assert before.startswith("# ")
    assert not before.startswith("# ---")
