"""Database servers for tests: a MariaDB and a MySQL of this run, configured for speed, or an existing server."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support.ports import free_port, wait_for_port
from tests.support.run import once_a_run, run_folder, start_guarded

SBIN = "/usr/sbin:/sbin:/usr/local/sbin"
MYSQL97 = Path(__file__).with_name("mysql97.sh")
RELAXED = ("--innodb-flush-method=nosync", "--skip-innodb-doublewrite", "--innodb-flush-log-at-trx-commit=0")
"""A crash of the machine loses data. A test about such a crash needs a server of its own."""


class Missing(Exception):
    """A program that a server needs is not installed."""


@dataclass(frozen=True)
class DatabaseServer:
    """`url` ends with a slash. Its user may create databases and users."""

    name: str
    url: str


def find_server(world: str) -> DatabaseServer | str:
    """The server for the world "real" or "mysql97", started once a run; or a line that says why there is none."""
    if world == "real" and os.environ.get("TEST_MYSQL_URL"):
        return DatabaseServer("", os.environ["TEST_MYSQL_URL"].rstrip("/") + "/")
    found = once_a_run(world, {"real": _start_mariadb, "mysql97": _start_mysql97}[world])
    return found if isinstance(found, str) else DatabaseServer(**found)


def program(*names: str) -> str:
    """The first of these programs that is installed, also if only root has it on the PATH."""
    for name in names:
        found = shutil.which(name) or shutil.which(name, path=SBIN)
        if found:
            return found
    raise Missing(f"{' or '.join(names)} is not on this machine")


def install_mariadb(folder: Path) -> None:
    """The files of an empty MariaDB. Its root user has no password."""
    command = [program("mariadb-install-db", "mysql_install_db"), "--no-defaults", f"--datadir={folder / 'mariadb'}"]
    command += [*_as_this_user(), "--auth-root-authentication-method=normal", "--skip-test-db"]
    subprocess.run(command, check=True, capture_output=True)


def mariadb_command(folder: Path, port: int) -> list[str]:
    """Runs a server on the files of `install_mariadb`. The caller adds the options for durability.

    The socket's name is relative to the data directory, because the length of a socket's path is limited.
    """
    command = [program("mariadbd", "mysqld"), "--no-defaults", f"--datadir={folder / 'mariadb'}", *_as_this_user()]
    command += [f"--port={port}", "--bind-address=127.0.0.1", "--socket=mariadb.sock", f"--tmpdir={folder}"]
    return [*command, f"--pid-file={folder / 'db.pid'}"]


def _as_this_user() -> list[str]:
    """A server runs as root only if an option says so."""
    return [] if os.getuid() else ["--user=root"]


def _start_mariadb() -> dict[str, str] | str:
    port = free_port()
    try:
        install_mariadb(run_folder())
        command = mariadb_command(run_folder(), port)
    except (Missing, subprocess.CalledProcessError) as error:
        return f"MariaDB: {error}; set TEST_MYSQL_URL to use a server of your own"
    return _start("MariaDB", [*command, *RELAXED, "--max-connections=500"], port)


def _start_mysql97() -> dict[str, str] | str:
    """The first start on a machine downloads about 60 MB."""
    found = subprocess.run([MYSQL97, "version"], check=False, capture_output=True, text=True)
    if found.returncode:
        return (found.stderr.strip() or f"MySQL 9.7: {MYSQL97.name} ended with {found.returncode}").splitlines()[-1]
    port, data = free_port(), run_folder() / "mysql97"
    data.mkdir()
    return _start("MySQL", [str(MYSQL97), "run", str(port), str(data)], port)


def _start(name: str, command: list[str], port: int) -> dict[str, str] | str:
    log = run_folder() / f"{name.lower()}.log"
    start_guarded(*command, log=log)
    try:
        wait_for_port(port, 120)
    except TimeoutError:
        return f"{name} did not start: {' '.join(log.read_text('utf-8', 'replace').splitlines()[-1:])}"
    return {"name": name, "url": f"mysql+asyncmy://root:@127.0.0.1:{port}/"}
