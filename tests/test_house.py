"""Rules of the code base: sizes, transactions, and which package may do what."""

import ast
import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
CODE = sorted([*ROOT.glob("app/**/*.py"), *ROOT.glob("worker/**/*.py")])
MAX_FILE = 300
MAX_FUNCTION = 70
BEGINNERS = ("app/tasks/", "app/accounts/", "app/points/", "app/webhooks/", "app/cli/", "app/database/")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_a_file_is_short_and_has_a_docstring() -> None:
    for path in CODE:
        source = path.read_text("utf-8")
        if name_of(path) != "app/__init__.py":
            assert source.count("\n") <= MAX_FILE, name_of(path)
            assert ast.get_docstring(ast.parse(source)), f"{name_of(path)}: no opening sentence"


def test_functions_are_short() -> None:
    for path in CODE:
        for function in functions(path):
            lines = (function.end_lineno or 0) - function.lineno
            assert lines < MAX_FUNCTION, f"{name_of(path)}: {function.name}"


def test_only_the_database_package_begins_and_ends_transactions() -> None:
    for path in CODE:
        name, source = name_of(path), path.read_text("utf-8")
        assert name.startswith("app/database/") or ".commit(" not in source, name
        assert "sessions.begin()" not in source or name.startswith(BEGINNERS), name
        assert "RETURNING" not in source.upper().replace("RETURNING A VALUE", "") or "migrations" in name, name


def test_no_network_inside_a_transaction() -> None:
    """Inside `database.begin()` only the session and functions with a session are awaited."""
    outside = {"egress", "see2ai", "store", "redis", "pubsub", "wakeup"}
    for path in CODE:
        for function in functions(path):
            for node in ast.walk(function):
                if isinstance(node, ast.AsyncWith) and "sessions.begin()" in ast.unparse(node.items[0]):
                    touched = {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
                    assert not touched & outside, f"{name_of(path)}:{node.lineno}"


def test_no_module_has_a_catch_all_name() -> None:
    for path in CODE:
        assert not re.search(r"(utils|common|helpers?|manager|service|core)\.py$", path.name), name_of(path)


def test_error_codes_are_unique_and_have_their_status() -> None:
    """Each error class has its own pair of status and code."""
    from app import errors

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.GatewayError)]
    codes = [kind.error_code for kind in kinds if kind not in {errors.GatewayError, errors.Internal}]
    assert len(codes) == len(set(codes))
    assert {kind.error_code: kind.status for kind in kinds if kind is not errors.GatewayError} == {
        "INVALID_PARAMETER": 400,
        "MODEL_NOT_FOUND": 400,
        "CODE_NOT_REDEEMABLE": 400,
        "UNAUTHENTICATED": 401,
        "SECOND_FACTOR_REQUIRED": 401,
        "INSUFFICIENT_POINTS": 402,
        "KEY_BUDGET_EXCEEDED": 402,
        "FORBIDDEN": 403,
        "REGISTRATION_CLOSED": 403,
        "NOT_FOUND": 404,
        "METHOD_NOT_ALLOWED": 405,
        "REQUEST_TIMEOUT": 408,
        "IDEMPOTENCY_CONFLICT": 409,
        "NOT_CANCELLABLE": 409,
        "GRANT_CONFLICT": 409,
        "ACTION_CONFLICT": 409,
        "USERNAME_TAKEN": 409,
        "TASK_RUNNING": 409,
        "PAYLOAD_TOO_LARGE": 413,
        "RANGE_NOT_SATISFIABLE": 416,
        "UNSUPPORTED_MEDIA": 415,
        "RATE_LIMITED": 429,
        "TOO_MANY_TASKS": 429,
        "HEADERS_TOO_LARGE": 431,
        "INTERNAL": 500,
        "UNAVAILABLE": 503,
    }


# ------------------------------------------------------------------ tests

TESTS = sorted(path for path in ROOT.glob("tests/**/test_*.py"))
MAX_SLEEP_SECONDS = 1
IN_EVERY_RUN = [path for path in TESTS if ROOT / "tests/system" not in path.parents]


def test_no_test_module_imports_another() -> None:
    for path in TESTS:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [one for one in names if one.rpartition(".")[2].startswith("test_")], name_of(path)


def sleeps_in(function: ast.AST) -> Iterator[float]:
    """Seconds of each sleep that the test itself waits for. Sleeps in nested functions belong to stand-ins."""
    for node in ast.iter_child_nodes(function):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            continue
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("sleep"):
            with contextlib.suppress(ValueError):
                yield float(ast.literal_eval(node.args[0]))
        yield from sleeps_in(node)


def test_no_test_of_every_run_sleeps_for_long() -> None:
    for path in IN_EVERY_RUN:
        for function in ast.parse(path.read_text("utf-8")).body:
            if not getattr(function, "name", "").startswith("test_"):
                continue
            assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
            if not any("mark.full" in ast.unparse(mark) for mark in function.decorator_list):
                long = [one for one in sleeps_in(function) if one > MAX_SLEEP_SECONDS]
                assert long == [], f"{name_of(path)}: {function.name}"
