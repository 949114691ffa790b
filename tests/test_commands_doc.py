"""docs/commands.md has one example for each command, and each example is accepted."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup

from app.cli.commands import app

PAGE = (Path(__file__).parents[1] / "docs" / "commands.md").read_text("utf-8")
EXAMPLES = [shlex.split(line) for line in re.findall(r"^\| `gateway (.+?)` \|", PAGE, re.MULTILINE)]
ROOT: Any = typer.main.get_command(app)


def leaves(command: Any, name: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if not isinstance(command, TyperGroup):
        yield name
        return
    for part, child in command.commands.items():
        yield from leaves(child, (*name, part))


def resolve(words: list[str]) -> tuple[tuple[str, ...], Any, list[str]]:
    """The name of the command that these words run, the command, and its arguments."""
    command: Any = ROOT
    name: tuple[str, ...] = ()
    while isinstance(command, TyperGroup):
        command, name, words = command.commands[words[0]], (*name, words[0]), words[1:]
    return name, command, words


COMMANDS = [words for words in EXAMPLES if words[0] != "--version"]


def test_every_command_has_one_example_and_no_other_is_named() -> None:
    assert sorted(resolve(words)[0] for words in COMMANDS) == sorted(leaves(ROOT))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_an_example_is_accepted(words: list[str]) -> None:
    name, command, arguments = resolve(words)
    command.make_context(" ".join(name), arguments)  # raises UsageError


def test_every_option_that_is_named_exists() -> None:
    known = {option for name in leaves(ROOT) for one in resolve([*name])[1].params for option in one.opts}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", PAGE))
    assert named - known <= {"--version", "--help", "--host", "--port", "--factory"}
