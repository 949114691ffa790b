"""What routes ask for: a desk, where the caller is known, allowed in and not too often there.

One dependency a route, and `async`: FastAPI solves each at a price, and sends plain functions to a thread.
"""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from app.accounts.callers import Caller, identify
from app.errors import Forbidden, Unauthenticated
from app.runtime import Runtime


@dataclass(frozen=True, slots=True)
class Desk:
    """The runtime, and whose request it is."""

    runtime: Runtime
    user_id: int


async def get_runtime(request: Request) -> Runtime:
    """For routes that anybody may ask."""
    runtime: Runtime = request.app.state.runtime
    return runtime


async def get_submit_desk(request: Request) -> Desk:
    desk = await _open_desk(request, "tasks")
    await request.app.state.limits.check("submit", desk.user_id, desk.runtime.settings.submit_rate_per_minute)
    return desk


async def get_task_desk(request: Request) -> Desk:
    return await _open_reading_desk(request, "tasks")


async def get_points_desk(request: Request) -> Desk:
    return await _open_reading_desk(request, "points")


async def _open_reading_desk(request: Request, scope: str) -> Desk:
    desk = await _open_desk(request, scope)
    await request.app.state.limits.check("read", desk.user_id, desk.runtime.settings.read_rate_per_minute)
    return desk


async def _open_desk(request: Request, scope: str) -> Desk:
    runtime: Runtime = request.app.state.runtime
    caller = await _identify(runtime, request)
    if caller.key_id is not None and scope not in caller.scopes:
        raise Forbidden("该密钥无权访问此接口")
    return Desk(runtime, caller.user_id)


async def _identify(runtime: Runtime, request: Request) -> Caller:
    """`Authorization: Bearer <JWT or sk-…>`, or `X-API-Key: sk-…`. Two different ones at once are refused."""
    header, key = request.headers.get("authorization"), request.headers.get("x-api-key")
    kind, _, credential = (header or "").strip().partition(" ")
    if header and kind.lower() != "bearer":
        raise Unauthenticated
    credential = credential.strip()
    if key and credential and key != credential:
        raise Unauthenticated
    return await identify(runtime, credential or key or "")


AnyRuntime = Annotated[Runtime, Depends(get_runtime)]
SubmitDesk = Annotated[Desk, Depends(get_submit_desk)]
TaskDesk = Annotated[Desk, Depends(get_task_desk)]
PointsDesk = Annotated[Desk, Depends(get_points_desk)]
