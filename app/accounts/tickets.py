"""Tickets: a caller for thirty seconds and one use, for doors where a browser cannot send a header.

A ticket stands in URLs, which end up in logs; so it is worth nothing once it was used. Redis keeps a digest of it and
who it is for, never a credential.
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
    """A new ticket, in clear for the only time. Unavailable without Redis."""
    ticket = secrets.token_urlsafe(24)
    async with _redis_timeout():
        await runtime.redis.set(_key(ticket), json.dumps(asdict(caller)), ex=TTL_SECONDS)
    return ticket


async def redeem_ticket(runtime: Runtime, ticket: str) -> Caller:
    """Who it was made for, as they stand now. Of any number who try, one has it; Unauthenticated to all others."""
    if not 0 < len(ticket) <= MAX_TICKET_LENGTH:
        raise Unauthenticated
    async with _redis_timeout():
        kept = await runtime.redis.getdel(_key(ticket))
    if kept is None:
        raise Unauthenticated
    told: dict[str, Any] = json.loads(kept)
    claims, scopes = told.pop("claims"), told.pop("scopes")
    caller = Caller(**told, scopes=tuple(scopes), claims=claims and Claims(**claims))
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
