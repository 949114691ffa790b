"""`gateway doctor`: each check is made to fail, the others go on, and nothing secret is printed."""

import asyncio
import http.server
import json
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from sqlalchemy import event
from typer.testing import Result

from app.cli.doctor import checks, database, process
from app.cli.doctor import redis as redis_checks
from app.cli.migrate import migrate
from app.database import open_database
from app.settings import Settings
from tests.support.ports import dead_port
from tests.support.run import run_folder, worker_number
from tests.support.sandbox_server import KEY, Server
from tests.support.services import RealServices
from tests.support.sql import run_sql
from tests.support.worlds import World

Run = Callable[..., Result]
SECRETS = ("sk-a-secret-key-of-ours", "pass-of-redis", "pass-of-mysql", "secret-of-the-bucket", "j" * 40)
HEALTHY = b'{"code":200,"message":"success","data":{"status":"ok"}}'
PRODUCTION = {
    "environment": "production",
    "see2ai_base_url": "https://see2ai.invalid",
    "see2ai_api_key": SECRETS[0],
    "jwt_secret": SECRETS[4],
    "public_url": "https://api.example.com",
}


@pytest.fixture
def examine(
    gateway: Run, upstream: Server, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, dict[str, dict[str, str]]]]:
    """Runs the command with these settings changed: the exit code, and the findings by name."""

    def run(**changes: str) -> tuple[int, dict[str, dict[str, str]]]:
        usual = {"see2ai_base_url": upstream.origin, "see2ai_api_key": KEY, "public_url": "http://127.0.0.1:1"}
        for name, value in (usual | changes).items():
            monkeypatch.setenv(name.upper(), value)
        result = gateway("doctor", "--json")
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert not [secret for secret in SECRETS if secret in result.output]
        data = json.loads(result.stdout)
        assert data["ok"] is (result.exit_code == 0)
        for found in data["checks"]:
            assert found["status"] in {"ok", "warning", "failed"}
            assert bool(found["remedy"]) is (found["status"] != "ok"), found
        return result.exit_code, {found["check"]: found for found in data["checks"]}

    return run


def failed(findings: dict[str, dict[str, str]]) -> set[str]:
    return {name for name, found in findings.items() if found["status"] == "failed"}


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """Something that answers every GET so."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    yield from _serve(Handler)


@contextmanager
def showing(folder: Path) -> Iterator[str]:
    """A web server over a folder, as a CDN is over a bucket."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def log_message(self, *_: Any) -> None: ...

    yield from _serve(Handler)


@contextmanager
def bucket_that_only_takes() -> Iterator[str]:
    """An S3 whose key may put and nothing else."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(200)

        def _refuse(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self._answer(403)

        do_GET = do_HEAD = do_POST = do_DELETE = _refuse

        def _answer(self, status: int) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": "0", "ETag": '"x"'}.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    yield from _serve(Handler)


def _serve(handler: Any) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


# ------------------------------------------------------------------ what is good


@pytest.mark.worlds("embedded")
def test_for_people_each_line_has_its_remedy_below(gateway: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEE2AI_BASE_URL", f"http://127.0.0.1:{dead_port()}")
    monkeypatch.setenv("SEE2AI_API_KEY", SECRETS[0])
    monkeypatch.setenv("PUBLIC_URL", f"http://127.0.0.1:{dead_port()}")  # another gateway may run at the default one
    result = gateway("doctor")
    lines = result.stdout.splitlines()
    place = next(n for n, line in enumerate(lines) if line.startswith("failed   see2ai "))
    assert "SEE2AI cannot be reached" in lines[place]
    assert lines[place + 1].strip() == "-> Check SEE2AI_BASE_URL, DNS and the firewall."
    assert lines[-1].startswith("1 failed, ")
    assert (result.exit_code, SECRETS[0] in result.output) == (1, False)


@pytest.mark.worlds("real")
def test_with_real_services_nothing_fails(
    examine: Any, world: World, real_services: RealServices, make_redis: Callable[..., int]
) -> None:
    folder = run_folder() / f"s3-{world.name}-{worker_number()}"
    url = f"redis://127.0.0.1:{make_redis('--maxmemory-policy', 'volatile-lru')}/0"
    with showing(folder) as cdn, answering(200, HEALTHY) as api:
        code, found = examine(storage_public_url=f"{cdn}/{real_services.s3.bucket}", public_url=api, redis_url=url)
        assert (code, failed(found)) == (0, set())
        assert {name for name, one in found.items() if one["status"] == "warning"} == {"settings", "worker"}
        assert {"real": "MariaDB", "mysql97": "MySQL 9"}[world.name] in found["database version"]["text"]
        assert list(folder.rglob("doctor-*")) == []
        name = Settings(_env_file=None, database_url=world.settings["database_url"]).redis_name("tasks:health-check")
        with redis.Redis.from_url(url) as client:
            assert client.keys() == []
            client.set(name, "1", ex=60)
        assert examine(redis_url=url)[1]["worker"]["status"] == "ok"


# ------------------------------------------------------------------ what is wrong, by its cause

Causes = dict[str, tuple[dict[str, str], dict[str, str]]]
CAUSES: Causes = {
    "a setting that is wrong": ({"port": "http"}, {"settings": "PORT"}),
    "two settings that do not fit": ({"jwt_algorithm": "RS256"}, {"settings": "JWT_PUBLIC_KEY"}),
    "a key with a line break": ({"see2ai_api_key": f"{SECRETS[0]}\nx"}, {"settings": "SEE2AI_API_KEY"}),
    "no server anywhere": (
        {
            "database_url": f"mysql+asyncmy://u:{SECRETS[2]}@127.0.0.1:1/x",
            "redis_url": f"redis://:{SECRETS[1]}@127.0.0.1:1/0",
            "storage_url": "s3://none/x",
            "storage_endpoint": "http://127.0.0.1:1",
            "storage_access_key_id": "id",
            "storage_secret_access_key": SECRETS[3],
            "see2ai_base_url": "http://127.0.0.1:1",
        },
        {"database": "127.0.0.1", "redis": "", "storage write": "put", "see2ai": "cannot be reached"},
    ),
    "wrong places and a wrong key": (
        {
            "database_url": "sqlite+aiosqlite:///no-such.db",
            "redis_url": f"redis+sentinel://:{SECRETS[1]}@127.0.0.1:1/m/0",
            "storage_url": "file:///proc/none",
            "see2ai_api_key": SECRETS[0],
        },
        {"database": "no-such.db", "redis": "'m'", "storage write": "", "see2ai": "Invalid API key"},
    ),
    "a local PUBLIC_URL in production": (
        PRODUCTION | {"public_url": "https://10.0.0.7"},
        {"public url": "10.0.0.7", "see2ai": "cannot be reached"},
    ),
}
"""Settings, and the checks that they fail, with a word of what is said."""


@pytest.mark.worlds("embedded")
@pytest.mark.parametrize("cause", CAUSES)
def test_a_cause_fails_its_own_checks_and_no_other(examine: Any, cause: str) -> None:
    changes, expected = CAUSES[cause]
    code, found = examine(**changes)
    assert (code, failed(found)) == (1, set(expected))
    for name, word in expected.items():
        assert word in found[name]["text"]
    if "settings" not in expected:
        assert {"settings", "database", "redis", "storage write", "see2ai", "open files"} <= set(found)


@pytest.mark.worlds("embedded")
def test_whatever_answers_at_the_public_addresses_is_judged(examine: Any, world: World) -> None:
    with answering(404, b"nginx") as other:
        code, found = examine(public_url=other)
    assert (code, failed(found)) == (1, {"public url", "storage link"})
    assert "404" in found["public url"]["text"]
    with answering(200, HEALTHY) as other:
        code, found = examine(public_url=other)
    assert (code, failed(found)) == (1, {"storage link"})
    assert "something else" in found["storage link"]["text"]


@pytest.mark.worlds("embedded")
def test_a_key_of_the_bucket_without_the_rights(examine: Any) -> None:
    with bucket_that_only_takes() as endpoint:
        code, found = examine(
            storage_url="s3://bucket/gateway",
            storage_endpoint=endpoint,
            storage_access_key_id="id",
            storage_secret_access_key=SECRETS[3],
        )
    assert (code, failed(found)) == (1, {"storage read", "storage link", "storage delete"})
    assert "403" in found["storage link"]["text"]


@pytest.mark.worlds("embedded")
def test_what_this_machine_lacks(examine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MIN_BYTES", "MIN_FILES"):
        monkeypatch.setattr(process, name, 2**63)
    monkeypatch.setattr(
        process, "resource", SimpleNamespace(getrlimit=lambda _: (9, 9), RLIMIT_NOFILE=0, RLIM_INFINITY=-1)
    )
    assert failed(examine()[1]) == {"temporary folder", "storage disk", "open files"}


@pytest.mark.worlds("embedded")
def test_an_empty_file_has_no_schema(examine: Any, tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "empty.db").execute("CREATE TABLE x (y)")
    code, found = examine(database_url=f"sqlite+aiosqlite:///{tmp_path}/empty.db")
    assert (code, failed(found)) == (1, {"database schema"})
    assert "gateway migrate" in found["database schema"]["remedy"]


@pytest.mark.both_worlds
def test_a_database_that_does_not_protect_the_books(examine: Any, empty_database_url: str) -> None:
    migrate(empty_database_url)
    asyncio.run(run_sql(empty_database_url, "DROP TRIGGER points_ledger_no_delete"))
    found = examine(database_url=empty_database_url)[1]
    assert "database constraints" in failed(found)
    assert "points_ledger_no_delete" in found["database constraints"]["text"]


@pytest.mark.both_worlds
def test_clocks_and_versions_that_differ(examine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "time", SimpleNamespace(time=lambda: time.time() + 60))
    monkeypatch.setattr(database, "MIN_VERSIONS", dict.fromkeys(database.MIN_VERSIONS, (99, 1)))
    found = examine()[1]
    assert {"database clock", "database version"} <= failed(found)
    assert "60.0 s ahead of" in found["database clock"]["text"]
    assert "99.1 or newer" in found["database version"]["remedy"]


@pytest.mark.worlds("real")
def test_a_session_that_something_has_moved_to_another_time_zone(examine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_moved(settings: Settings) -> Any:
        opened = open_database(settings)
        event.listen(
            opened.readers.sync_engine,
            "connect",
            lambda connection, _: connection.cursor().execute("SET time_zone='+8:00'"),
        )
        return opened

    monkeypatch.setattr(database, "open_database", open_moved)
    found = examine()[1]
    assert "28800 s" in found["database time zone"]["text"]


# ------------------------------------------------------------------ Redis


@pytest.mark.worlds("real")
def test_a_redis_that_is_a_replica_or_full_or_forgetful(
    examine: Any, make_redis: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = make_redis("--replicaof", "127.0.0.1", str(dead_port()), "--maxmemory-policy", "allkeys-lru")
    monkeypatch.setattr(redis_checks, "MIN_VERSION", (99, 0))
    found = examine(redis_url=f"redis://127.0.0.1:{port}/0")[1]
    assert {"redis write", "redis role", "redis version"} <= failed(found)
    assert "redis+sentinel://" in found["redis role"]["remedy"]
    assert "ReadOnly" in found["redis write"]["text"]
    assert found["redis eviction"]["status"] == "warning"


@pytest.mark.worlds("real")
@pytest.mark.parametrize("rights", ["~other:* &* +@all", "~* resetchannels +@all"])
def test_a_redis_user_without_the_rights(examine: Any, make_redis: Callable[..., int], rights: str) -> None:
    port = make_redis()
    with redis.Redis(port=port) as client:
        client.execute_command("ACL", "SETUSER", "gw", "on", f">{SECRETS[1]}", *rights.split())
    found = examine(redis_url=f"redis://gw:{SECRETS[1]}@127.0.0.1:{port}/0")[1]
    assert "redis write" in failed(found)
    assert "NoPermission" in found["redis write"]["text"]
    assert "REDIS_PREFIX" in found["redis write"]["remedy"]


@pytest.mark.worlds("embedded")
def test_the_keys_of_a_log_in_service(examine: Any, tmp_path: Path) -> None:
    assert "jwt keys" not in examine()[1]
    path = tmp_path / "jwks.json"
    service = {"jwt_algorithm": "ES256", "jwt_jwks": str(path)}
    found = examine(**service)[1]
    assert "jwt keys" in failed(found)
    assert "FileNotFoundError" in found["jwt keys"]["text"]
    x, y = "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"
    path.write_text(json.dumps({"keys": [{"kty": "EC", "crv": "P-256", "kid": "of-today", "x": x, "y": y}]}))
    found = examine(**service)[1]
    assert found["jwt keys"]["text"] == "ES256 keys: of-today"
    path.write_text('{"keys": []}')
    assert "no key for ES256" in examine(**service)[1]["jwt keys"]["text"]


# ------------------------------------------------------------------ silence


@pytest.mark.worlds("embedded")
def test_servers_that_say_nothing_delay_nothing_else(examine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "CHECK_SECONDS", 1.0)
    monkeypatch.setattr(checks, "CLOSE_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        at = f"127.0.0.1:{silent.getsockname()[1]}"
        code, found = examine(
            database_url=f"mysql+asyncmy://u:p@{at}/x",
            redis_url=f"redis://{at}/0",
            see2ai_base_url=f"http://{at}",
            public_url=f"http://{at}",
        )
    assert code == 1
    assert {"database", "redis", "see2ai", "public url"} <= failed(found)
    assert {found[name]["text"] for name in failed(found)} == {"no answer within 1 s"}
    assert {"settings", "open files", "temporary folder", "storage write"} <= set(found), "all others went on"
