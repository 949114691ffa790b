"""The worker process: ARQ for the bell, the stepper for the work, a supervisor so that Redis may come and go.

`gateway worker` runs `run_worker`. `arq worker.main.WorkerSettings` works as well; there a Redis outage ends the
process, as ARQ has it, and whatever supervises processes must start it again.
"""

import asyncio
import contextlib
import signal
from typing import Any

import arq.worker
import structlog
from arq.connections import RedisSettings

from app.aio import cancel_and_wait
from app.catalog.durations import refresh_durations
from app.engine.runner import TaskRunner
from app.jobs.scheduler import Scheduler, periodic_jobs
from app.jobs.webhook_dispatcher import WebhookDispatcher
from app.messaging.redis import QUEUE, dump_json, load_json
from app.runtime import Runtime, open_runtime
from app.settings import Settings, load_settings
from app.telemetry.logs import configure_logs
from app.upstreams.breaker_monitor import probe_idle_breaker, refresh_breakers
from app.upstreams.see2ai.account import see2ai_client
from worker.jobs import wake_worker

log = structlog.get_logger()

HEALTH_SECONDS = 15
ARQ_POLL_SECONDS = 0.1  # how often ARQ looks for a bell
RESTART_SECONDS = 1.0


async def run_worker(runtime: Runtime, stop: asyncio.Event) -> None:
    """Works until `stop` is set, then winds down. Redis may be away from the start."""
    runner = TaskRunner(runtime)
    beside = [*_start_background(runtime), asyncio.create_task(_run_arq(runtime, runner))]
    work = asyncio.create_task(runner.run())
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([work, stopped], return_when=asyncio.FIRST_COMPLETED)
        runner.stop()
        await work
    finally:
        await cancel_and_wait(*beside, stopped)


def _start_background(runtime: Runtime) -> "list[asyncio.Task[None]]":
    """What a worker does beside the tasks. Each goes on by itself after whatever goes wrong in it."""
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
    """ARQ's loop ends with the first hiccup of Redis: it is started again for as long as the stepper works."""
    # ARQ logs Redis' INFO at every start; the embedded Redis has none, and it tells an operator nothing new.
    setattr(arq.worker, "log_redis_info", _noop)  # noqa: B010
    while True:
        worker = arq.worker.Worker(
            redis_pool=runtime.redis, ctx={"stepper": runner}, handle_signals=False, **_options()
        )
        try:
            await worker.async_run()
        except Exception as error:  # whatever ARQ stumbles over, it is not worth going deaf for
            log.warning("bell_unheard", error=repr(error)[:200])
        finally:
            for task in worker.tasks.values():
                task.cancel()
        await asyncio.sleep(RESTART_SECONDS)


async def _noop(*_: Any) -> None: ...


def _options() -> dict[str, Any]:
    return {
        "functions": [wake_worker],
        "queue_name": QUEUE,
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
    """The whole process of `gateway worker`: until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with open_runtime(settings) as runtime:
        log.info("worker_started", database=settings.database_url, redis=settings.redis_url)
        await run_worker(runtime, stop)
    log.info("worker_stopped")


# ------------------------------------------------------------------ `arq worker.main.WorkerSettings`


async def _start(ctx: dict[str, Any]) -> None:
    settings = load_settings()
    configure_logs(settings)
    ctx["stack"] = contextlib.AsyncExitStack()
    runtime = await ctx["stack"].enter_async_context(open_runtime(settings))
    ctx["stepper"] = TaskRunner(runtime)
    ctx["work"] = asyncio.create_task(ctx["stepper"].run())
    ctx["beside"] = _start_background(runtime)


async def _stop(ctx: dict[str, Any]) -> None:
    ctx["stepper"].stop()
    await ctx["work"]
    await cancel_and_wait(*ctx["beside"])
    await ctx["stack"].aclose()


def _arq_settings() -> type:
    """ARQ reads a class' own attributes only, so it is made whole, and only when asked for."""
    own = {
        "redis_settings": RedisSettings.from_dsn(load_settings().redis_url),
        "on_startup": _start,
        "on_shutdown": _stop,
    }
    return type("WorkerSettings", (), _options() | own)


def __getattr__(name: str) -> Any:
    if name == "WorkerSettings":
        return _arq_settings()
    raise AttributeError(name)
