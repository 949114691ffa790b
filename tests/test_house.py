"""The house stands as its plan says: sizes, who commits, who may speak which language."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = sorted([*ROOT.glob("app/**/*.py"), *ROOT.glob("worker/**/*.py")])
LONGEST_FILE = 300
LONGEST_FUNCTION = 70
BEGINNERS = ("app/tasks/", "app/accounts/", "app/points/", "app/webhooks/", "app/cli/", "app/database/")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_a_file_is_short_and_says_what_it_holds(path: Path) -> None:
    source = path.read_text("utf-8")
    if name_of(path) == "app/__init__.py":
        return
    assert source.count("\n") <= LONGEST_FILE
    assert ast.get_docstring(ast.parse(source)), "no opening sentence"


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_functions_are_short(path: Path) -> None:
    for function in functions(path):
        assert (function.end_lineno or 0) - function.lineno < LONGEST_FUNCTION, function.name


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_transactions_begin_and_end_where_the_plan_says(path: Path) -> None:
    source = path.read_text("utf-8")
    if not name_of(path).startswith("app/database/"):
        assert ".commit(" not in source
    if "sessions.begin()" in source:
        assert name_of(path).startswith(BEGINNERS)
    assert "RETURNING" not in source.upper().replace("RETURNING A VALUE", "") or "migrations" in name_of(path)


def test_no_network_inside_a_transaction() -> None:
    """Inside `sessions.begin()` nothing is awaited but the session and functions that join it."""
    outside = {"egress", "see2ai", "store", "redis", "notices", "bell"}
    for path in CODE:
        for function in functions(path):
            for node in ast.walk(function):
                if isinstance(node, ast.AsyncWith) and "sessions.begin()" in ast.unparse(node.items[0]):
                    touched = {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
                    assert not touched & outside, f"{name_of(path)}:{node.lineno}"


def test_no_rooms_without_a_name() -> None:
    for path in CODE:
        assert not re.search(r"(utils|common|helpers?|manager|service|core)\.py$", path.name), name_of(path)


def test_the_shared_words_of_error_classes_are_unique() -> None:
    """One status and one code per error class, as the contract's table has it."""
    from app import errors

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.GatewayError)]
    codes = [kind.error_code for kind in kinds if kind not in {errors.GatewayError, errors.Internal}]
    assert len(codes) == len(set(codes))
    assert {kind.error_code: kind.status for kind in kinds if kind is not errors.GatewayError} == {
        "INVALID_PARAMETER": 400,
        "MODEL_NOT_FOUND": 400,
        "CODE_NOT_REDEEMABLE": 400,
        "UNAUTHENTICATED": 401,
        "INSUFFICIENT_POINTS": 402,
        "FORBIDDEN": 403,
        "NOT_FOUND": 404,
        "METHOD_NOT_ALLOWED": 405,
        "IDEMPOTENCY_CONFLICT": 409,
        "NOT_CANCELLABLE": 409,
        "GRANT_CONFLICT": 409,
        "PAYLOAD_TOO_LARGE": 413,
        "RANGE_NOT_SATISFIABLE": 416,
        "UNSUPPORTED_MEDIA": 415,
        "RATE_LIMITED": 429,
        "TOO_MANY_TASKS": 429,
        "INTERNAL": 500,
        "UNAVAILABLE": 503,
    }
