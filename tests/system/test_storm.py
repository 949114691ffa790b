"""A storm of a minute: random faults in real processes, then an audit of the books. See `make chaos`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MINUTES = "1"


@pytest.mark.smoke
@pytest.mark.usefixtures("real_services")  # its servers are programs of that world; without them it is skipped
def test_a_storm_leaves_right_books(tmp_path: Path) -> None:
    words = ["-m", "tests.chaos", "--minutes", MINUTES, "--tasks", "60", "--seed", "7", "--keep", str(tmp_path / "s")]
    outside = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_TEST_RUN_")}
    done = subprocess.run(  # as `make chaos` starts it, outside a run of tests
        [sys.executable, *words],
        env=outside,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the storm is over" in done.stdout
