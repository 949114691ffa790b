"""Tickets authenticate a caller once and within 30 seconds, where a browser cannot send a header (SSE, WebSocket).

A ticket is part of a URL, which may be logged, so it is valid only once. Redis holds its digest and the caller, and
never a credential.
"""

import asyncio
import hashlib
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

TTL_SECONDS = 30
REDIS_SECONDS = 1.0
MAX_TICKET_LENGTH = 64


async def make_ticket(runtime: Runtime, caller: Caller) -> str:
    """Creates a ticket. Raises Unavailable without Redis."""
    ticket = secrets.token_urlsafe(24)
    async with _redis_timeout():
        await runtime.redis.set(_key(ticket), json.dumps(asdict(caller)), ex=TTL_SECONDS)
    return ticket


async def redeem_ticket(runtime: Runtime, ticket: str) -> Caller:
    """Uses up the ticket and returns its caller, checked again.

    Raises Unauthenticated if the ticket is unknown or used, or the caller is no longer valid. GETDEL makes sure that
    only one of several requests gets the caller.
    """
    if not 0 < len(ticket) <= MAX_TICKET_LENGTH:
        raise Unauthenticated
    async with _redis_timeout():
        stored = await runtime.redis.getdel(_key(ticket))
    if stored is None:
        raise Unauthenticated
    fields: dict[str, Any] = json.loads(stored)
    claims, scopes = fields.pop("claims"), fields.pop("scopes")
    caller = Caller(**fields, scopes=tuple(scopes), claims=claims and Claims(**claims))
    return await reauthenticate(runtime, caller)


def _key(ticket: str) -> str:
    return "gateway:ticket:" + hashlib.sha256(ticket.encode(errors="replace")).hexdigest()


@asynccontextmanager
async def _redis_timeout() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(REDIS_SECONDS):
            yield
    except (RedisError, OSError) as error:
        raise Unavailable from error
