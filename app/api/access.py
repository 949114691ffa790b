"""What routes ask for: a desk, where the caller is known, allowed in and not too often there.

One dependency a route, and `async`: FastAPI solves each at a price, and sends plain functions to a thread.
"""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from app.accounts.api_keys import ADMIN_SCOPE
from app.accounts.authentication import Caller, authenticate
from app.accounts.tickets import redeem_ticket
from app.errors import Forbidden, Unauthenticated
from app.runtime import Runtime

REDEEMS_A_MINUTE = 10
WEBHOOK_TESTS_A_MINUTE = 10


@dataclass(frozen=True, slots=True)
class RequestContext:
    """The runtime, and whose request it is."""

    runtime: Runtime
    caller: Caller

    @property
    def user_id(self) -> int:
        return self.caller.user_id


async def get_runtime(request: Request) -> Runtime:
    """For routes that anybody may ask."""
    runtime: Runtime = request.app.state.runtime
    return runtime


async def get_submit_desk(request: Request) -> RequestContext:
    context = await _open_desk(request, "tasks")
    await request.app.state.limits.check("submit", context.user_id, context.runtime.settings.submit_rate_per_minute)
    return context


async def get_upload_desk(request: Request) -> RequestContext:
    """As many a minute as submits, and counted apart: a task may need several files."""
    context = await _open_desk(request, "tasks")
    await request.app.state.limits.check("upload", context.user_id, context.runtime.settings.submit_rate_per_minute)
    return context


async def get_task_desk(request: Request) -> RequestContext:
    return await _open_reading_desk(request, "tasks")


async def get_stream_desk(request: Request) -> RequestContext:
    """As for reading tasks; `?ticket=` stands in for a header where none can be sent."""
    ticket = request.query_params.get("ticket")
    if ticket is None:
        return await _open_reading_desk(request, "tasks")
    runtime: Runtime = request.app.state.runtime
    caller = await redeem_ticket(runtime, ticket)
    await request.app.state.limits.check("read", caller.user_id, runtime.settings.read_rate_per_minute)
    return RequestContext(runtime, caller)


async def get_points_desk(request: Request) -> RequestContext:
    return await _open_reading_desk(request, "points")


async def get_redeem_desk(request: Request) -> RequestContext:
    """Counted apart, and strictly: nobody has many codes, but somebody may try many."""
    context = await _open_desk(request, "points")
    await request.app.state.limits.check("redeem", context.user_id, REDEEMS_A_MINUTE)
    return context


async def get_webhook_test_desk(request: Request) -> RequestContext:
    """Counted apart, and strictly: each makes the gateway call an address of the caller's choice."""
    context = await _open_desk(request, "tasks")
    await request.app.state.limits.check("webhook-test", context.user_id, WEBHOOK_TESTS_A_MINUTE)
    return context


async def get_admin_desk(request: Request) -> RequestContext:
    """A user of role admin; a key of theirs only where it was made for this. Everybody else is forbidden."""
    runtime: Runtime = request.app.state.runtime
    caller = await _identify(runtime, request)
    if caller.role != "admin" or (caller.key_id is not None and ADMIN_SCOPE not in caller.scopes):
        raise Forbidden
    await request.app.state.limits.check("admin", caller.user_id, runtime.settings.read_rate_per_minute)
    return RequestContext(runtime, caller)


async def _open_reading_desk(request: Request, scope: str) -> RequestContext:
    context = await _open_desk(request, scope)
    await request.app.state.limits.check("read", context.user_id, context.runtime.settings.read_rate_per_minute)
    return context


async def _open_desk(request: Request, scope: str) -> RequestContext:
    runtime: Runtime = request.app.state.runtime
    caller = await _identify(runtime, request)
    check_scope(caller, scope)
    return RequestContext(runtime, caller)


def check_scope(caller: Caller, scope: str) -> None:
    if not caller.has_scope(scope):
        raise Forbidden("该密钥无权访问此接口")


async def _identify(runtime: Runtime, request: Request) -> Caller:
    """`Authorization: Bearer <JWT or sk-…>`, or `X-API-Key: sk-…`. Two different ones at once are refused."""
    header, key = request.headers.get("authorization"), request.headers.get("x-api-key")
    kind, _, credential = (header or "").strip().partition(" ")
    if header and kind.lower() != "bearer":
        raise Unauthenticated
    credential = credential.strip()
    if key and credential and key != credential:
        raise Unauthenticated
    return await authenticate(runtime, credential or key or "")


AnyRuntime = Annotated[Runtime, Depends(get_runtime)]
SubmitDesk = Annotated[RequestContext, Depends(get_submit_desk)]
UploadDesk = Annotated[RequestContext, Depends(get_upload_desk)]
TaskDesk = Annotated[RequestContext, Depends(get_task_desk)]
StreamDesk = Annotated[RequestContext, Depends(get_stream_desk)]
PointsDesk = Annotated[RequestContext, Depends(get_points_desk)]
RedeemDesk = Annotated[RequestContext, Depends(get_redeem_desk)]
WebhookTestDesk = Annotated[RequestContext, Depends(get_webhook_test_desk)]
AdminDesk = Annotated[RequestContext, Depends(get_admin_desk)]
