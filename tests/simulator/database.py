"""One SQLite file behind many simulated connections, with the virtual clock and simulated network faults.

The engines are SQLAlchemy's, opened by the gateway's own code; only the driver is `Line` instead of aiosqlite. A
transaction holds the file's single writer, as BEGIN IMMEDIATE does, until it ends, its process is killed, or its
process has been frozen for longer than the server keeps an idle transaction open.
"""

import asyncio
import math
import re
import sqlite3
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy.engine import URL, Engine
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from tests.simulator.clock import PROCESS, Process
from tests.simulator.weather import Weather

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
THROTTLE_SECONDS = 15.0
_SHIFT = re.compile(r"(-?[0-9.e+-]+) seconds")


class Database:
    """The server: committed state, the connection that holds the writer, and those that wait for it."""

    def __init__(self, path: Path, weather: Weather, patience_seconds: float) -> None:
        self.weather = weather
        self.patience_seconds = patience_seconds
        self.is_away = self.is_over = False
        self.on_commit: Callable[[], None] = lambda: None
        self.holder: Line | None = None
        self._waiting: deque[tuple[Line, asyncio.Future[None]]] = deque()
        self._lines: list[Line] = []
        self._next_due: float | None = None  # until the next COMMIT
        self.raw_writer = self._open(path)
        self.raw_reader = self._open(path)

    def _open(self, path: Path) -> sqlite3.Connection:
        raw = sqlite3.connect(path, isolation_level=None, cached_statements=400)
        raw.create_function("strftime", -1, self._strftime)
        raw.execute("PRAGMA synchronous=OFF")
        raw.execute("PRAGMA foreign_keys=ON")
        return raw

    def now(self) -> datetime:
        return EPOCH + timedelta(seconds=asyncio.get_running_loop().time())

    def _strftime(self, form: str, moment: str, *shifts: str) -> str:
        assert (form, moment) == ("%Y-%m-%d %H:%M:%f", "now")
        when = self.now()
        for shift in shifts:
            if found := _SHIFT.fullmatch(shift):
                when += timedelta(seconds=float(found[1]))
        return when.strftime("%Y-%m-%d %H:%M:%S.") + f"{when.microsecond // 1000:03d}"

    def next_due(self) -> float:
        """When the next unfinished row is due; infinity if there is none."""
        if self._next_due is None:
            ((due,),) = self.poll("SELECT MIN(next_run_at) || '+00:00' FROM tasks WHERE step <> 'done'")
            self._next_due = (datetime.fromisoformat(due) - EPOCH).total_seconds() if due else math.inf
        return self._next_due

    def poll(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Reads committed state for the judge, without simulated time."""
        return self.raw_reader.execute(sql, values).fetchall()

    def engine(self, _url: URL, **options: Any) -> AsyncEngine:
        """Replaces `create_async_engine`. All engines of a run share the compiled statements."""
        template = _template()
        pool = AsyncAdaptedQueuePool(
            lambda: template.dialect.dbapi.connect(async_creator_fn=self._dial),  # type: ignore[union-attr]
            pool_size=options["pool_size"],
            max_overflow=options["max_overflow"],
            timeout=options["pool_timeout"],
        )
        pool._dialect = template.dialect
        engine = Engine(pool, template.dialect, template.url)
        engine._compiled_cache = template._compiled_cache
        return AsyncEngine(engine)

    async def _dial(self) -> "Line":
        if self.is_away:
            await asyncio.sleep(0.01)
            raise OSError("no database there")
        self._lines.append(line := Line(self, PROCESS.get()))
        return line

    async def begin(self, line: "Line") -> None:
        if self.holder is None:
            self._grant(line)
            return
        self._waiting.append((line, future := asyncio.get_running_loop().create_future()))
        try:
            async with asyncio.timeout(THROTTLE_SECONDS):
                await future
        except TimeoutError:
            self.weather.note("db.lock_wait")
            raise sqlite3.OperationalError("database is locked") from None
        finally:
            self._waiting = deque(one for one in self._waiting if one[1] is not future)

    def _grant(self, line: "Line") -> None:
        self.holder = line
        self.raw_writer.execute("BEGIN IMMEDIATE")

    def release(self, line: "Line", how: str) -> None:
        """COMMIT or ROLLBACK. Then the next connection in the queue begins: also a frozen one, never a dead one."""
        if self.holder is not line:
            return
        self.raw_writer.execute(how)
        self.holder = None
        if how == "COMMIT":
            self._next_due = None
            self.on_commit()
        while self._waiting:
            following, future = self._waiting.popleft()
            if not future.done() and not following.is_gone():
                self._grant(following)
                future.set_result(None)
                return

    def forget(self, process: Process) -> None:
        """Closes the connections of a killed process, and rolls back its transaction."""
        for line in self._lines:
            if line.process is process:
                line.cut()
        self._lines = [line for line in self._lines if line.process is not process]

    def lose_patience(self, process: Process) -> None:
        """Ends the transaction of a process that was frozen for longer than the server keeps an idle one open."""
        if self.holder is not None and self.holder.process is process and not self.holder.is_detached:
            self.weather.note("db.idle_transaction_ended")
            self.holder.cut()

    def close(self) -> None:
        self.raw_reader.close()
        self.raw_writer.close()


class Line:
    """A connection with the interface of aiosqlite's, but without a thread and with a simulated network."""

    def __init__(self, database: Database, process: Process | None) -> None:
        self._database = database
        self.process = process
        self.is_cut = False
        self.is_detached = False  # its COMMIT is on its way without it
        self.isolation_level: str | None = None
        # What SQLAlchemy's adapter reads of aiosqlite's connection:
        self._conn = self._tx = self
        self._connection: Any = self  # None once it is closed

    def is_gone(self) -> bool:
        return self.is_cut or (self.process is not None and self.process.is_dead)

    @property
    def in_transaction(self) -> bool:
        return self._database.holder is self

    def cut(self) -> None:
        self.is_cut = True
        if not self.is_detached:
            self._database.release(self, "ROLLBACK")

    def cursor(self) -> "LineCursor":
        return LineCursor(self)

    def put_nowait(self, job: tuple[asyncio.Future[Any], Callable[[], Any]]) -> None:
        job[0].set_result(job[1]())

    async def run(self, sql: str, work: Callable[[sqlite3.Connection], sqlite3.Cursor]) -> sqlite3.Cursor | None:
        if sql.startswith("PRAGMA"):
            return None
        database, is_begin = self._database, sql == "BEGIN IMMEDIATE"
        door = "db.begin" if is_begin else "db.write" if self.in_transaction else "db.read"
        await self._travel(door)
        if is_begin:
            await database.begin(self)
            return None
        raw = database.raw_writer if self.in_transaction else database.raw_reader
        assert self.in_transaction or sql.startswith("SELECT"), f"written outside a transaction: {sql}"
        return work(raw)

    async def _travel(self, door: str) -> None:
        """Sends a request to the server, which may be slow or away, or may have closed the connection."""
        database, weather = self._database, self._database.weather
        if database.is_over:
            raise RuntimeError("the simulation is over")
        await weather.cross(door)
        if weather.strikes("db.hang"):
            await asyncio.sleep(40)
        if weather.strikes("db.slow"):
            await asyncio.sleep(weather.between(1, 9))
        if weather.strikes("db.cut"):
            self.cut()
        if self.is_cut or database.is_away:
            self.cut()
            raise sqlite3.OperationalError("connection closed")
        if door != "db.read" and weather.strikes("db.deadlock"):
            raise sqlite3.OperationalError("database is locked")

    async def commit(self) -> None:
        if self.is_cut:
            raise sqlite3.OperationalError("connection closed")
        if not self.in_transaction:
            return
        database, weather = self._database, self._database.weather
        await self._travel("db.commit")
        if weather.strikes("db.commit_undone"):
            self.cut()
        elif weather.strikes("db.commit_unheard"):
            database.release(self, "COMMIT")
            self.cut()
        elif weather.strikes("db.commit_hangs"):
            database.release(self, "COMMIT")
            await asyncio.sleep(weather.between(11, 25))
        elif weather.strikes("db.commit_late"):
            self.is_detached = True
            asyncio.get_running_loop().call_later(
                weather.between(0.5, 14), database.release, self, "COMMIT", context=weather.context
            )
            self.is_cut = True
            await asyncio.sleep(weather.between(0, 12))
        if self.is_cut:
            raise sqlite3.OperationalError("connection closed")
        database.release(self, "COMMIT")
        await weather.cross("db.committed")

    async def rollback(self) -> None:
        if not self.is_detached:
            self._database.release(self, "ROLLBACK")

    async def set_progress_handler(self, _handler: Callable[[], bool], _steps: int) -> None:
        """A statement takes no time here."""

    async def close(self) -> None:
        self.stop()

    def stop(self) -> None:
        self.cut()
        self._connection = None


class LineCursor:
    """What SQLAlchemy's adapter calls of aiosqlite's cursor. The rows are read when `execute` returns."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._rows: list[Any] = []
        self.description: Any = None
        self.rowcount, self.lastrowid, self.arraysize = -1, None, 1

    async def __aenter__(self) -> "LineCursor":
        return self

    async def execute(self, sql: str, values: Iterable[Any] = ()) -> "LineCursor":
        return self._keep(await self._line.run(sql, lambda raw: raw.execute(sql, tuple(values))))

    async def executemany(self, sql: str, many: Iterable[Iterable[Any]]) -> "LineCursor":
        return self._keep(await self._line.run(sql, lambda raw: raw.executemany(sql, [tuple(one) for one in many])))

    def _keep(self, done: sqlite3.Cursor | None) -> "LineCursor":
        if done is not None:
            self.description, self.rowcount, self.lastrowid = done.description, done.rowcount, done.lastrowid
            self._rows = done.fetchall() if done.description else []
        return self

    async def fetchall(self) -> list[Any]:
        rows, self._rows = self._rows, []
        return rows

    async def close(self) -> None: ...


@cache
def _template() -> Engine:
    """A dialect that has connected to SQLite once, and a cache of compiled statements."""
    engine = create_async_engine("sqlite+aiosqlite://")

    async def meet() -> None:
        async with engine.connect():
            pass
        await engine.dispose()

    _apart(meet)
    return engine.sync_engine


def _apart(work: Callable[[], Awaitable[None]]) -> None:
    """Runs it on a real loop, also while a simulated loop runs."""
    running = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    try:
        asyncio.run(work())  # type: ignore[arg-type]
    finally:
        asyncio._set_running_loop(running)
