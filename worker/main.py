"""The worker process: the task runner, the background loops, and ARQ, which is restarted after a Redis outage.

`gateway worker` runs `serve_worker`. `arq worker.main.WorkerSettings` works as well, but there a Redis outage ends the
process, so a supervisor must start it again.
"""

import asyncio
import contextlib
import signal
from typing import Any

import arq.worker
import structlog

from app.aio import cancel_and_wait
from app.catalog.durations import refresh_durations
from app.engine.runner import TaskRunner
from app.jobs.scheduler import Scheduler, periodic_jobs
from app.jobs.webhook_dispatcher import WebhookDispatcher
from app.messaging.redis import dump_json, load_json, open_redis, queue_name
from app.runtime import Runtime, open_runtime
from app.settings import Settings, load_settings
from app.telemetry.logs import configure_logs
from app.upstreams.breaker_monitor import probe_idle_breaker, refresh_breakers
from app.upstreams.see2ai.account import see2ai_client
from worker.jobs import wake_worker

log = structlog.get_logger()

HEALTH_SECONDS = 15
ARQ_POLL_SECONDS = 0.1  # how often ARQ polls Redis for a wakeup
RESTART_DELAY_SECONDS = 1.0


async def run_worker(runtime: Runtime, stop: asyncio.Event) -> None:
    """Works until `stop` is set, then shuts down. It also starts while Redis is unreachable."""
    runner = TaskRunner(runtime)
    background = [*_start_background(runtime), asyncio.create_task(_run_arq(runtime, runner))]
    work = asyncio.create_task(runner.run())
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([work, stopped], return_when=asyncio.FIRST_COMPLETED)
        runner.stop()
        await work
    finally:
        await cancel_and_wait(*background, stopped)


def _start_background(runtime: Runtime) -> "list[asyncio.Task[None]]":
    """Starts the loops that a worker runs besides tasks. Each loop continues after an error."""
    return [
        asyncio.create_task(refresh_breakers(runtime.database, runtime.breakers)),
        asyncio.create_task(
            probe_idle_breaker(
                runtime.database, runtime.breakers["see2ai"], see2ai_client(runtime.upstreams), runtime.actions
            )
        ),
        asyncio.create_task(refresh_durations(runtime)),
        asyncio.create_task(Scheduler(runtime, periodic_jobs(runtime.settings)).run()),
        asyncio.create_task(WebhookDispatcher(runtime).run()),
    ]


async def _run_arq(runtime: Runtime, runner: TaskRunner) -> None:
    """Runs ARQ until it is cancelled. ARQ's loop ends with the first error of Redis, so this starts it again."""
    # ARQ logs Redis' INFO at every start. The embedded Redis has no INFO, and operators do not need it.
    setattr(arq.worker, "log_redis_info", _noop)  # noqa: B010
    while True:
        worker = arq.worker.Worker(
            redis_pool=runtime.redis, ctx={"runner": runner}, handle_signals=False, **_options(runtime.settings)
        )
        try:
            await worker.async_run()
        except Exception as error:
            log.warning("arq_restarted", error=repr(error)[:200])
        finally:
            await cancel_and_wait(*worker.tasks.values())
        await asyncio.sleep(RESTART_DELAY_SECONDS)


async def _noop(*_: Any) -> None: ...


def _options(settings: Settings) -> dict[str, Any]:
    return {
        "functions": [wake_worker],
        "queue_name": queue_name(settings),
        "job_serializer": dump_json,
        "job_deserializer": load_json,
        "keep_result": 0,
        "job_timeout": 5,
        "max_tries": 1,
        "poll_delay": ARQ_POLL_SECONDS,
        "health_check_interval": HEALTH_SECONDS,
        "log_results": False,
    }


async def serve_worker(settings: Settings) -> None:
    """The process of `gateway worker`. It works until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with open_runtime(settings) as runtime:
        where = {"database": settings.full_database_url, "redis": settings.redis_url}
        log.info("worker_started", **where, redis_prefix=settings.redis_namespace)
        await run_worker(runtime, stop)
    log.info("worker_stopped")


# ------------------------------------------------------------------ `arq worker.main.WorkerSettings`


async def _start(ctx: dict[str, Any]) -> None:
    settings = load_settings()
    configure_logs(settings)
    ctx["stack"] = contextlib.AsyncExitStack()
    runtime = await ctx["stack"].enter_async_context(open_runtime(settings))
    ctx["runner"] = TaskRunner(runtime)
    ctx["work"] = asyncio.create_task(ctx["runner"].run())
    ctx["background"] = _start_background(runtime)


async def _stop(ctx: dict[str, Any]) -> None:
    ctx["runner"].stop()
    await ctx["work"]
    await cancel_and_wait(*ctx["background"])
    await ctx["stack"].aclose()


def _arq_settings() -> type:
    """The settings class. ARQ reads only the class's own attributes, so no base class can hold the options."""
    settings = load_settings()
    process = {"redis_pool": open_redis(settings), "on_startup": _start, "on_shutdown": _stop}
    return type("WorkerSettings", (), _options(settings) | process)


def __getattr__(name: str) -> Any:
    """Builds `WorkerSettings` on access, because the settings are read from the environment."""
    if name == "WorkerSettings":
        return _arq_settings()
    raise AttributeError(name)
