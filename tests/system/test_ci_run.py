"""`.ci/run` installs the programs that the tests need and nothing else. It fails if the locks or the tests fail.

Nothing is installed here. Its functions run alone; the whole script runs only with a replaced `make` and without
`check_locks`.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = (Path(__file__).parents[2] / ".ci/run").read_text("utf-8")


def wanted(folder: Path, *here: str) -> set[str]:
    """The packages that it would install on a machine with these programs and no apt-get."""
    for name in here:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    functions = SCRIPT[SCRIPT.index("\nsay()") : SCRIPT.index("\n# `make install` works")]
    functions = functions.replace('export PATH="$PATH:/usr/sbin:/sbin"', "") + "\ninstall_missing"
    bash = shutil.which("bash")
    assert bash is not None
    done = subprocess.run(
        [bash, "-euo", "pipefail", "-c", functions],
        env={"PATH": str(folder), "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    return set(done.stderr.partition("missing: ")[2].partition(";")[0].split())


def test_a_bare_machine_gets_the_programs_without_a_service(tmp_path: Path) -> None:
    found = wanted(tmp_path)
    assert {"make", "curl", "nodejs", "mariadb-server-core", "mariadb-client-core", "redis-server"} == found


def test_installed_programs_are_not_installed_again(tmp_path: Path) -> None:
    assert wanted(tmp_path, "mariadbd", "redis-server", "make", "curl") == {"nodejs"}


@pytest.mark.parametrize("is_green", [True, False])
def test_its_result_is_that_of_make_test_all(tmp_path: Path, is_green: bool) -> None:
    """With CI set, and only once: a failure has no second try."""
    (tmp_path / ".ci").mkdir()
    assert SCRIPT.count("\ncheck_locks\n") == 1
    (tmp_path / ".ci/run").write_text(SCRIPT.replace("\ncheck_locks\n", "\n"))
    (tmp_path / "Makefile").write_text(f"test-all:\n\t@echo ran CI=$$CI\n\t@{str(is_green).lower()}\n")
    done = subprocess.run(["bash", ".ci/run"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode == 0, "all tests passed" in done.stdout) == (is_green, is_green)
    assert done.stdout.count("ran CI=true") == 1, done.stderr


@pytest.mark.parametrize(("installs", "checks"), [(True, True), (False, True), (True, False)])
def test_lock_files_that_do_not_install_fail(tmp_path: Path, installs: bool, checks: bool) -> None:
    """Also if the environment was just made: the folder is deleted, and the script ends with an error."""
    python = tmp_path / "python"
    pip = f"#!/bin/sh\ncase $1 in check) {str(checks).lower()};; esac\n"
    made = f"mkdir -p $3/bin && printf '{pip.encode('unicode_escape').decode()}' >$3/bin/pip && chmod +x $3/bin/pip"
    python.write_text(f'#!/bin/sh\ncase "$1$2" in -mvenv) {made};; esac\n')
    python.chmod(0o755)
    (tmp_path / "Makefile").write_text(f"install:\n\t@ls $(VENV)/bin\n\t@{str(installs).lower()}\n")
    (tmp_path / "tmp").mkdir()
    functions = SCRIPT[SCRIPT.index("\nsay()") : SCRIPT.index("\ninstall_missing\n")]
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"{functions}\ncheck_locks\necho 'and on'"],
        cwd=tmp_path,
        env=dict(os.environ) | {"PYTHON": str(python), "TMPDIR": str(tmp_path / "tmp")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "pip" in done.stdout, done.stderr
    assert (done.returncode == 0, "and on" in done.stdout) == (installs and checks,) * 2
    assert list((tmp_path / "tmp").iterdir()) == []
