"""`/healthz` says that the process lives. `/readyz` says whether it can serve."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI, Request
from redis.exceptions import RedisError, ResponseError

from app.aio import cancel_and_wait
from app.api.access.callers import PublicRuntime
from app.api.schemas import Envelope
from app.catalog.durations import refresh_durations
from app.database import ping
from app.runtime import Runtime
from app.upstreams.breaker_monitor import refresh_breakers
from app.upstreams.see2ai.account import AccountMonitor, AccountStatus, see2ai_client

REDIS_SECONDS = 1.0
READY_KEY_SECONDS = 60
SEE2AI_SECONDS = 0.5  # supervisors often wait one second, and a slow SEE2AI must not make the gateway look dead


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Runs inside the application's lifespan, which has opened the runtime."""
    runtime: Runtime = app.state.runtime
    monitor = app.state.account_monitor = AccountMonitor(see2ai_client(runtime.upstreams))
    if runtime.settings.metrics_port and runtime.settings.see2ai_api_key:
        monitor.start_polling()
    breakers = asyncio.create_task(refresh_breakers(runtime.database, runtime.breakers))
    durations = asyncio.create_task(refresh_durations(runtime))
    app.state.readiness = None
    yield
    await asyncio.gather(cancel_and_wait(breakers, durations), monitor.close())


router = APIRouter(tags=["健康检查"], lifespan=lifespan)


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", summary="进程存活")
async def healthz() -> Envelope[dict[str, str]]:
    return Envelope(data={"status": "ok"})


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", summary="可否服务")
async def readyz(request: Request, runtime: PublicRuntime) -> Envelope[dict[str, str]]:
    """503 while the database is unreachable or has another schema. Problems with Redis or SEE2AI are warnings.

    Without Redis submits and tasks still work. Tasks wait for SEE2AI, and are refunded when their deadline passes.
    The route needs no credential, so all requests of a moment share one check.
    """
    state = request.app.state
    if state.readiness is None or state.readiness.done():
        state.readiness = asyncio.create_task(_check(request, runtime))
        # Its callers may be gone; without this, asyncio would report an error that nobody has read.
        state.readiness.add_done_callback(lambda check: check.cancelled() or check.exception())
    return Envelope(data=await asyncio.shield(state.readiness))


async def _check(request: Request, runtime: Runtime) -> dict[str, str]:
    await runtime.database.verify()
    await ping(runtime.database)
    redis, see2ai = await asyncio.gather(_check_redis(runtime), _check_see2ai(runtime, request))
    breakers = _check_breakers(runtime)
    return {"status": "ok", "database": "ok", "redis": redis, "see2ai": see2ai, "circuit": breakers}


def _check_breakers(runtime: Runtime) -> str:
    """The breakers' state as the workers last shared it. It calls no provider."""
    breakers = sorted(runtime.breakers.items())
    opened = [f"{name} for {breaker.open_seconds():.0f} s" for name, breaker in breakers if breaker.is_open]
    return f"warning: open ({', '.join(opened)})" if opened else "ok"


async def _check_redis(runtime: Runtime) -> str:
    """Tries a write, because a Redis that is full, or a replica since a failover, answers every PING."""
    try:
        async with asyncio.timeout(REDIS_SECONDS):
            await runtime.redis.set(runtime.settings.redis_name("ready"), "1", ex=READY_KEY_SECONDS)
    except ResponseError:
        return "warning: refuses writes"
    except (RedisError, OSError):
        return "warning: unreachable"
    return "ok"


async def _check_see2ai(runtime: Runtime, request: Request) -> str:
    """The account's status without its name and balance, because the route is public."""
    if not runtime.settings.see2ai_api_key:
        return "warning: no key"
    monitor: AccountMonitor = request.app.state.account_monitor
    account = await monitor.get(SEE2AI_SECONDS)
    if account is None:
        return "warning: no answer yet"
    return "ok" if account.status is AccountStatus.USABLE else f"warning: {account.status}"
