"""Tickets authenticate a caller once and within 30 seconds, where a browser cannot send a header (SSE, WebSocket).

A ticket is part of a URL, which may be logged, so it is valid only once. Redis holds its digest and the caller, and
never a credential. The caller is stored with a MAC by the secrets of this installation. So neither another
installation nor anybody else who can write to the same Redis can make a ticket or change its caller.
"""

import asyncio
import hashlib
import hmac
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

from redis.exceptions import RedisError

from app.accounts.authentication import Caller, reauthenticate
from app.accounts.credentials import Claims
from app.errors import Unauthenticated, Unavailable
from app.runtime import Runtime
from app.settings import Settings

TTL_SECONDS = 30
_READ_AGAIN = {"models", "addresses"}
"""Of the caller: what is read from the database when the ticket is used. The address of its issue stays in it."""
REDIS_SECONDS = 1.0
MAX_TICKET_LENGTH = 64


async def make_ticket(runtime: Runtime, caller: Caller) -> str:
    """Creates a ticket. Raises Unavailable without Redis."""
    ticket = secrets.token_urlsafe(24)
    async with _redis_timeout():
        content = json.dumps({name: value for name, value in asdict(caller).items() if name not in _READ_AGAIN})
        mac = _mac(runtime.settings, _secrets(runtime.settings)[0], ticket, content)
        await runtime.redis.set(_key(runtime.settings, ticket), f"{mac} {content}", ex=TTL_SECONDS)
    return ticket


async def redeem_ticket(runtime: Runtime, ticket: str) -> Caller:
    """Uses up the ticket and returns its caller, checked again.

    Raises Unauthenticated if the ticket is unknown, used or not ours, or the caller is no longer valid. GETDEL makes
    sure that only one of several requests gets the caller. A page may use a ticket at another address than that of the
    server that got it: the addresses of an API key are compared with the latter.
    """
    if not 0 < len(ticket) <= MAX_TICKET_LENGTH:
        raise Unauthenticated
    async with _redis_timeout():
        stored: bytes | None = await runtime.redis.getdel(_key(runtime.settings, ticket))
    mac, _, content = (stored or b"").decode(errors="replace").partition(" ")
    macs = [_mac(runtime.settings, secret, ticket, content) for secret in _secrets(runtime.settings)]
    if not any(hmac.compare_digest(mac.encode(), one.encode()) for one in macs):
        raise Unauthenticated
    fields: dict[str, Any] = json.loads(content)
    claims, scopes = fields.pop("claims"), fields.pop("scopes")
    caller = Caller(**fields, scopes=tuple(scopes), claims=claims and Claims(**claims))
    return await reauthenticate(runtime, caller)


def _key(settings: Settings, ticket: str) -> str:
    return settings.redis_name("ticket", hashlib.sha256(ticket.encode(errors="replace")).hexdigest())


def _mac(settings: Settings, secret: str, ticket: str, content: str) -> str:
    message = f"ticket\n{settings.redis_namespace}\n{ticket}\n{content}"
    return hmac.new(secret.encode(), message.encode(errors="replace"), hashlib.sha256).hexdigest()


def _secrets(settings: Settings) -> list[str]:
    """The first makes tickets, all of them verify: as with tokens. Where another service signs, its key counts, too."""
    return [settings.jwt_public_key + settings.jwt_jwks + secret for secret in settings.jwt_secrets or ("",)]


@asynccontextmanager
async def _redis_timeout() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(REDIS_SECONDS):
            yield
    except (RedisError, OSError) as error:
        raise Unavailable from error
