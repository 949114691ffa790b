"""The addresses and networks that an API key may be used from."""

import ipaddress
from collections.abc import Iterable
from functools import lru_cache

from app.errors import InvalidParameter

MAX_ADDRESSES = 50
MAX_ADDRESS_LENGTH = 64
MAPPED_BITS = 96  # the prefix of IPv4 addresses that are written as IPv6

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def normalize_addresses(field: str, texts: Iterable[str]) -> list[str]:
    """Each address or network in its usual form, without repeats. Raises InvalidParameter that names the wrong one."""
    return list(dict.fromkeys(_normalize(f"{field}[{place}]", text) for place, text in enumerate(texts)))


def _normalize(field: str, text: str) -> str:
    text = text.strip()
    try:
        if "%" in text:
            raise ValueError(text)
        loose = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise InvalidParameter(field, "须为 IPv4、IPv6 地址或网段，例如 203.0.113.7 或 10.0.0.0/8") from None
    if ipaddress.ip_interface(text).ip != loose.network_address:
        raise InvalidParameter(field, f"网段应写为 {loose}")
    network = _as_ipv4(loose)
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)


def _as_ipv4(network: Network) -> Network:
    """A network of IPv4 addresses that is written as IPv6. The addresses of clients are compared as IPv4."""
    if (
        isinstance(network, ipaddress.IPv4Network)
        or network.prefixlen < MAPPED_BITS
        or network.network_address.ipv4_mapped is None
    ):
        return network
    return ipaddress.ip_network((network.network_address.ipv4_mapped, network.prefixlen - MAPPED_BITS))


def is_allowed(addresses: tuple[str, ...], address: str) -> bool:
    """Whether the client's address is in the list. An unknown address, the empty text, is not."""
    if not address:
        return False
    client = ipaddress.ip_address(address)
    return any(client in network for network in _networks(addresses))


@lru_cache(maxsize=1000)
def _networks(addresses: tuple[str, ...]) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in addresses)
