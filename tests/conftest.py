"""The two worlds every test of the gateway runs in, and what it needs there.

    embedded   SQLite, the in-process Redis, files on disk                 always
    real       MariaDB, a Redis server, S3 over HTTP with signatures       where they answer; always in CI

A test asks for `runtime`, `api`, `user`, `working` or `sandbox` and runs once in each world. After each test that had
a `runtime` the books are audited.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import hypothesis
import pytest
from sandbox_server import KEY, Server, serve

from app.api import limits
from app.cli.migrate import migrate
from app.database import engines
from app.main import create_app
from app.points.audit import audit
from app.runtime import Runtime, open_runtime
from app.settings import Settings
from app.tasks import decide
from tests.makers import Maker
from tests.services import MISSING, RealServices, start_real_services
from tests.worlds import World, embedded_world
from worker.main import run_worker

if not os.environ.get("CI"):  # there Hypothesis has a profile of its own: the same examples each time, and no deadline
    hypothesis.settings.register_profile(
        "unhurried", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
    hypothesis.settings.load_profile("unhurried")

WORLDS = ("embedded", "real")
STATE: dict[str, str] = {}


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def real_services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServices | None]:
    services = start_real_services(tmp_path_factory.mktemp("s3"))
    if isinstance(services, str):
        STATE["real"] = f"NOT RUN: {services}"
        if os.environ.get("CI"):
            pytest.exit(f"CI needs the real services: {services}", returncode=1)
        yield None
        return
    migrate(services.database_url)
    services.remember_models()
    STATE["real"] = services.description
    yield services
    services.stop()


@pytest.fixture(scope="session")
def empty_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sqlite") / "empty.db"
    migrate(f"sqlite+aiosqlite:///{path}")
    STATE["embedded"] = "SQLite + embedded Redis + files on disk"
    return path


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    if request.param == "embedded":
        return embedded_world(request.getfixturevalue("empty_sqlite"), tmp_path)
    services: RealServices | None = request.getfixturevalue("real_services")
    if services is None:
        pytest.skip(MISSING)
    services.empty()
    return World("real", services.settings(), services.empty)


@pytest.fixture(scope="session")
def sandbox_server() -> Iterator[Server]:
    with serve(seconds_scale=0.05) as running:
        yield running


@pytest.fixture
def upstream(sandbox_server: Server) -> Iterator[Server]:
    """The sandbox, over a real socket, without rules or journal from an earlier test."""
    sandbox_server.client.delete("/journal")
    sandbox_server.control()
    yield sandbox_server
    sandbox_server.control()


@pytest.fixture
def settings(world: World, upstream: Server, request: pytest.FixtureRequest) -> Settings:
    """`@pytest.mark.settings(name=value)` on a test changes some."""
    marker = request.node.get_closest_marker("settings")
    own = {
        "see2ai_base_url": upstream.origin,
        "see2ai_api_key": KEY,
        "egress_allow": upstream.origin.removeprefix("http://"),
        "public_url": "http://gateway.test",
        "database_pool_size": 16,
        "submit_rate_per_minute": 100_000,
        "read_rate_per_minute": 100_000,
    }
    changed = marker.kwargs if marker else {}
    return Settings(_env_file=None, **(world.settings | own | changed))


@pytest.fixture
async def runtime(settings: Settings, anyio_backend: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Runtime]:
    """Opened for one test; the books are audited when it is over."""
    # Of a hundred requests at once the last must not be a 503 because the machine is slow.
    monkeypatch.setattr(engines, "POOL_WAIT_SECONDS", 25)
    async with open_runtime(settings) as opened:
        await opened.redis.flushdb()
        yield opened
        assert await audit(opened.sessions) == [], "the books are wrong"


@pytest.fixture
async def api(runtime: Runtime) -> AsyncIterator[httpx.AsyncClient]:
    """The REST door without a socket."""
    app = create_app(runtime.settings, runtime)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway.test", timeout=90) as client:
            yield client


@pytest.fixture
def make(runtime: Runtime, api: httpx.AsyncClient) -> Maker:
    return Maker(runtime, api)


@pytest.fixture
def endless_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """The minute of the rate limits does not end within the test."""
    monkeypatch.setattr(limits, "time", SimpleNamespace(time=lambda: 1e9, monotonic=time.monotonic))


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's pauses shrunk to a test's patience; their order and number stay."""
    monkeypatch.setattr(decide, "POLL_STAIRS", ((1e9, 0.05),))
    monkeypatch.setattr(decide, "LONGEST_BACKOFF_SECONDS", 0.1)
    monkeypatch.setattr(decide, "LONGEST_POLL_BACKOFF_SECONDS", 0.1)


@pytest.fixture
async def working(runtime: Runtime, hurry: None) -> AsyncIterator[None]:
    """A whole worker beside the test, in a hurry."""
    stop = asyncio.Event()
    worker = asyncio.create_task(run_worker(runtime, stop))
    yield
    stop.set()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.wait_for(worker, 120)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "settings(**changes): settings of this test's runtime")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says which worlds ran, so that a green run cannot hide a missing one."""
    for world in WORLDS:
        terminalreporter.write_line(f"world {world:<9} {STATE.get(world, 'not asked for')}")
