"""What routes ask for: the runtime, and who is calling. All `async`: FastAPI sends plain functions to a thread."""

from typing import Annotated

from fastapi import Depends, Request

from app.accounts.callers import Caller, identify
from app.api.limits import Limits
from app.errors import Forbidden, Unauthenticated
from app.runtime import Runtime


async def get_runtime(request: Request) -> Runtime:
    runtime: Runtime = request.app.state.runtime
    return runtime


async def get_limits(request: Request) -> Limits:
    limits: Limits = request.app.state.limits
    return limits


async def get_caller(request: Request) -> Caller:
    """`Authorization: Bearer <JWT or sk-…>`, or `X-API-Key: sk-…`. Two different ones at once are refused."""
    header, key = request.headers.get("authorization"), request.headers.get("x-api-key")
    kind, _, credential = (header or "").strip().partition(" ")
    if header and kind.lower() != "bearer":
        raise Unauthenticated
    credential = credential.strip()
    if key and credential and key != credential:
        raise Unauthenticated
    return await identify(request.app.state.runtime, credential or key or "")


async def get_task_caller(caller: Annotated[Caller, Depends(get_caller)]) -> Caller:
    return _within(caller, "tasks")


async def get_points_caller(caller: Annotated[Caller, Depends(get_caller)]) -> Caller:
    return _within(caller, "points")


def _within(caller: Caller, scope: str) -> Caller:
    if caller.key_id is not None and scope not in caller.scopes:
        raise Forbidden("该密钥无权访问此接口")
    return caller


RuntimeDep = Annotated[Runtime, Depends(get_runtime)]
LimitsDep = Annotated[Limits, Depends(get_limits)]
AnyCaller = Annotated[Caller, Depends(get_caller)]
TaskCaller = Annotated[Caller, Depends(get_task_caller)]
PointsCaller = Annotated[Caller, Depends(get_points_caller)]
