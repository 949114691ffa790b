"""Names to addresses that were checked: what this resolver answers is what gets dialled."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from aiohttp.abc import AbstractResolver, ResolveResult

from app.egress.errors import EgressForbidden
from app.egress.urls import is_public

DNS_THREADS = 16

Lookup = Callable[[str, int], Awaitable[list[str]]]
"""Host and port to addresses, as the system's resolver gives them."""


class CheckedResolver(AbstractResolver):
    """Answers with addresses that are all public, or raises EgressForbidden; aiohttp dials what it answers.

    aiohttp asks no resolver about literal addresses: those are judged by their form.
    """

    def __init__(self, allowed: frozenset[str], lookup: Lookup | None = None, threads: int = DNS_THREADS) -> None:
        self._allowed = allowed
        self._lookup = lookup or self._ask_system
        # A pool of its own: names with slow servers must not hold threads that others wait for.
        self._threads = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="egress-dns")

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_UNSPEC,  # noqa: ARG002  every family is looked up and checked
    ) -> list[ResolveResult]:
        addresses = await self._lookup(host, port)
        exempt = f"{host}:{port}" in self._allowed
        if not addresses or not (exempt or all(is_public(address) for address in addresses)):
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
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _ask_system(self, host: str, port: int) -> list[str]:
        found = await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
        return [str(address[0]) for *_, address in found]
