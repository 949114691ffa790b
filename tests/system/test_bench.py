"""The benchmarks still run: tiny sizes, no figures asked. They need MariaDB and Redis."""

import subprocess
import sys
from pathlib import Path

from tests.support.services import RealServices

ROOT = Path(__file__).parent.parent
TINY = {
    "bench.submit": ["--seconds", "0.3", "--pairs", "1", "--users", "5", "--connections", "4"],
    "bench.poll": ["--seconds", "1.5", "--pairs", "1", "--tasks", "2000"],
    "bench.memory": ["--seconds", "0.5", "--tasks", "50"],
    "bench.push": ["--ends", "5", "--pairs", "1", "--streams", "2"],
}


def test_benchmarks_run_and_leave_clean_books(real_services: RealServices) -> None:
    """Side by side: most of their time is spent starting processes."""
    running = {
        module: subprocess.Popen(
            [sys.executable, "-m", module, *options],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for module, options in TINY.items()
    }
    for module, child in running.items():
        output, _ = child.communicate(timeout=300)
        assert child.returncode == 0, f"{module}: {output}"
        assert "clean" in output
