"""Virtual time, and processes that can be frozen or killed between any two of their steps.

The loop never waits: when nothing is ready, it sets the time to the next timer. Every step of a coroutine belongs to
the process in whose context its task was created. The steps of a frozen process wait until it continues. Those of a
killed process never run: no `except`, no `finally`, no last write, as after SIGKILL.
"""

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any

MAX_STEPS = 300_000
MAX_STANDSTILL = 30_000


class Stuck(Exception):
    """The simulation cannot continue: nothing is scheduled, or it repeats steps while the time stands still."""


class Process:
    """One operating system process: an API server, a worker, or an operator's command."""

    def __init__(self, name: str, boottime: float) -> None:
        self.name = name
        self.boot_offset = boottime
        self.is_frozen = False
        self.is_dead = False
        self.freezes = 0
        self.wait_for_upstream: list[asyncio.Handle] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.context: Context = copy_context()
        self.context.run(PROCESS.set, self)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return asyncio.get_running_loop().create_task(work, context=self.context.copy())

    def __repr__(self) -> str:
        return self.name


PROCESS: ContextVar[Process | None] = ContextVar("process", default=None)


class VirtualLoop(asyncio.BaseEventLoop):
    """asyncio's own loop, but with a virtual clock, without a selector and without threads."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._clock_resolution = 1e-9
        self._ready: deque[asyncio.Handle]
        self._scheduled: list[asyncio.TimerHandle]
        self.steps = 0
        self._still = 0
        self.is_within_freeze = False
        self.complaints: list[str] = []
        self.set_exception_handler(lambda _, context: self.complaints.append(f"{context}"))
        self.set_task_factory(_remember_task)

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        ready, scheduled = self._ready, self._scheduled
        while scheduled and scheduled[0]._cancelled:
            self._timer_cancelled_count -= 1
            heapq.heappop(scheduled)._scheduled = False
        if not ready:
            if not scheduled:
                raise Stuck("nothing will ever happen again")
            self._now, self._still = max(self._now, scheduled[0]._when), 0
        while scheduled and scheduled[0]._when <= self._now:
            handle = heapq.heappop(scheduled)
            handle._scheduled = False
            ready.append(handle)
        todo = len(ready)
        self.steps += todo
        self._still += todo
        if self.steps > MAX_STEPS or self._still > MAX_STANDSTILL:
            raise Stuck(f"{self.steps} steps, {self._still} of them at one and the same time")
        for _ in range(todo):
            if not ready:  # another call of this method ran them, within freeze_here
                return
            handle = ready.popleft()
            if handle._cancelled:
                continue
            process = handle._context.get(PROCESS)
            if process is not None and (process.is_frozen or process.is_dead):
                process.wait_for_upstream.append(handle)
            else:
                handle._run()

    def freeze_here(self, process: Process) -> None:
        """Freezes the process in the middle of a step. Returns when the process continues or is killed."""
        task = asyncio.current_task(self)
        assert task is not None
        asyncio.tasks._leave_task(self, task)
        self.is_within_freeze = True
        try:
            while process.is_frozen and not process.is_dead:
                self._run_once()
        finally:
            self.is_within_freeze = False
            asyncio.tasks._enter_task(self, task)

    def thaw(self, process: Process) -> None:
        """Continues a frozen process. Also a killed one, at the end of a run, so that its coroutines can be closed."""
        process.is_frozen = process.is_dead = False
        wait_for_upstream, process.wait_for_upstream = process.wait_for_upstream, []
        self._ready.extend(wait_for_upstream)

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(self, _executor: Any, work: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """Runs the work at once, without a thread and in no time."""
        future = self.create_future()
        try:
            future.set_result(work(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def _process_events(self, _events: Any) -> None: ...

    def _write_to_self(self) -> None: ...


def _remember_task(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
    task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **options)
    process = (options.get("context") or copy_context()).get(PROCESS)
    if process is not None:
        process.tasks = [one for one in process.tasks if not one.done()] if len(process.tasks) > 200 else process.tasks
        process.tasks.append(task)
    return task
