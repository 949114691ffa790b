"""`/healthz` says that the process lives; `/readyz` whether it can serve: the database decides, the rest warns."""

import asyncio

from fastapi import APIRouter
from redis.exceptions import RedisError

from app.api.deps import AnyRuntime
from app.api.wire import Envelope
from app.database import ping

router = APIRouter(tags=["健康检查"])

REDIS_SECONDS = 1.0


@router.get("/healthz", summary="进程存活")
async def healthz() -> Envelope[dict[str, str]]:
    return Envelope(data={"status": "ok"})


@router.get("/readyz", summary="可否服务")
async def readyz(runtime: AnyRuntime) -> Envelope[dict[str, str]]:
    """503 where the database is away. Redis away is a warning: submits still answer and tasks still end."""
    await ping(runtime.sessions)
    try:
        async with asyncio.timeout(REDIS_SECONDS):
            await runtime.redis.ping()
        redis = "ok"
    except (RedisError, OSError):
        redis = "warning: unreachable"
    return Envelope(data={"status": "ok", "database": "ok", "redis": redis})
