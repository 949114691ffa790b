"""The processes of a seed, an API server and some workers: starts, stops, freezes, kills and restarts them."""

import asyncio
import math
from collections import Counter
from collections.abc import Callable

from app.engine.runner import TaskRunner
from app.runtime import Runtime, open_runtime
from app.settings import Settings
from tests.simulator.clock import PROCESS, Process
from tests.simulator.database import Database
from tests.simulator.weather import Weather, loop
from worker.main import _start_background

IDLE_SECONDS = 2.0
SPARED_IDLE_SECONDS = 30.0


class Machines:
    """`living` are the running processes by name. `all` are those of the whole seed, also the killed ones."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        weather: Weather,
        send: Callable[[str], None],
        *,
        spares_polls: bool,
        has_jobs: bool,
        slots: int | None,
    ) -> None:
        self.settings = settings
        self.database = database
        self.weather = weather
        self.send = send
        self.all: list[Process] = []
        self.living: dict[str, Process] = {}
        self.runtimes: dict[str, Runtime] = {}
        self.runners: dict[str, TaskRunner] = {}
        self._starts: Counter[str] = Counter()
        self.spares_polls = spares_polls
        self._has_jobs = has_jobs
        self._slots = slots
        self._next_wakeup = math.inf
        if spares_polls:
            database.on_commit = self._ring_when_due
        weather.on_kill, weather.on_freeze, weather.on_stop = self._kill_this, self._freeze_this, self._stop_this

    def start(self, name: str) -> None:
        if name in self.living or self.database.is_over:
            return
        self._starts[name] += 1
        process = Process(f"{name}.{self._starts[name]}", self.weather.between(0, 1e6))
        self.all.append(process)
        self.living[name] = process
        work = process.spawn(self._serve(name) if name == "api" else self._work(name))
        work.add_done_callback(lambda done: self._ended(name, process, done), context=self.weather.context)

    async def _serve(self, name: str) -> None:
        async with open_runtime(self.settings) as runtime:
            self.runtimes[name] = runtime
            await asyncio.get_running_loop().create_future()

    async def _work(self, name: str) -> None:
        async with open_runtime(self.settings) as runtime:
            idle_seconds = SPARED_IDLE_SECONDS if self.spares_polls else IDLE_SECONDS
            runner = self.runners[name] = TaskRunner(runtime, idle_seconds=idle_seconds)
            if self._slots is not None:
                for pool in runner._pools:
                    pool.size = self._slots
            beside = _start_background(runtime) if self._has_jobs else []
            await runner.run()
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)

    def _ended(self, name: str, process: Process, work: "asyncio.Task[None]") -> None:
        """A worker that got SIGTERM has ended. If it ended by itself, that is a bug."""
        if self.database.is_over:
            return
        error = None if work.cancelled() else work.exception()
        if error is not None:
            self.weather.bugs.append(f"{name} ended with {error!r}")
        self._bring_back(name, process)

    def _bring_back(self, name: str, process: Process) -> None:
        if self.living.get(name) is process:
            del self.living[name]
        self.runners.pop(name, None) if name != "api" else self.runtimes.pop(name, None)
        max_length = 2 if self.weather.place else self.weather.rng.choice([0.2, 2, 15, 40])
        delay = 0.5 if self.weather.is_fair else max_length * self.weather.rng.random()
        asyncio.get_running_loop().call_later(delay, self.start, name, context=self.weather.context)

    def kill(self, process: Process) -> None:
        if process.is_dead:
            return
        self.send(f"{process} is killed")
        process.is_dead = True
        linger = self.weather.rng.choice([0.0, 0.0, 0.0, 3.0])
        asyncio.get_running_loop().call_later(linger, self.database.forget, process, context=self.weather.context)
        self._bring_back(process.name.partition(".")[0], process)

    def _kill_this(self) -> None:
        if (process := PROCESS.get()) is not None:
            self.kill(process)

    def _freeze_this(self, seconds: float) -> None:
        process, clock = PROCESS.get(), asyncio.get_running_loop()
        if process is None or process.is_dead or process.is_frozen:
            return
        self.send(f"{process} freezes for {seconds:.1f} s")
        process.is_frozen = True
        process.freezes += 1
        clock.call_later(seconds, self.thaw, process, process.freezes, context=self.weather.context)
        clock.call_later(
            self.database.patience_seconds, self._tire_of, process, process.freezes, context=self.weather.context
        )

    def thaw(self, process: Process, which: int) -> None:
        if process.is_frozen and not process.is_dead and process.freezes == which:
            self.send(f"{process} thaws")
            loop().thaw(process)

    def _tire_of(self, process: Process, which: int) -> None:
        if process.is_frozen and process.freezes == which:
            self.database.lose_patience(process)

    def _stop_this(self) -> None:
        for name, runner in self.runners.items():
            if self.living.get(name) is PROCESS.get():
                runner.stop()

    def ring(self) -> None:
        if self.runners and not self.database.is_over:
            self.runners[self.weather.rng.choice(sorted(self.runners))].wake()

    def _ring_when_due(self) -> None:
        """Sends a wakeup at the time when a row is due. This saves many idle queries."""
        due, clock = self.database.next_due(), asyncio.get_running_loop()
        if clock.time() < due < self._next_wakeup or (self._next_wakeup < clock.time() and due < math.inf):
            self._next_wakeup = max(due, clock.time()) + self.weather.between(0.002, 0.6)
            clock.call_at(self._next_wakeup, self._ring_now, context=self.weather.context)

    def is_vain(self) -> bool:
        """Whether no row is due, so a query would find nothing. A seed with `spares_polls` then skips the query."""
        return self.spares_polls and self.database.next_due() > asyncio.get_running_loop().time() + 0.001

    def _ring_now(self) -> None:
        self._next_wakeup = math.inf
        self.ring()
        if self.weather.rng.random() < 0.3:
            self.ring()
        self._ring_when_due()

    def are_calm(self) -> bool:
        """Whether no claimed task runs any more, so that a worker that was frozen has done its last write."""
        return not any(runner._running for runner in self.runners.values())
