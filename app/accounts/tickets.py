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

from app.accounts.callers import Caller, identify_again
from app.accounts.credentials import Claims
from app.errors import Unauthenticated, Unavailable
from app.runtime import Runtime

LIVES_SECONDS = 30
REDIS_SECONDS = 1.0
LONGEST_TICKET = 64


async def make_ticket(runtime: Runtime, caller: Caller) -> str:
    """A new ticket, in clear for the only time. Unavailable without Redis."""
    ticket = secrets.token_urlsafe(24)
    async with _in_time():
        await runtime.redis.set(_key(ticket), json.dumps(asdict(caller)), ex=LIVES_SECONDS)
    return ticket


async def redeem_ticket(runtime: Runtime, ticket: str) -> Caller:
    """Who it was made for, as they stand now. Of any number who try, one has it; Unauthenticated to all others."""
    if not 0 < len(ticket) <= LONGEST_TICKET:
        raise Unauthenticated
    async with _in_time():
        kept = await runtime.redis.getdel(_key(ticket))
    if kept is None:
        raise Unauthenticated
    told: dict[str, Any] = json.loads(kept)
    claims, scopes = told.pop("claims"), told.pop("scopes")
    caller = Caller(**told, scopes=tuple(scopes), claims=claims and Claims(**claims))
    return await identify_again(runtime, caller)


def _key(ticket: str) -> str:
    return "gateway:ticket:" + hashlib.sha256(ticket.encode(errors="replace")).hexdigest()


@asynccontextmanager
async def _in_time() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(REDIS_SECONDS):
            yield
    except (RedisError, OSError) as error:
        raise Unavailable from error
