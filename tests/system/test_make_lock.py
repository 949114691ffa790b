"""`make lock` on an unchanged pyproject.toml changes nothing. It asks the package index."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HASH = re.compile(r"\s+--hash=sha256:[0-9a-f]{64}(?: \\)?| \\$", re.MULTILINE)
"""The index may have more wheels for other machines by now."""
LOCKS = ["requirements.lock", "requirements-dev.lock"]


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
        before, after = (ROOT / name).read_text("utf-8"), (tmp_path / name).read_text("utf-8")
        assert re.sub(HASH, "", after) == re.sub(HASH, "", before), name
        assert set(re.findall(HASH, before)) <= set(re.findall(HASH, after)), name
