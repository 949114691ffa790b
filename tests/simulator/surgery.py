"""Changes the source of a function of the gateway for a block, and restores it at the end.

If the function no longer contains the text, the edit fails. Then the edit must be written anew.
"""

import ast
import contextlib
import inspect
import textwrap
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

from tests.simulator.stage import everywhere

Edit = tuple[ModuleType, str, str, str]
"""Module, name of a function, method or constant in it, the text before and after. No text: evaluated again."""


@contextlib.contextmanager
def mutated(edits: Iterable[Edit]) -> Iterator[None]:
    with contextlib.ExitStack() as undo:
        for module, name, old, new in edits:
            undo.enter_context(_edited(module, name, old, new))
        yield


@contextlib.contextmanager
def _edited(module: ModuleType, name: str, old: str, new: str) -> Iterator[None]:
    owner, _, short = name.rpartition(".")
    holder: Any = getattr(module, owner) if owner else module
    source = _source(module, name)
    if old:
        assert source.count(old) == 1, f"{module.__name__}.{name} no longer has, once: {old}"
    made: dict[str, Any] = {}
    exec(compile(source.replace(old, new) if old else source, f"<{name}, mutated>", "exec"), vars(module), made)
    before = getattr(holder, short)
    with contextlib.ExitStack() as undo:
        if inspect.isfunction(before) and not owner:
            undo.enter_context(everywhere(before, made[short]))
        else:
            setattr(holder, short, made[short])
            undo.callback(setattr, holder, short, before)
        yield


def _source(module: ModuleType, name: str) -> str:
    text = inspect.getsource(module)
    owner, _, short = name.rpartition(".")
    body: list[ast.stmt] = ast.parse(text).body
    if owner:
        (holder,) = [one for one in body if isinstance(one, ast.ClassDef) and one.name == owner]
        body = holder.body
    (node,) = [one for one in body if short in _names(one)]
    first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])
    return textwrap.dedent("\n".join(text.splitlines()[first - 1 : node.end_lineno]) + "\n")


def _names(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return {node.name}
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    return set()
