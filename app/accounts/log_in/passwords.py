"""Checks, hashes and verifies passwords. The hash is Argon2id, which takes much memory and time on purpose.

So at most MAX_RUNNING hashes run at once in a process, in threads, and client addresses take turns.
"""

import asyncio
import base64
import secrets
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.resources import files
from typing import TypeVar

from argon2 import PasswordHasher, Type
from argon2.exceptions import InvalidHashError, VerificationError

from app.aio import FairLimiter
from app.errors import InvalidParameter, Unavailable

T = TypeVar("T")
MIN_LENGTH, MAX_LENGTH = 8, 128
MAX_RUNNING = 2
MAX_RUNNING_PER_ADDRESS = 1
MAX_WAITING = 200
RETRY_AFTER_SECONDS = 5
COMMON_PASSWORDS = "common_passwords.txt"
"""The thousand most common passwords of at least MIN_LENGTH characters, case-folded."""

# The parameters that OWASP recommends for Argon2id. A stored hash names its own, and `needs_rehash` compares the two.
_hasher = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1, type=Type.ID)
_threads = ThreadPoolExecutor(MAX_RUNNING, thread_name_prefix="argon2")
_slots = FairLimiter(MAX_RUNNING, per_user=MAX_RUNNING_PER_ADDRESS)
_waiting = 0


def check_password(field: str, password: str, username: str | None) -> None:
    """Raises InvalidParameter, which names `field`, for a password that a user must not choose."""
    if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
        raise InvalidParameter(field, f"须为 {MIN_LENGTH} 到 {MAX_LENGTH} 个字符")
    folded = _normalize(password).casefold()
    if folded in _common_passwords():
        raise InvalidParameter(field, "过于常见，请换一个")
    if username is not None and folded == _normalize(username).casefold():
        raise InvalidParameter(field, "不能与用户名相同")


async def hash_password(password: str, address: str) -> str:
    """The Argon2id hash. `address` is the client's; addresses take turns. Raises Unavailable if too many wait."""
    return await _run(lambda: _hasher.hash(_normalize(password)), address)


async def verify_password(password: str, stored: str | None, address: str) -> bool:
    """Whether the password has this hash. Without a hash the work is the same, and the answer is False."""
    return await _run(lambda: _verify(password, stored or _impossible_hash()), address) and stored is not None


def needs_rehash(stored: str) -> bool:
    """Whether the hash was made with other parameters than today's."""
    return _hasher.check_needs_rehash(stored)


def _verify(password: str, stored: str) -> bool:
    try:
        return _hasher.verify(stored, _normalize(password))
    except (VerificationError, InvalidHashError):
        return False


@cache
def _impossible_hash() -> str:
    """A hash with today's parameters, of a password that nobody knows."""
    salt, digest = (base64.b64encode(secrets.token_bytes(size)).rstrip(b"=").decode() for size in (16, 32))
    cost = f"m={_hasher.memory_cost},t={_hasher.time_cost},p={_hasher.parallelism}"
    return f"$argon2id$v=19${cost}${salt}${digest}"


def _normalize(password: str) -> str:
    """Keyboards and systems write the same character in different ways."""
    return unicodedata.normalize("NFKC", password)


@cache
def _common_passwords() -> frozenset[str]:
    text = files(__package__).joinpath(COMMON_PASSWORDS).read_text("utf-8")
    return frozenset(text.split("\n")) - {""}


async def _run(work: Callable[[], T], address: str) -> T:
    """Runs the work in a thread when it is the address's turn."""
    global _waiting  # noqa: PLW0603
    if _waiting >= MAX_WAITING:
        raise Unavailable(retry_after_seconds=RETRY_AFTER_SECONDS)
    _waiting += 1
    try:
        async with _slots.slot(address):
            return await asyncio.get_running_loop().run_in_executor(_threads, work)
    finally:
        _waiting -= 1
