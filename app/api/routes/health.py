"""`/healthz` says that the process lives; `/readyz` whether it can serve: the database decides, the rest warns."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI, Request
from redis.exceptions import RedisError

from app.aio import cancel_and_wait
from app.api.access import AnyRuntime
from app.api.schemas import Envelope
from app.catalog.durations import refresh_durations
from app.database import ping
from app.runtime import Runtime
from app.upstreams.breaker_monitor import refresh_breakers
from app.upstreams.see2ai.account import AccountMonitor, AccountStatus, see2ai_client

REDIS_SECONDS = 1.0
SEE2AI_SECONDS = 0.5  # a supervisor's own patience is often a second, and SEE2AI is no reason to lose it


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Lives inside the application's own lifespan, which has laid the runtime out by then."""
    runtime: Runtime = app.state.runtime
    watch = app.state.tenant_watch = AccountMonitor(see2ai_client(runtime.upstreams))
    if runtime.settings.metrics_port and runtime.settings.see2ai_api_key:
        watch.start_polling()
    providers = asyncio.create_task(refresh_breakers(runtime.database, runtime.breakers))
    durations = asyncio.create_task(refresh_durations(runtime))
    yield
    await asyncio.gather(cancel_and_wait(providers, durations), watch.close())


router = APIRouter(tags=["健康检查"], lifespan=lifespan)


@router.get("/healthz", summary="进程存活")
async def healthz() -> Envelope[dict[str, str]]:
    return Envelope(data={"status": "ok"})


@router.get("/readyz", summary="可否服务")
async def readyz(request: Request, runtime: AnyRuntime) -> Envelope[dict[str, str]]:
    """503 where the database is away. Redis away is a warning: submits still answer and tasks still end.

    So is all that may be wrong with SEE2AI: tasks wait for it, and end refunded where it does not come back.
    """
    await ping(runtime.database)
    redis, see2ai = await asyncio.gather(_check_redis(runtime), _check_see2ai(runtime, request))
    told = {"status": "ok", "database": "ok", "redis": redis, "see2ai": see2ai, "circuit": _check_breakers(runtime)}
    return Envelope(data=told)


def _check_breakers(runtime: Runtime) -> str:
    """What the workers have found out, at most some seconds ago: no provider is asked here."""
    breakers = sorted(runtime.breakers.items())
    opened = [f"{name} for {breaker.open_seconds():.0f} s" for name, breaker in breakers if breaker.is_open]
    return f"warning: open ({', '.join(opened)})" if opened else "ok"


async def _check_redis(runtime: Runtime) -> str:
    try:
        async with asyncio.timeout(REDIS_SECONDS):
            await runtime.redis.ping()
    except (RedisError, OSError):
        return "warning: unreachable"
    return "ok"


async def _check_see2ai(runtime: Runtime, request: Request) -> str:
    """No name and no figure of the tenant: anybody may ask here."""
    if not runtime.settings.see2ai_api_key:
        return "warning: no key"
    watch: AccountMonitor = request.app.state.tenant_watch
    account = await watch.get(SEE2AI_SECONDS)
    if account is None:
        return "warning: no answer yet"
    return "ok" if account.status is AccountStatus.USABLE else f"warning: {account.status}"
