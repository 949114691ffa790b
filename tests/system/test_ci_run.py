"""`.ci/run` asks for what the tests need, also where servers answer, and says what passed only the second time.

Nothing is installed: its functions run alone, and the whole of it only with servers named, `make` replaced and
`check_locks` left out.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = (Path(__file__).parents[1] / ".ci/run").read_text("utf-8")
GIVEN = {"TEST_MYSQL_URL": "mysql+asyncmy://elsewhere/", "TEST_REDIS_URL": "redis://elsewhere"}


def wanted(folder: Path, *here: str, answering: bool = False, **environment: str) -> set[str]:
    """The packages it would install on a machine that has these programs and no apt-get."""
    for name in here:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    functions = SCRIPT[SCRIPT.index("\nsay()") : SCRIPT.index("\nstart_mariadb()")]
    functions = functions.replace('export PATH="$PATH:/usr/sbin:/sbin"', "")
    functions += f"\nanswers() {{ {'true' if answering else 'false'}; }}\ninstall_missing"
    bash = shutil.which("bash")
    assert bash is not None
    done = subprocess.run(
        [bash, "-euo", "pipefail", "-c", functions],
        env={"PATH": str(folder), "PYTHON": sys.executable} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    return set(done.stderr.partition("missing: ")[2].partition(";")[0].split())


def test_a_bare_machine_gets_servers(tmp_path: Path) -> None:
    assert {"mariadb-server", "mariadb-client", "redis-server"} <= wanted(tmp_path)


@pytest.mark.parametrize("answering", [True, False])
def test_where_servers_are_given_their_programs_come_without_a_service(tmp_path: Path, answering: bool) -> None:
    found = wanted(tmp_path, answering=answering, **GIVEN)
    assert {"mariadb-server-core", "redis-server"} <= found
    assert not {"mariadb-server", "mariadb-client"} & found


def test_beside_a_server_that_answers_none_is_set_up(tmp_path: Path) -> None:
    found = wanted(tmp_path, answering=True)
    assert {"mariadb-server-core", "mariadb-client"} <= found
    assert "mariadb-server" not in found


def test_what_is_here_is_not_asked_for(tmp_path: Path) -> None:
    found = wanted(tmp_path, "mariadbd", "mariadb", "redis-server", "make", "curl")
    assert found == {"nodejs"}


def verdict(folder: Path, *failing: str, output: str = "", is_cured: bool = True) -> tuple[int, str]:
    """Exit code and what it prints, where `make test` fails by these tests and the second try may cure them."""
    cache = ".pytest_cache/v/cache"
    (folder / ".ci").mkdir()
    assert SCRIPT.count("\ncheck_locks\n") == 1
    (folder / ".ci/run").write_text(SCRIPT.replace("\ncheck_locks\n", "\n"))
    listed = json.dumps(dict.fromkeys(failing, True), indent=2)
    (folder / "failing.json").write_text(listed)
    noted = f"@mkdir -p {cache} && cp failing.json {cache}/lastfailed && false" if failing else "@true"
    again = "@true" if is_cured else "@false"
    (folder / "Makefile").write_text(f"test:\n\t@echo '{output}'\n\t{noted}\ntest-again:\n\t{again}\n")
    done = subprocess.run(
        ["bash", ".ci/run"],
        cwd=folder,
        env=dict(os.environ) | GIVEN,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def test_green_is_said_once(tmp_path: Path) -> None:
    code, said = verdict(tmp_path)
    assert (code, "second time" in said) == (0, False)


def test_what_passes_only_the_second_time_is_named(tmp_path: Path) -> None:
    code, said = verdict(tmp_path, "tests/test_a.py::test_slow[real]", "tests/test_b.py::test_slower")
    assert code == 0
    assert said.endswith("only the second time:\ntests/test_a.py::test_slow[real]\ntests/test_b.py::test_slower\n")


def test_what_fails_twice_fails(tmp_path: Path) -> None:
    assert verdict(tmp_path, "tests/test_a.py::test_broken", is_cured=False)[0] != 0


def test_many_failures_have_no_second_try(tmp_path: Path) -> None:
    code, said = verdict(tmp_path, *[f"tests/test_a.py::test[{number}]" for number in range(6)])
    assert (code, "once more" in said) == (1, False)


def test_wrong_books_have_no_second_try(tmp_path: Path) -> None:
    code, said = verdict(tmp_path, "tests/test_a.py::test_money", output="E  AssertionError: the books are wrong")
    assert (code, "once more" in said) == (1, False)


@pytest.mark.parametrize(("installs", "checks"), [(True, True), (False, True), (True, False)])
def test_lock_files_that_do_not_install_fail(tmp_path: Path, installs: bool, checks: bool) -> None:
    """Also where the environment was made: the folder is gone, and the script has ended with an error."""
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
