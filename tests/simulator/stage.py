"""Replaces the gateway's surroundings by the simulated ones for a seed, and makes the empty database."""

import contextlib
import functools
import random
import secrets
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import structlog

import app.database.engines
import app.engine.runner
import app.runtime
import app.upstreams.see2ai.client
from app import failpoints as faults
from app.cli.migrate import migrate
from app.engine import execute, finish, state, transitions
from app.engine.steps import prepare, rehost
from app.engine.transitions import Advance, Fail
from app.upstreams.breaker import CircuitBreaker
from tests.simulator import doubles
from tests.simulator.database import Database, _template
from tests.simulator.doubles import Cloud
from tests.simulator.machines import Machines
from tests.simulator.upstream import Upstream, see2ai_of
from tests.simulator.weather import Weather, loop

MODELS = """
    INSERT INTO points_config (model_name, description, points_cost, task_type, action, params, defaults, price_rules,
                               enabled, sort, created_at, updated_at)
    SELECT 'sim_free', description, 0, task_type, action, params, defaults, price_rules, 1, 0, created_at, updated_at
    FROM points_config WHERE model_name = 'sc_soraimg_text_1x1'
    UNION ALL
    SELECT 'sim_normalizing', description, 7, task_type, action, '{"aspectRatio":"1:1","normalizeReferences":true}',
           defaults, price_rules, 1, 0, created_at, updated_at
    FROM points_config WHERE model_name = 'sc_soraimg_img2img_1x1'
"""
# Two keys of user 1 that share caps, one of user 2, and one of user 1 without caps.
KEYS = """
    INSERT INTO key_budgets (id, user_id, total_cap, max_tasks, end_user_total_cap, updated_at)
    VALUES (1, 1, 70, 3, 35, '2026-01-01 00:00:00'), (2, 2, 35, 2, NULL, '2026-01-01 00:00:00'),
           (3, 1, NULL, NULL, NULL, '2026-01-01 00:00:00');
    INSERT INTO api_keys (id, user_id, digest, prefix, scopes, budget_id, created_at)
    VALUES (1, 1, 'a', 'sk-a', '[]', 1, '2026-01-01 00:00:00'), (2, 2, 'b', 'sk-b', '[]', 2, '2026-01-01 00:00:00'),
           (3, 1, 'c', 'sk-c', '[]', 1, '2026-01-01 00:00:00'), (4, 1, 'd', 'sk-d', '[]', 3, '2026-01-01 00:00:00');
    CREATE TABLE watched_keys AS SELECT k.id AS key_id, b.* FROM api_keys k JOIN key_budgets b ON b.id = k.budget_id;
"""
# Changes that must never happen to a row. Triggers of the database record them when they are written.
WATCH = """
    CREATE TABLE watch (what TEXT, task_no TEXT);
    CREATE TRIGGER watch_end AFTER UPDATE ON tasks WHEN OLD.step = 'done' AND (NEW.step <> 'done'
        OR NEW.status <> OLD.status OR NEW.results IS NOT OLD.results OR NEW.error_code IS NOT OLD.error_code)
    BEGIN INSERT INTO watch VALUES ('I6: an ended task changed', OLD.task_no); END;
    CREATE TRIGGER watch_version AFTER UPDATE ON tasks WHEN NEW.version < OLD.version
        OR (NEW.version = OLD.version AND (NEW.step <> OLD.step OR NEW.status <> OLD.status))
    BEGIN INSERT INTO watch VALUES ('I6: a step without a higher version', OLD.task_no); END;
    CREATE TRIGGER watch_price AFTER UPDATE ON tasks WHEN NEW.points_cost <> OLD.points_cost
    BEGIN INSERT INTO watch VALUES ('I12: a price changed', OLD.task_no); END;
    CREATE TRIGGER watch_caps AFTER INSERT ON tasks WHEN NEW.key_id IS NOT NULL BEGIN
        INSERT INTO watch SELECT 'I17: a cap was exceeded', NEW.task_no FROM watched_keys used
        WHERE used.key_id = NEW.key_id AND EXISTS (
            SELECT 1 FROM tasks t JOIN watched_keys k ON k.key_id = t.key_id AND k.id = used.id
            GROUP BY k.id HAVING SUM((t.status <> 'failed') * t.points_cost) > used.total_cap
                OR SUM(t.step <> 'done') > used.max_tasks
                OR SUM((t.status <> 'failed' AND t.end_user = NEW.end_user) * t.points_cost) > used.end_user_total_cap);
    END;
"""
BUGS = frozenset({"step_failed", "claim_failed", "audit_failed"})
QUIET = ("Unavailable", "CommitUnknown", "TransactionConflict", "ClaimCommitUnknown")


@functools.cache
def workshop() -> Path:
    """A folder, in memory if possible. It is deleted when the process ends."""
    memory = Path("/dev/shm")
    folder = tempfile.TemporaryDirectory(prefix="simulator-", dir=memory if memory.is_dir() else None)
    _KEPT.append(folder)
    return Path(folder.name)


_KEPT: list[Any] = []


@functools.cache
def empty_database(without: str) -> Path:
    """Migrated, with the simulator's models and triggers; `without` one piece of the schema's SQL."""
    whole = None if not without else empty_database("")
    path = workshop() / f"empty-{len(list(workshop().glob('empty-*.db')))}.db"
    if whole is not None:
        shutil.copy(whole, path)
        _rebuild(path, without)
        return path
    migrate(f"sqlite+aiosqlite:///{path}")
    raw = sqlite3.connect(path, isolation_level=None)
    raw.execute(MODELS)
    raw.executescript(KEYS)
    raw.executescript(WATCH)
    raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    raw.close()
    return path


def _rebuild(path: Path, without: str) -> None:
    old = sqlite3.connect(path, isolation_level=None)
    script = "\n".join(old.iterdump())
    old.close()
    assert script.count(without) == 1, f"the schema no longer has, once: {without}"
    path.unlink()
    new = sqlite3.connect(path, isolation_level=None)
    new.executescript(script.replace(without, ""))
    new.execute("PRAGMA journal_mode=WAL")
    new.close()


def fresh_database(without: str = "") -> Path:
    path = workshop() / "now.db"
    for leftover in ("-wal", "-shm"):
        path.with_name(path.name + leftover).unlink(missing_ok=True)
    shutil.copy(empty_database(without), path)
    _template()
    return path


def boottime() -> float:
    """Each process has its own clock, with its own zero."""
    from tests.simulator.clock import PROCESS

    process = PROCESS.get()
    return loop().time() + (process.boot_offset if process is not None else 0.0)


def _with_virtual_clock(defaults: tuple[Any, ...]) -> tuple[Any, ...]:
    assert time.monotonic in defaults
    return tuple((lambda: loop().time()) if value is time.monotonic else value for value in defaults)


@contextlib.contextmanager
def in_place(
    weather: Weather, database: Database, upstream: Upstream, cloud: Cloud, machines: Machines
) -> Iterator[None]:
    """Runs the gateway's modules with the simulated surroundings, and restores them at the end."""
    with contextlib.ExitStack() as undo:
        for module, name, double in (
            (app.database.engines, "create_async_engine", database.engine),
            (app.runtime, "open_redis", lambda _: doubles.Redis(weather, machines.ring)),
            (app.runtime, "open_object_store", lambda _: doubles.Store(cloud)),
            (app.runtime, "Egress", doubles.egress_of(cloud)),
            (app.upstreams.see2ai.client, "See2aiClient", see2ai_of(upstream)),
            (CircuitBreaker.__init__, "__defaults__", _with_virtual_clock(CircuitBreaker.__init__.__defaults__)),
            (rehost, "inspect_image", cloud.inspect),
            (rehost, "make_thumbnail", cloud.thumbnail),
            (prepare, "anyio", SimpleNamespace(open_file=doubles.open_file)),
            (secrets, "randbelow", random.randrange),
            (tempfile, "tempdir", str(workshop())),
            (transitions, "before_step", _watched_before_step(weather)),
            (execute, "_run_step", _watched_step(weather)),
            (finish, "datetime", SimpleNamespace(now=lambda _: database.now())),
            (app.engine.runner, "has_due", _spared_poll(machines)),
            (app.engine.runner._Run, "_can_continue", _watched_pools(weather)),
        ):
            undo.enter_context(_set(module, name, double))
        undo.enter_context(everywhere(state.boottime, boottime))
        undo.enter_context(everywhere(faults.failpoint, weather.reach))
        undo.enter_context(_logs(weather))
        undo.callback(random.setstate, random.getstate())
        yield


@contextlib.contextmanager
def _set(holder: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(holder, name)
    setattr(holder, name, value)
    try:
        yield
    finally:
        setattr(holder, name, before)


@contextlib.contextmanager
def everywhere(old: Any, new: Any) -> Iterator[None]:
    """Replaces the object in every module of the gateway that has a name for it."""
    with contextlib.ExitStack() as undo:
        for title, module in list(sys.modules.items()):
            if title.startswith(("app.", "worker.")):
                for name in [name for name, value in vars(module).items() if value is old]:
                    undo.enter_context(_set(module, name, new))
        yield


def _watched_before_step(weather: Weather) -> Callable[..., Any]:
    real = transitions.before_step

    def before_step(task: Any) -> Any:
        weather.hits[f"step {task.step}"] += 1
        decision = real(task)
        if decision is not None:
            weather.note(f"decision {task.step} → {_name_of(decision)}")
        return decision

    return before_step


def _watched_step(weather: Weather) -> Callable[..., Any]:
    real = execute._run_step

    async def run_step(runtime: Any, task: Any) -> Any:
        step = task.step
        decision = await real(runtime, task)
        weather.note(f"decision {step} → {_name_of(decision)}")
        return decision

    return run_step


def _watched_pools(weather: Weather) -> Callable[..., Any]:
    real = app.engine.runner._Run._can_continue

    def can_continue(run: app.engine.runner._Run, step: str) -> bool:
        may = real(run, step)
        if not may:
            weather.note(f"no slot free for {step}")
        return may

    return can_continue


def _spared_poll(machines: Machines) -> Callable[..., Any]:
    real = app.engine.runner.has_due

    async def has_due(database: Any, filters: Any) -> Any:
        return [False for _ in filters] if machines.is_vain() else await real(database, filters)

    return has_due


def _name_of(decision: Any) -> str:
    if isinstance(decision, Advance):
        return f"Advance {decision.step}"
    return f"Fail {decision.reason.name}" if isinstance(decision, Fail) else type(decision).__name__


@contextlib.contextmanager
def _logs(weather: Weather) -> Iterator[None]:
    """Adds the gateway's log to the trace. A bug that the gateway caught and logged is a violation."""
    before = structlog.get_config()

    def hear(_logger: Any, _method: str, event: dict[str, Any]) -> Any:
        if weather.is_over:
            raise structlog.DropEvent
        name = event.pop("event")
        error = str(event.get("error", ""))
        if name in BUGS:
            weather.bugs.append(f"{name}: {event if name == 'audit_failed' else repr(sys.exc_info()[1])}")
        elif name in {"release_failed", "lease_renewal_failed"} and error and not error.startswith(QUIET):
            weather.bugs.append(f"{name}: {error}")
        weather.hits[f"log {name}"] += 1
        weather.send(f"log {name} {event if name != 'see2ai_submit' else ''}")
        raise structlog.DropEvent

    structlog.configure(processors=[hear], wrapper_class=structlog.BoundLogger, cache_logger_on_first_use=False)
    try:
        yield
    finally:
        structlog.configure(**before)
