"""Access checks of routes: each route depends on one `Access`, which gives it a `RequestContext` or refuses.

`Access` is async because FastAPI runs plain functions in a thread.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import Depends, Request

from app.accounts.api_keys import ADMIN_SCOPE
from app.accounts.authentication import Caller, authenticate
from app.accounts.tickets import redeem_ticket
from app.api.rate_limits import Limit
from app.errors import Forbidden, Unauthenticated
from app.runtime import Runtime

Scope = Literal["tasks", "points", "admin"]


@dataclass(frozen=True, slots=True)
class RequestContext:
    """The runtime and the authenticated caller of one request."""

    runtime: Runtime
    caller: Caller

    @property
    def user_id(self) -> int:
        return self.caller.user_id


class Access:
    """The dependency of a route: authenticates the caller, checks the scope, then counts the request.

    `limit` names the rate limit; each limit has its own counter. With `accepts_ticket`, `?ticket=` replaces the
    header, because browsers cannot send headers when they open a stream.
    """

    def __init__(self, *, scope: Scope, limit: Limit, accepts_ticket: bool = False) -> None:
        self.scope = scope
        self.limit = limit
        self._accepts_ticket = accepts_ticket

    async def __call__(self, request: Request) -> RequestContext:
        runtime: Runtime = request.app.state.runtime
        caller = await self._authenticate(runtime, request)
        check_scope(caller, self.scope)
        await request.app.state.rate_limiter.check(self.limit, caller.user_id)
        return RequestContext(runtime, caller)

    async def _authenticate(self, runtime: Runtime, request: Request) -> Caller:
        ticket = request.query_params.get("ticket") if self._accepts_ticket else None
        if ticket is not None:
            return await redeem_ticket(runtime, ticket)
        return await authenticate(runtime, _credential(request))


def check_scope(caller: Caller, scope: Scope) -> None:
    """Raises Forbidden where the caller's API key lacks the scope. `admin` also needs a user of role admin."""
    if scope == ADMIN_SCOPE and (caller.role != "admin" or not caller.has_scope(scope)):
        raise Forbidden
    if not caller.has_scope(scope):
        raise Forbidden("该密钥无权访问此接口")


def _credential(request: Request) -> str:
    """From `Authorization: Bearer <JWT or sk-…>` or `X-API-Key: sk-…`. Raises Unauthenticated where the two differ."""
    header, key = request.headers.get("authorization"), request.headers.get("x-api-key")
    scheme, _, credential = (header or "").strip().partition(" ")
    if header and scheme.lower() != "bearer":
        raise Unauthenticated
    credential = credential.strip()
    if key and credential and key != credential:
        raise Unauthenticated
    return credential or key or ""


async def get_runtime(request: Request) -> Runtime:
    runtime: Runtime = request.app.state.runtime
    return runtime


PublicRuntime = Annotated[Runtime, Depends(get_runtime)]
"""For routes that need no credential."""
