"""`.ci/run` asks for what the tests need, also where servers answer. Its functions alone: nothing is installed."""

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
