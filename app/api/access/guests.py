"""Callers without a credential: each request counts for its client address, and for the username that it names."""

import hashlib
import ipaddress
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from app.accounts.log_in.refresh_tokens import Client
from app.api.access.addresses import IPAddress, client_address
from app.api.access.callers import first_headers
from app.api.access.rate_limits import Limit, RateLimiter
from app.runtime import Runtime

UNKNOWN_ADDRESS = "unknown"
IPV6_PREFIX = 64
"""A network of this size belongs to one customer, who may take any address of it."""


@dataclass(frozen=True, slots=True)
class GuestContext:
    """The runtime and the client of one request."""

    runtime: Runtime
    client: Client
    rate_limiter: RateLimiter

    async def count(self, limit: Limit, subject: str) -> None:
        """Counts the request for something that it names. Raises RateLimited when it is one too many."""
        await self.rate_limiter.check(limit, _digest(subject))


class Guest:
    """The dependency of a route that needs no credential: counts the request for the client's address."""

    def __init__(self, *, limit: Limit) -> None:
        self.limit = limit

    async def __call__(self, request: Request) -> GuestContext:
        """Once for each request, before its body is read (`DirectRoute`)."""
        state = request.app.state
        client = client_of(request)
        await state.rate_limiter.check(self.limit, client.address)
        return GuestContext(state.runtime, client, state.rate_limiter)


def client_of(request: Request) -> Client:
    """The client of a request: its address, and a digest of its address and user agent."""
    runtime: Runtime = request.app.state.runtime
    address = client_address(request.scope, runtime.settings.trusted_networks)
    agent = first_headers(request.scope).get("user-agent", "")
    return Client(_shared_address(address), _digest(f"{address}\n{agent}"))


def _shared_address(address: IPAddress | None) -> str:
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, IPV6_PREFIX), strict=False))
    return UNKNOWN_ADDRESS if address is None else str(address)


def _digest(value: Any) -> str:
    return hashlib.sha256(str(value).encode(errors="replace")).hexdigest()
