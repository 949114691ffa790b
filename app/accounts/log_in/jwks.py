"""The public keys of a service that signs tokens: a JWK set in a file or at an https URL (`JWT_JWKS`).

A token names its key by `kid`. Nothing else in a token decides which key is used or where keys come from.
"""

import asyncio
import json
import math
import time
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import structlog

from app.accounts.credentials import jwk_to_pem
from app.egress import Egress
from app.errors import Unavailable

log = structlog.get_logger()

REFRESH_SECONDS = 300.0
MAX_AGE_SECONDS = 600.0
"""A set that nobody used for so long is loaded again before a request uses it."""
MIN_LOAD_SECONDS = 10.0
"""Between two loads. Strangers who invent key ids cannot make the gateway load more often."""
LOAD_TIMEOUT_SECONDS = 5.0
MAX_SET_BYTES = 256 * 1024
MAX_KEYS = 100
MIN_RSA_BITS = 2048
KEY_TYPES = {"RS256": "RSA", "ES256": "EC"}
PUBLIC_PARTS = {"RS256": ("kty", "n", "e"), "ES256": ("kty", "crv", "x", "y")}


class KeySet:
    """The keys of one location for one algorithm. If a load fails, the keys of the last good one stay."""

    def __init__(self, location: str, algorithm: str) -> None:
        self._location, self._algorithm = location, algorithm
        self._keys: dict[str | None, str] = {}
        self._loaded_at: float | None = None
        self._tried_at: float | None = None
        self._load: asyncio.Task[None] | None = None

    async def find_key(self, egress: Egress, key_id: str | None) -> str | None:
        """The key with this id as PEM; without an id the only key of the set. None if there is none.

        Raises Unavailable as long as no set was loaded.
        """
        age = math.inf if self._loaded_at is None else time.monotonic() - self._loaded_at
        if key_id not in self._keys or age >= MAX_AGE_SECONDS:
            load = self._begin_load(egress)
            if load is not None:
                await asyncio.shield(load)
        elif age >= REFRESH_SECONDS:
            self._begin_load(egress)  # the request does not wait for it
        if self._loaded_at is None:
            raise Unavailable
        return self._keys.get(key_id)

    def _begin_load(self, egress: Egress) -> "asyncio.Task[None] | None":
        """The running load, or a new one unless the last one began a moment ago."""
        if self._load is not None and not self._load.done() and self._load.get_loop() is asyncio.get_running_loop():
            return self._load
        if self._tried_at is not None and time.monotonic() - self._tried_at < MIN_LOAD_SECONDS:
            return None
        self._tried_at = time.monotonic()
        self._load = asyncio.create_task(self._load_keys(egress))
        return self._load

    async def _load_keys(self, egress: Egress) -> None:
        try:
            keys = await load_key_set(self._location, self._algorithm, egress)
        except Exception as error:  # any error: the keys of the last good load stay
            log.warning("jwks_load_failed", error=str(error)[:200] or type(error).__name__)
            return
        self._keys, self._loaded_at = keys, time.monotonic()


@cache
def key_set(location: str, algorithm: str) -> KeySet:
    """The key set of this process for these settings."""
    return KeySet(location, algorithm)


async def load_key_set(location: str, algorithm: str, egress: Egress) -> dict[str | None, str]:
    """The keys at a path, a `file://` URL or an https URL. Raises ValueError, OSError or EgressError."""
    if location.startswith("https://"):
        text = await egress.read_start(
            location, max_bytes=MAX_SET_BYTES, timeout_seconds=LOAD_TIMEOUT_SECONDS, https_only=True
        )
    else:
        path = Path(unquote(urlsplit(location).path) if location.startswith("file://") else location)
        text = await asyncio.to_thread(path.read_bytes)
    return read_key_set(text, algorithm)


def read_key_set(text: bytes, algorithm: str) -> dict[str | None, str]:
    """The usable keys of a JWK set by `kid`, as PEM. A set with one usable key has it without an id, too.

    Keys for other algorithms and uses are left out. Raises ValueError for a set without a usable key, so that it does
    not replace a good one.
    """
    try:
        listed = json.loads(text)["keys"]
        found = [_read_key(one, algorithm) for one in listed[:MAX_KEYS]]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"no JWK set ({type(error).__name__})") from None
    usable = [one for one in found if one is not None]
    keys: dict[str | None, str] = {}
    for key_id, pem in usable:
        keys.setdefault(key_id, pem)
    if not keys:
        raise ValueError(f"no key for {algorithm}")
    if len(usable) == 1:
        keys[None] = usable[0][1]
    else:
        keys.pop(None, None)
    return keys


def _read_key(key: Any, algorithm: str) -> tuple[str | None, str] | None:
    """(kid, PEM) of a key that verifies signatures of this algorithm."""
    try:
        parts = {name: key[name] for name in PUBLIC_PARTS[algorithm]}
        key_id, operations = key.get("kid"), key.get("key_ops", ["verify"])
        is_meant = key.get("use", "sig") == "sig" and key.get("alg", algorithm) == algorithm and "verify" in operations
        is_strong = parts["crv"] == "P-256" if algorithm == "ES256" else len(parts["n"]) * 6 >= MIN_RSA_BITS
        if parts["kty"] != KEY_TYPES[algorithm] or not is_meant or not is_strong:
            return None
        return (key_id, jwk_to_pem(parts, algorithm)) if key_id is None or isinstance(key_id, str) else None
    except Exception:  # the parts of a key can be wrong in any way
        return None
