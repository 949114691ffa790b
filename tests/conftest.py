"""Fixtures of all tests: the worlds that the gateway runs in, and what a test needs there. See docs/development.md.

    embedded   SQLite, the in-process Redis, files on disk                    always
    real       MariaDB, a Redis server, S3 over HTTP with signatures          if installed; always in CI
    mysql97    MySQL 9.7 instead of MariaDB                                   with --all

A test asks for `runtime`, `api`, `make` or `working`. It runs in the embedded world, with `both_worlds` also in the
real one, with `worlds(…)` only in those. With --all every test runs in both, and `both_worlds` also on MySQL 9.7. The
books are audited after each test that had a `runtime`.
"""

import asyncio
import contextlib
import gc
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import hypothesis
import pytest

from app import aio
from app.api.access import rate_limits as limits
from app.cli.commands import GC_THRESHOLD
from app.cli.migrate import migrate
from app.database import engines
from app.engine import transitions
from app.messaging import redis
from app.points.audit.checks import audit
from app.runtime import Runtime, open_runtime
from app.sandbox import clock
from app.settings import Settings
from app.upstreams import breaker
from tests.support import run
from tests.support.apps import open_app
from tests.support.dialects import create_sharing_engine
from tests.support.makers import Maker
from tests.support.prices import set_test_prices
from tests.support.sandbox_server import KEY, Server, serve
from tests.support.scheduling import Scheduler, is_system, spread
from tests.support.services import RealServices, has_real_programs, own_database, start_real_services, start_redis
from tests.support.worlds import EMBEDDED, MYSQL97, REAL, World, embedded_world
from worker.main import run_worker

gc.set_threshold(GC_THRESHOLD)  # as the gateway's own processes do
if not os.environ.get("CI"):  # in CI Hypothesis has its own profile: the same examples each time, and no deadline
    hypothesis.settings.register_profile(
        "unhurried", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
    hypothesis.settings.load_profile("unhurried")

STATE = pytest.StashKey[dict[str, str]]()
"""By world: its parts, or why it did not run."""
WORLD_FIXTURES = {"world_name": "function", "module_world_name": "module"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="every test, at full size, in every world (make test-all)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "settings(**changes): settings of this test's runtime")
    config.addinivalue_line("markers", "both_worlds: SQL is at stake: runs in the embedded and in the real world")
    config.addinivalue_line(
        "markers",
        "both_worlds(usually=world): the same, but without --all in this world alone",
    )
    config.addinivalue_line("markers", "worlds(*names): runs in these worlds alone")
    config.addinivalue_line("markers", "smoke: of tests/system, also without --all")
    config.addinivalue_line("markers", "full: only with --all")
    config.stash[STATE] = {}
    if not hasattr(config, "workerinput"):
        run.begin_run(full_size=config.getoption("--all"))
        if config.option.basetemp is None:  # in memory, where a COMMIT of SQLite waits for no disk
            config.option.basetemp = run.run_folder() / "pytest"


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        run.end_run()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for fixture, scope in WORLD_FIXTURES.items():
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, _worlds_of(metafunc), scope=scope)


def _worlds_of(metafunc: pytest.Metafunc) -> list[str]:
    is_all = metafunc.config.getoption("--all")
    named = metafunc.definition.get_closest_marker("worlds")
    both = metafunc.definition.get_closest_marker("both_worlds")
    worlds = list(named.args) if named else [EMBEDDED, REAL] if both or is_all else [EMBEDDED]
    if both and both.kwargs and not is_all:
        worlds = [both.kwargs["usually"] if has_real_programs() else EMBEDDED]
    return [*worlds, MYSQL97] if is_all and REAL in worlds and (named or both) else worlds


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--all"):
        config.hook.pytest_deselected(items=[item for item in items if _is_full(item)])
        items[:] = [item for item in items if not _is_full(item)]
    items[:] = spread(items)


def pytest_collection_finish() -> None:
    """The garbage collector no longer walks over what the collection has made: thousands of tests."""
    gc.collect()
    gc.freeze()


def _is_full(item: pytest.Item) -> bool:
    is_left_out = is_system(item) and item.get_closest_marker("smoke") is None
    return is_left_out or item.get_closest_marker("full") is not None


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Prints which worlds ran, so that a green run cannot hide a missing world."""
    for world, state in sorted(config.stash[STATE].items()):
        terminalreporter.write_line(f"world {world:<9} {state}")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduler:
    return Scheduler(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """xdist: sends a worker's results to the process that prints the summary."""
    node.config.stash[STATE].update(getattr(node, "workeroutput", {}).get("worlds", {}))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["worlds"] = session.config.stash[STATE]


# ------------------------------------------------------------------ the worlds


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="session")
def real_services(request: pytest.FixtureRequest) -> Iterator[RealServices]:
    yield from _services(request.config, REAL)


@pytest.fixture(scope="session")
def mysql97_services(request: pytest.FixtureRequest) -> Iterator[RealServices]:
    yield from _services(request.config, MYSQL97)


def _services(config: pytest.Config, world: str) -> Iterator[RealServices]:
    """Skips the test if the services are missing. In CI it fails."""
    services = start_real_services(world)
    if isinstance(services, str):
        config.stash[STATE][world] = f"NOT RUN: {services}"
        if os.environ.get("CI"):
            pytest.fail(f"CI needs the {world} world: {services}")
        pytest.skip(services)
    config.stash[STATE][world] = services.description
    yield services
    services.stop()


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database after the migrations, with the prices of the release."""
    path = tmp_path_factory.mktemp("sqlite") / "migrated.db"
    migrate(f"sqlite+aiosqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def empty_sqlite(migrated_sqlite: Path, request: pytest.FixtureRequest) -> Path:
    """The same with the prices that the tests expect."""
    path = migrated_sqlite.with_name("empty.db")
    shutil.copy(migrated_sqlite, path)
    set_test_prices(f"sqlite+aiosqlite:///{path}")
    request.config.stash[STATE][EMBEDDED] = "SQLite + embedded Redis + files on disk"
    return path


def _services_of(request: pytest.FixtureRequest, world_name: str) -> RealServices:
    services: RealServices = request.getfixturevalue(f"{world_name}_services")
    return services


@pytest.fixture
def world(request: pytest.FixtureRequest, world_name: str, tmp_path: Path) -> World:
    if world_name == EMBEDDED:
        return embedded_world(request.getfixturevalue("empty_sqlite"), tmp_path)
    services = _services_of(request, world_name)
    services.empty()
    return World(world_name, services.settings())


@pytest.fixture
def empty_database_url(request: pytest.FixtureRequest, world_name: str, tmp_path: Path) -> Iterator[str]:
    """A new database of this test without a table."""
    yield from _empty_database_url(request, world_name, tmp_path)


@pytest.fixture(scope="module")
def module_database_url(
    request: pytest.FixtureRequest, module_world_name: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A new database of this module without a table."""
    yield from _empty_database_url(request, module_world_name, tmp_path_factory.mktemp("database"))


def _empty_database_url(request: pytest.FixtureRequest, world_name: str, folder: Path) -> Iterator[str]:
    if world_name == EMBEDDED:
        yield f"sqlite+aiosqlite:///{folder / 'own.db'}"
        return
    _services_of(request, world_name)
    with own_database(world_name, empty=True) as url:
        yield url


@pytest.fixture
def make_redis() -> Iterator[Callable[..., int]]:
    """Starts a redis-server of the test's own with these options; its port."""
    with contextlib.ExitStack() as stack:

        def start(*options: str) -> int:
            port, process = start_redis(*options)
            stack.callback(process.terminate)
            return port

        yield start


# ------------------------------------------------------------------ the gateway in a world


@pytest.fixture(scope="session")
def sandbox_server() -> Iterator[Server]:
    with serve(seconds_scale=0.05) as running:
        yield running


@pytest.fixture
def upstream(sandbox_server: Server) -> Iterator[Server]:
    """The sandbox, over a real socket, without rules or a request log from an earlier test."""
    sandbox_server.forget()
    yield sandbox_server
    sandbox_server.forget()


@pytest.fixture
def advance_sandbox(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Advances the clock of the sandboxes in this process by that many seconds."""
    real, passed = clock.now, 0.0

    def advance(seconds: float) -> None:
        nonlocal passed
        passed += seconds

    monkeypatch.setattr(clock, "now", lambda: real() + passed)
    return advance


@pytest.fixture
def settings(world: World, upstream: Server, request: pytest.FixtureRequest) -> Settings:
    """`@pytest.mark.settings(name=value)` on a test changes some settings."""
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
    """The runtime of one test. The books are audited when the test is over."""
    # The last of a hundred parallel requests must not be a 503 because the machine is slow. A stall is no outage.
    monkeypatch.setattr(engines, "create_async_engine", create_sharing_engine)
    monkeypatch.setattr(engines, "POOL_WAIT_SECONDS", 25)
    monkeypatch.setattr(aio, "MAX_WAIT_SECONDS", 60)
    monkeypatch.setitem(redis.OPTIONS, "socket_connect_timeout", 10)
    monkeypatch.setattr(breaker, "DATABASE_TIMEOUT_SECONDS", 10)
    async with open_runtime(settings) as opened:
        await opened.redis.flushdb()
        yield opened
        assert await audit(opened.database) == [], "the books are wrong"


@pytest.fixture
async def api(runtime: Runtime) -> AsyncIterator[httpx.AsyncClient]:
    """The REST API without a socket."""
    async with open_app(runtime) as app:
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
    """Short pauses of the worker. Their order and number stay."""
    monkeypatch.setattr(transitions, "MIN_POLL_SECONDS", 0.05)
    monkeypatch.setattr(transitions, "MAX_POLL_SECONDS", 0.05)
    monkeypatch.setattr(transitions, "MAX_BACKOFF_SECONDS", 0.1)
    monkeypatch.setattr(transitions, "MAX_POLL_BACKOFF_SECONDS", 0.1)


@pytest.fixture
async def working(runtime: Runtime, hurry: None) -> AsyncIterator[None]:
    """A whole worker beside the test, with short pauses."""
    stop = asyncio.Event()
    worker = asyncio.create_task(run_worker(runtime, stop))
    yield
    stop.set()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.wait_for(worker, 120)
