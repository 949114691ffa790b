"""Servers for one storm, in their own folder: MariaDB, Redis and S3. A test may kill and restart them."""

import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.support.database_servers import install_mariadb, mariadb_command, program
from tests.support.ports import free_port
from tests.support.processes.process import Process, Processes, script

START_SECONDS = 60.0
STOP_SECONDS = 15.0
BUCKET, ACCESS_KEY, SECRET_KEY = "results", "chaos-access-key", "chaos-secret-key"


class Server:
    """One server on one port. Its files on disk survive `kill`; `start` starts it again on them."""

    def __init__(self, processes: Processes, name: str, *command: str, port: int) -> None:
        self.name = name
        self.port = port
        self.process: Process | None = None
        self._processes = processes
        self._command = command

    def start(self) -> None:
        """Returns once it accepts connections."""
        self.process = process = self._processes.start(*self._command, name=self.name)
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and process.code is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise AssertionError(f"{self.name} did not start:\n{process.log()[-2000:]}")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()

    def stop(self) -> None:
        """As a supervisor does: SIGTERM, then SIGKILL after a timeout."""
        if self.process is None:
            return
        try:
            self.process.terminate(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def freeze(self) -> None:
        if self.process is not None:
            self.process.freeze()

    def thaw(self) -> None:
        if self.process is not None:
            self.process.thaw()


def open_database_server(processes: Processes, folder: Path) -> Server:
    """A new and empty MariaDB. An acknowledged commit is on disk, as docs/operations.md requires."""
    port = free_port()
    install_mariadb(folder)
    durable = ["--innodb-flush-log-at-trx-commit=1", "--innodb-buffer-pool-size=128M", "--max-connections=300"]
    return Server(processes, "mariadb", *mariadb_command(folder, port), *durable, port=port)


def open_redis_server(processes: Processes) -> Server:
    """It keeps nothing: each start is empty."""
    port = free_port()
    command = [program("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    return Server(processes, "redis", *command, port=port)


def open_storage_server(processes: Processes, folder: Path) -> Server:
    (folder / "s3" / BUCKET).mkdir(parents=True, exist_ok=True)
    port = free_port()
    rclone = script("rclone") if Path(script("rclone")).exists() else program("rclone")
    command = [rclone, "serve", "s3", str(folder / "s3"), "--config", "", "--addr", f"127.0.0.1:{port}"]
    return Server(processes, "storage", *command, "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", port=port)


def storage_settings(storage: Server) -> dict[str, Any]:
    return {
        "storage_url": f"s3://{BUCKET}/gateway",
        "storage_endpoint": f"http://127.0.0.1:{storage.port}",
        "storage_access_key_id": ACCESS_KEY,
        "storage_secret_access_key": SECRET_KEY,
    }


def stored_file(folder: Path, key: str) -> Path:
    """The path on disk of an object of the bucket."""
    return folder / "s3" / BUCKET / "gateway" / key
