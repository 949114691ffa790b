"""The benchmarks still run: tiny sizes, no figures asked. They need MariaDB and Redis."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.services import MISSING, RealServices

ROOT = Path(__file__).parent.parent
TINY = {
    "bench.submit": ["--seconds", "0.3", "--pairs", "1", "--users", "5", "--connections", "4"],
    "bench.poll": ["--seconds", "0.3", "--pairs", "1", "--tasks", "4000"],
    "bench.memory": ["--seconds", "0.5", "--tasks", "50"],
}


@pytest.mark.parametrize("module", TINY)
def test_benchmark_runs_and_its_books_are_clean(module: str, real_services: RealServices | None) -> None:
    if real_services is None:
        pytest.skip(MISSING)
    done = subprocess.run(
        [sys.executable, "-m", module, *TINY[module]], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "clean" in done.stdout
