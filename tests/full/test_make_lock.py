"""`make lock` on an unchanged pyproject.toml changes nothing. It asks the package index."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = ["requirements.lock", "requirements-dev.lock"]


@pytest.mark.network
def test_make_lock_keeps_every_pin(tmp_path: Path) -> None:
    for name in ["Makefile", "pyproject.toml", *LOCKS]:
        shutil.copy(ROOT / name, tmp_path)
    # `-o`: the environment of this test is used as it is.
    venv = sys.prefix
    done = subprocess.run(
        ["make", "lock", f"VENV={venv}", "-o", f"{venv}/.dev-installed"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"{venv}/bin/uv pip compile" in done.stdout
    for name in LOCKS:
        assert (tmp_path / name).read_bytes() == (ROOT / name).read_bytes(), name
