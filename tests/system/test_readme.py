"""The README's quick start, unchanged, against `gateway up` as a process."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ports import free_port

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
GATEWAY = Path(sys.executable).with_name("gateway")
START_SECONDS = 90
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
QUICK_START = [block for block in BLOCKS if "$API" in block]


def environment(port: int) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR") if name in os.environ}
    return kept | {"NO_PROXY": "localhost,127.0.0.1", "PYTHONIOENCODING": "utf-8", "PORT": str(port)}


@pytest.fixture
def started(tmp_path: Path) -> Iterator[tuple[int, str]]:
    """(port, API key) of a `gateway up` in its own folder."""
    port = free_port()
    with (tmp_path / "stderr.log").open("wb") as log:
        process = subprocess.Popen(
            [GATEWAY, "up"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=log, env=environment(port), text=True
        )
    assert process.stdout is not None
    try:
        lines = iter(process.stdout.readline, "")
        key = next((found[0] for line in lines if (found := re.findall(r"API key +(sk-\S+)", line))), "")
        assert key, (tmp_path / "stderr.log").read_text("utf-8")
        yield port, key
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def test_the_quick_start_answers_as_it_says(started: tuple[int, str], tmp_path: Path) -> None:
    """Every `"name":value` of a comment must be in the output of the command beside or above it."""
    port, key = started
    ready = f"curl -s --retry {START_SECONDS} --retry-delay 1 --retry-all-errors http://localhost:8081/readyz\n"
    script = ready + "\n".join(QUICK_START)
    for old, new in ((".venv/bin/gateway", str(GATEWAY)), ("sk-…", key), (":8081", f":{port}")):
        assert old in script
        script = script.replace(old, new)
    done = subprocess.run(
        ["bash", "-e", "-s"], input=script, cwd=tmp_path, env=environment(port), capture_output=True, text=True,
        timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    promised = re.findall(r'"\w+":(?:"\w+"|\w+)(?=[, …]|$)', "\n".join(re.findall(r"# (.*)$", script, re.MULTILINE)))
    assert len(promised) > 5
    assert [fragment for fragment in promised if fragment not in done.stdout] == []
    assert "ok: the books are proved" in done.stdout
