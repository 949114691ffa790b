"""The address of the client of a request. Only `TRUSTED_PROXIES` may name another one than that of the connection."""

import ipaddress
from collections.abc import Collection, Mapping
from typing import Any

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
MAX_PROXIES = 20
"""Entries of `X-Forwarded-For` that are read, from its end."""


def client_address(scope: Mapping[str, Any], trusted: Collection[IPNetwork]) -> IPAddress | None:
    """The address of the connection, or the newest one in `X-Forwarded-For` that no trusted proxy has.

    A client can write anything into the header, but a trusted proxy adds the address of its own client at the end. So
    the list is read from its end, as long as the address before is a trusted proxy. None where the server listens on a
    Unix socket, or a trusted proxy names no address.
    """
    address = parse_address((scope.get("client") or ("",))[0])
    if address is None or not is_in(address, trusted):
        return address
    values = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-forwarded-for"]
    for entry in reversed(",".join(values).rsplit(",", MAX_PROXIES)[-MAX_PROXIES:]):
        if not entry.strip():
            continue
        address = parse_address(entry)
        if address is None or not is_in(address, trusted):
            return address
    return address


def is_in(address: IPAddress, networks: Collection[IPNetwork]) -> bool:
    return any(address in network for network in networks)


def parse_address(text: str) -> IPAddress | None:
    """An address, without port, brackets and zone. An IPv4 address that is written as IPv6 is IPv4."""
    text = text.strip().split("%", 1)[0]
    if text.startswith("["):
        text = text[1:].split("]", 1)[0]
    elif text.count(":") == 1:
        text = text.split(":", 1)[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
