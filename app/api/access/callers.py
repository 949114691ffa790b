"""Access checks of routes: each route depends on one `Access`, which gives it a `RequestContext` or refuses."""

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import Depends, Request

from app.accounts.authentication import Caller, authenticate
from app.accounts.keys.scopes import ADMIN_SCOPE
from app.accounts.tickets import redeem_ticket
from app.aio import acting_user
from app.api.access.addresses import client_address
from app.api.access.rate_limits import Limit
from app.errors import Forbidden, Unauthenticated
from app.runtime import Runtime
from app.settings import Settings

Scope = Literal["tasks:submit", "tasks:read", "points:read", "points", "files:write", "webhooks", "admin", "account"]
"""`account`: no API key has it, whatever its scopes, so a key can neither make keys nor change them. `points`: a JWT or
an older key, because none of the scopes of new keys redeems a code.
"""
OWN_SCOPES = ("tasks:submit", "tasks:read", "points:read", "points", "files:write", "webhooks", "account")
"""The scopes of a user who has logged in."""
CONTEXT = "gateway.context"
"""In the ASGI scope of a request: the `RequestContext`, once an `Access` has let the caller in."""
HEADERS = "gateway.headers"
"""In the ASGI scope of a request: what `first_headers` returns."""


@dataclass(frozen=True, slots=True)
class RequestContext:
    """The runtime and the authenticated caller of one request."""

    runtime: Runtime
    caller: Caller
    request_id: str = ""

    @property
    def user_id(self) -> int:
        return self.caller.user_id


class Access:
    """The dependency of a route: authenticates the caller, checks the scope, then counts the request.

    `limit` names the rate limit; each limit has its own counter. Without a scope any credential will do. With
    `accepts_ticket`, `?ticket=` replaces the header, because browsers cannot send headers when they open a stream.
    """

    def __init__(self, *, scope: Scope | None, limit: Limit, accepts_ticket: bool = False) -> None:
        self.scope = scope
        self.limit = limit
        self._accepts_ticket = accepts_ticket

    async def __call__(self, request: Request) -> RequestContext:
        """Once for each request, before its body is read (`DirectRoute`)."""
        state = request.app.state
        runtime: Runtime = state.runtime
        caller = await self._authenticate(runtime, request)
        acting_user.set(caller.user_id)
        check_scope(caller, self.scope)
        await state.rate_limiter.check(self.limit, caller.user_id)
        context = request.scope[CONTEXT] = RequestContext(runtime, caller, request.scope.get("request_id", ""))
        return context

    async def _authenticate(self, runtime: Runtime, request: Request) -> Caller:
        ticket = request.query_params.get("ticket") if self._accepts_ticket else None
        if ticket is not None:
            return await redeem_ticket(runtime, ticket)
        caller = await authenticate(runtime, _credential(first_headers(request.scope)))
        return with_address(caller, request.scope, runtime.settings)


def with_address(caller: Caller, scope: Mapping[str, Any], settings: Settings) -> Caller:
    """The caller with the client address, where it matters: at an API key. Raises Forbidden if it is not allowed."""
    if caller.key_id is None:
        return caller
    address = client_address(scope, settings.trusted_networks)
    return caller.at_address("" if address is None else str(address))


def user_of(scope: Mapping[str, Any]) -> int | None:
    """The user of a request that an `Access` has let in."""
    context: RequestContext | None = scope.get(CONTEXT)
    return None if context is None else context.user_id


def first_headers(scope: MutableMapping[str, Any]) -> dict[str, str]:
    """The first value of each header, by its name in lower case. Starlette searches all headers for each name."""
    headers: dict[str, str] | None = scope.get(HEADERS)
    if headers is None:
        pairs = reversed(scope["headers"])
        headers = scope[HEADERS] = {name.decode("latin-1"): value.decode("latin-1") for name, value in pairs}
    return headers


def check_scope(caller: Caller, scope: Scope | None) -> None:
    """Raises Forbidden where the caller's API key lacks the scope. `admin` also needs a user of role admin."""
    if scope is None:
        return
    if scope == ADMIN_SCOPE and (caller.role != "admin" or not caller.has_scope(scope)):
        raise Forbidden
    if scope == ADMIN_SCOPE and caller.lacks_second_factor:
        raise Forbidden("管理员须先启用动态验证码，请联系平台方")
    if scope == "account" and caller.key_id is not None:
        raise Forbidden("此接口须登录后使用（JWT），不接受 API Key")
    if not caller.has_scope(scope):
        raise Forbidden("该密钥无权访问此接口")


def _credential(headers: Mapping[str, str]) -> str:
    """From `Authorization: Bearer <JWT or sk-…>` or `X-API-Key: sk-…`. Raises Unauthenticated where the two differ."""
    header, key = headers.get("authorization", ""), headers.get("x-api-key", "")
    scheme, _, credential = header.strip().partition(" ")
    if header and scheme.lower() != "bearer":
        raise Unauthenticated
    credential = credential.strip()
    if key and credential and key != credential:
        raise Unauthenticated
    return credential or key


async def get_runtime(request: Request) -> Runtime:
    runtime: Runtime = request.app.state.runtime
    return runtime


PublicRuntime = Annotated[Runtime, Depends(get_runtime)]
"""For routes that need no credential."""
