"""A resolver for aiohttp that returns public addresses only. aiohttp connects to exactly these addresses.

A lookup that hangs keeps its thread until libc gives up, long after the request has failed. So a user has a quarter of
the threads, and counts them until their lookups end.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from aiohttp.abc import AbstractResolver, ResolveResult

from app.aio import FairLimiter, acting_user
from app.egress.errors import EgressForbidden
from app.egress.urls import is_public

DNS_THREADS = 32
LOOKUP_SECONDS = 10.0  # with the wait for a thread

Lookup = Callable[[str, int], Awaitable[list[str]]]
"""Resolves a host and port to addresses."""


class CheckedResolver(AbstractResolver):
    """Resolves a host name, and raises EgressForbidden unless all its addresses are public.

    aiohttp does not resolve literal addresses; `urls.parse_url` checks those.
    """

    def __init__(self, allowed: frozenset[str], lookup: Lookup | None = None, threads: int = DNS_THREADS) -> None:
        self._allowed = allowed
        self._lookup = lookup or self._system_lookup
        # A thread pool of its own, because slow DNS servers must not block the threads of other work.
        self._threads = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="egress-dns")
        self._limiter = FairLimiter(threads, per_user=max(threads // 4, 1))
        self._lookups: set[asyncio.Future[list[str]]] = set()

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_UNSPEC,  # noqa: ARG002  all families are resolved and checked
    ) -> list[ResolveResult]:
        async with asyncio.timeout(LOOKUP_SECONDS):
            addresses = await self._lookup_fairly(host, port)
        is_exempt = f"{host}:{port}" in self._allowed
        if not addresses or not (is_exempt or all(is_public(address) for address in addresses)):
            raise EgressForbidden
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        for lookup in self._lookups:
            lookup.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _lookup_fairly(self, host: str, port: int) -> list[str]:
        """Holds the user's slot until the lookup ends, also if nobody waits for it any more."""
        user = acting_user.get()
        await self._limiter.acquire(user)
        lookup = asyncio.ensure_future(self._lookup(host, port))
        self._lookups.add(lookup)

        def on_end(ended: "asyncio.Future[list[str]]") -> None:
            self._lookups.discard(ended)
            self._limiter.release(user)
            if not ended.cancelled():
                ended.exception()  # asyncio would log an error that nobody has read

        lookup.add_done_callback(on_end)
        return await asyncio.shield(lookup)

    async def _system_lookup(self, host: str, port: int) -> list[str]:
        results = await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
        return [str(address[0]) for *_, address in results]
