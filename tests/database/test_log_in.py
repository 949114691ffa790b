"""Passwords of every kind, and TLS: what the settings ask for happens, or one line says why it cannot."""

import asyncio
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from app.cli.migrate import migrate
from app.database import UnsafeDatabase, open_database, ping
from app.errors import Unavailable
from app.settings import Settings, load_settings
from tests.support.certificates import Authority
from tests.support.database_servers import RELAXED, install_mariadb, mariadb_command
from tests.support.ports import free_port, wait_for_port
from tests.support.run import start_guarded
from tests.support.sql import run_sql
from tests.support.worlds import World


async def cipher(settings: Settings, *statements: str) -> str:
    """Of a connection of the gateway; empty without TLS. It executes the statements first."""
    database = open_database(settings)
    try:
        async with database.read() as connection:
            for statement in statements:
                await connection.execute(text(statement))
            return str((await connection.execute(text("SHOW STATUS LIKE 'Ssl_cipher'"))).one()[1])
    finally:
        await database.close()


async def refusal(settings: Settings) -> str:
    with pytest.raises(UnsafeDatabase) as refused:
        await cipher(settings)
    return refused.value.reason


def settings_of(url: str, **settings: Any) -> Settings:
    return load_settings(_env_file=None, database_url=url, **settings)


@pytest.mark.anyio
@pytest.mark.worlds("real")
@pytest.mark.both_worlds
@pytest.mark.parametrize("password", ["pässwörd-口令-🔑", "p@ss:w/rd?#+&= '\"", "¡Olé!"])
async def test_a_password_may_hold_any_character(world: World, password: str) -> None:
    url, name = make_url(world.settings["database_url"]), f"user_{secrets.token_hex(4)}"
    admin, literal = world.settings["database_url"], password.replace("'", "''")
    await run_sql(admin, f"CREATE USER {name} IDENTIFIED BY '{literal}'", f"GRANT ALL ON `{url.database}`.* TO {name}")
    theirs = f"mysql+asyncmy://{name}:{quote(password, safe='')}@{url.host}:{url.port}/{url.database}"
    try:
        database = open_database(settings_of(theirs))
        await ping(database)
        await database.close()
        await asyncio.to_thread(migrate, theirs)  # a connection of its own
    finally:
        await run_sql(admin, f"DROP USER {name}")


# ------------------------------------------------------------------ TLS


class TlsServer:
    """A MariaDB of the module with a certificate for `localhost`; `connect` gives the settings for it."""

    def __init__(self, folder: Path, authority: Authority, *options: str) -> None:
        self.ca, self._port = str(authority.ca_file), free_port()
        self._process = start_guarded(*mariadb_command(folder, self._port), *RELAXED, *options)
        wait_for_port(self._port, 60)

    def url(self, host: str = "localhost", query: str = "") -> str:
        return f"mysql+asyncmy://root:@{host}:{self._port}/mysql{query}"

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(60)


def start_tls_server(folder: Path, *options: str) -> TlsServer:
    authority = Authority(folder)
    cert, key = authority.issue("localhost")
    files = f"--ssl-ca={authority.ca_file}", f"--ssl-cert={cert}", f"--ssl-key={key}"
    return TlsServer(folder, authority, *files, *options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    install_mariadb(folder)
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[TlsServer]:
    server = start_tls_server(folder)
    yield server
    server.stop()


@pytest.mark.full
def test_each_mode_verifies_what_it_says(server: TlsServer, folder: Path) -> None:
    other = folder / "other"
    other.mkdir()
    foreign = str(Authority(other).ca_file)
    by_name, by_address = server.url(), server.url("127.0.0.1")
    assert asyncio.run(cipher(settings_of(by_name))) == ""
    for settings in (
        settings_of(by_address, database_ssl="required"),
        settings_of(server.url("127.0.0.1", "?ssl=true")),
        settings_of(server.url("127.0.0.1", "?sslMode=REQUIRED")),
        settings_of(by_address, database_ssl="verify-ca", database_ssl_ca=server.ca),
        settings_of(by_name, database_ssl="verify-full", database_ssl_ca=server.ca),
        settings_of(server.url("localhost", f"?ssl_ca={server.ca}")),
    ):
        assert asyncio.run(cipher(settings)), settings
    for settings, reason in (
        (settings_of(by_address, database_ssl="verify-full", database_ssl_ca=server.ca), "not valid for '127.0.0.1'"),
        (settings_of(by_address, database_ssl="verify-ca", database_ssl_ca=foreign), "certificate"),
        (settings_of(by_name, database_ssl="verify-full"), "self-signed certificate"),
    ):
        assert reason in asyncio.run(refusal(settings))
        with pytest.raises(UnsafeDatabase):
            migrate(settings.full_database_url)


@pytest.mark.full
def test_a_server_that_requires_tls_and_one_that_has_none_say_so(folder: Path) -> None:
    strict = start_tls_server(folder, "--require-secure-transport=ON")
    try:
        assert "accepts only TLS: set DATABASE_SSL=required" in asyncio.run(
            refusal(settings_of(strict.url("127.0.0.1")))
        )
        asyncio.run(cipher(settings_of(strict.url("127.0.0.1", "?ssl=true")), "CREATE DATABASE tls"))
        url = strict.url("127.0.0.1").replace("/mysql", "/tls")
        migrate(settings_of(url, database_ssl="required").full_database_url)
        program = Path(sys.executable).with_name("gateway")
        env = {"DATABASE_URL": url}
        for command in ("serve", "migrate"):
            ended = subprocess.run([program, command], check=False, cwd=folder, env=env, capture_output=True, text=True)
            assert ended.returncode == 1
            assert ended.stderr.splitlines()[-1].endswith("accepts only TLS: set DATABASE_SSL=required")
    finally:
        strict.stop()
    plain = TlsServer(folder, Authority(folder), "--skip-ssl")
    try:
        assert "has no TLS" in asyncio.run(refusal(settings_of(plain.url("127.0.0.1"), database_ssl="required")))
    finally:
        plain.stop()


@pytest.mark.full
@pytest.mark.anyio
@pytest.mark.worlds("mysql97")
async def test_mysql_makes_itself_a_certificate(world: World) -> None:
    url = world.settings["database_url"]
    assert await cipher(settings_of(url, database_ssl="required"))
    assert "self-signed certificate" in await refusal(settings_of(url, database_ssl="verify-full"))
    name = f"user_{secrets.token_hex(4)}"
    await run_sql(url, f"CREATE USER {name} IDENTIFIED BY 'x' REQUIRE SSL", f"GRANT ALL ON *.* TO {name}")
    theirs = make_url(url).set(username=name, password="x").render_as_string(hide_password=False)
    try:
        assert "accepts only TLS" in await refusal(settings_of(theirs))
        assert await cipher(settings_of(theirs, database_ssl="required"))
        wrong = make_url(theirs).set(password="y").render_as_string(hide_password=False)
        with pytest.raises(Unavailable) as refused:
            await cipher(settings_of(wrong))
        assert not isinstance(refused.value, UnsafeDatabase)
    finally:
        await run_sql(url, f"DROP USER {name}")
