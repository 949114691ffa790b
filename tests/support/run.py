"""One run of the tests: the folder that its xdist workers share, and servers that end with the run."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

FOLDER = "GATEWAY_TEST_RUN_FOLDER"
PROCESS = "GATEWAY_TEST_RUN_PROCESS"
FULL_SIZE = "GATEWAY_TEST_FULL_SIZE"
GUARD = Path(__file__).with_name("guard.py")


def begin_run(*, full_size: bool) -> None:
    """Called by the process that starts the run, before xdist starts its workers. They inherit the variables."""
    memory = Path("/dev/shm")
    parent = memory if memory.is_dir() and shutil.disk_usage(memory).free > 2**30 else None
    os.environ[FOLDER] = tempfile.mkdtemp(prefix="gateway-run-", dir=parent)
    Path(os.environ[FOLDER]).chmod(0o755)  # a database server that runs as another user must reach its data
    os.environ[PROCESS] = str(os.getpid())
    os.environ[FULL_SIZE] = "1" if full_size else ""


def end_run() -> None:
    """The guards end their servers by themselves. This deletes the folder."""
    shutil.rmtree(os.environ.pop(FOLDER), ignore_errors=True)
    del os.environ[PROCESS]


def examples(few: int, many: int) -> int:
    """The number of examples of a generated test: `few`, or `many` in `make test-all`."""
    return many if os.environ.get(FULL_SIZE) else few


def full(*values: Any) -> "list[pytest.ParameterSet]":
    """These values of a parameter, or rows of several parameters, in `make test-all` only."""
    import pytest  # the processes of `make chaos`, which use this module, do not load it

    rows = [value if isinstance(value, tuple) else (value,) for value in values]
    return [pytest.param(*row, marks=pytest.mark.full) for row in rows]


def run_folder() -> Path:
    """In memory if there is room."""
    return Path(os.environ[FOLDER])


def worker_number() -> int:
    """0 for the first xdist worker, and without xdist."""
    return int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))


def once_a_run(name: str, make: Callable[[], Any]) -> Any:
    """The result of `make`. The first xdist worker calls it; the others wait and get it as JSON."""
    kept = run_folder() / f"{name}.json"
    with (run_folder() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            kept.write_text(json.dumps(make()))
    return json.loads(kept.read_text())


def start_guarded(*command: str, log: Path | None = None) -> "subprocess.Popen[bytes]":
    """A server that ends with the run, also if the run is killed. `terminate` ends it earlier."""
    with (log or Path(os.devnull)).open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-S", "-E", str(GUARD), os.environ[PROCESS], *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
