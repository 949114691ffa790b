"""What each benchmark runs on: its own database and Redis number, the processes of the gateway, and the audit.

All that is made here is deleted at the end. This module measures nothing.
"""

import asyncio
import json
import os
import secrets
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from tests.support.ports import free_port
from tests.support.sql import run_sql

ROOT = Path(__file__).parent.parent
MYSQL = os.environ.get("TEST_MYSQL_URL", "mysql+asyncmy://root:@127.0.0.1:3306/")
REDIS = os.environ.get("TEST_REDIS_URL", "redis://127.0.0.1:6379")
START_SECONDS = 60
STOP_SECONDS = 15


@dataclass(frozen=True)
class Harness:
    """The environment variables that the processes of one benchmark get."""

    environment: dict[str, str]
    directory: Path

    @property
    def database_url(self) -> str:
        return self.environment["DATABASE_URL"]

    @asynccontextmanager
    async def process(
        self,
        *command: str,
        stderr: int | None = None,
        stdout: int = asyncio.subprocess.PIPE,
        **environment: str,
    ) -> AsyncIterator[asyncio.subprocess.Process]:
        """A child process that is stopped when the block ends. By default its standard error is ours."""
        child = await asyncio.create_subprocess_exec(
            *command,
            env=self.environment | environment,
            cwd=self.directory,
            stdin=asyncio.subprocess.PIPE,
            stdout=stdout,
            stderr=stderr,
            limit=2**26,
        )
        try:
            yield child
        finally:
            await _stop(child)

    @asynccontextmanager
    async def api(self, **environment: str) -> AsyncIterator[tuple[int, int]]:
        """One `gateway serve`: (its process id, its port)."""
        port = free_port()
        async with self.process(gateway(), "serve", PORT=str(port), **environment) as child:
            await wait_for_port(port)
            yield child.pid, port

    async def command(self, *arguments: str) -> str:
        """Runs `gateway …` to its end and returns its standard output. SystemExit if it failed without any output."""
        async with self.process(gateway(), *arguments, stderr=asyncio.subprocess.PIPE) as child:
            output, errors = await child.communicate()
        if child.returncode and not output:
            raise SystemExit(f"gateway {' '.join(arguments)} failed: {errors.decode()}")
        return output.decode()

    async def violations(self) -> list[Any]:
        """What `gateway audit` finds. An empty list means that the books are right."""
        return list(json.loads(await self.command("audit", "--json"))["violations"])


@asynccontextmanager
async def open_harness(**environment: str) -> AsyncIterator[Harness]:
    """A migrated database that syncs every commit, and the first empty Redis database."""
    name = f"gateway_bench_{os.getpid()}_{secrets.token_hex(3)}"
    if await run_sql(MYSQL, "SELECT @@innodb_flush_log_at_trx_commit") != 1:
        raise SystemExit(
            "innodb_flush_log_at_trx_commit is not 1: commits would not be durable, figures not comparable"
        )
    await run_sql(MYSQL, f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4")
    number = _empty_redis()
    try:
        with tempfile.TemporaryDirectory(prefix="gateway-bench-") as directory:
            own = {
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(ROOT),
                "DATABASE_URL": MYSQL.rstrip("/") + f"/{name}",
                "REDIS_URL": f"{REDIS}/{number}",
                "STORAGE_URL": Path(directory, "files").as_uri(),
                "LOG_LEVEL": "WARNING",
            }
            harness = Harness(own | environment, Path(directory))
            await harness.command("migrate")
            yield harness
    finally:
        await run_sql(MYSQL, f"DROP DATABASE `{name}`")
        redis.Redis.from_url(f"{REDIS}/{number}").flushdb()


def gateway() -> str:
    """The console script beside this interpreter."""
    return str(Path(sys.executable).with_name("gateway"))


def _empty_redis() -> int:
    for number in range(16):
        if redis.Redis.from_url(f"{REDIS}/{number}", socket_timeout=3).dbsize() == 0:
            return number
    raise SystemExit("no Redis database is empty")


async def wait_for_port(port: int, seconds: float = START_SECONDS) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return
    raise SystemExit(f"nothing listens on port {port} after {seconds:.0f} s")


async def _stop(child: asyncio.subprocess.Process) -> None:
    if child.returncode is None:
        with suppress(ProcessLookupError):
            child.terminate()
    try:
        await asyncio.wait_for(child.wait(), STOP_SECONDS)
    except TimeoutError:
        child.kill()
        await child.wait()


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_kilobytes(pid: int, kind: str = "VmRSS") -> int:
    """The resident memory of a process now, or with `VmHWM` at its peak. One kilobyte is 1,024 bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1])
    raise SystemExit("the process has ended")


def core_seconds() -> float:
    """The time that all cores of the machine were busy so far."""
    fields = list(map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9]))
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")
