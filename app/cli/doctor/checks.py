"""What a check is, and how checks run: each with a time limit, and none stops the checks of another group."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import unquote, urlsplit

from app.database import UnsafeDatabase
from app.errors import GatewayError
from app.settings import Settings
from app.telemetry.logs import REDACTED, redact_text

CHECK_SECONDS = 10.0
CLOSE_SECONDS = 2.0
MAX_TEXT_LENGTH = 400
MIN_SECRET_LENGTH = 4  # a shorter text would be found in every second word

Status = Literal["ok", "warning", "failed"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one check found, and what to do about it."""

    status: Status
    text: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of the check of this name."""

    check: str
    status: Status
    text: str
    remedy: str = ""


@dataclass(frozen=True)
class Check(Generic[T]):
    """One thing to try. `remedy` is for an exception. Where a required one fails, the rest of its group is left out."""

    name: str
    run: Callable[[T], Awaitable[Outcome]]
    remedy: str
    is_required: bool = False


@dataclass(frozen=True)
class Group(Generic[T]):
    """Checks that use the same thing, one after the other. An error while it is opened fails the first one."""

    open: Callable[[], AbstractAsyncContextManager[T]]
    checks: Sequence[Check[T]]


async def run_group(group: Group[Any]) -> list[Finding]:
    findings: list[Finding] = []
    try:
        async with group.open() as opened:
            for check in group.checks:
                findings.append(await _run_check(check, opened))
                if check.is_required and findings[-1].status == "failed":
                    break
    except Exception as error:  # of opening; an error of closing is of no interest
        if not findings:
            first = group.checks[0]
            findings.append(Finding(first.name, "failed", describe(error), first.remedy))
    return findings


async def _run_check(check: Check[T], opened: T) -> Finding:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            outcome = await check.run(opened)
    except TimeoutError:
        outcome = Outcome("failed", f"no answer within {CHECK_SECONDS:.0f} s", check.remedy)
    except Exception as error:
        outcome = Outcome("failed", describe(error), check.remedy)
    return Finding(check.name, outcome.status, outcome.text, outcome.remedy)


def describe(error: BaseException) -> str:
    """The error in one line. Of our own wrappers the cause counts."""
    if isinstance(error, UnsafeDatabase):
        return error.reason
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, GatewayError):
        return str(error)
    return " ".join(f"{type(error).__name__}: {error}".split())


async def close_quietly(closing: Awaitable[object]) -> None:
    """Closes what a check has used. A server that hangs does not delay the end."""
    with suppress(Exception):
        async with asyncio.timeout(CLOSE_SECONDS):
            await closing


async def run_blocking(function: Callable[[], T]) -> T:
    """Runs a function that may hang, such as a call on a network file system, without waiting for its end at exit."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: Exception | None) -> None:
        if not done.done():
            done.set_exception(error) if error is not None else done.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        try:
            result, error = function(), None
        except Exception as raised:
            result, error = None, raised
        loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, daemon=True).start()
    return await done


def without_secrets(finding: Finding, settings: Settings) -> Finding:
    """The finding as it may be printed: foreign texts may hold what was sent to them."""
    text = redact_text(finding.text)
    for secret in sorted(_secrets(settings), key=len, reverse=True):
        text = text.replace(secret, REDACTED)
    return replace(finding, text=text[:MAX_TEXT_LENGTH])


def _secrets(settings: Settings) -> set[str]:
    found = {settings.see2ai_api_key, settings.storage_secret_access_key, settings.jwt_secret, *settings.jwt_secrets}
    for url in (settings.database_url, settings.redis_url):
        login, _, _ = urlsplit(url).netloc.rpartition("@")
        password = login.partition(":")[2]
        found |= {password, unquote(password)}
    return {secret for secret in found if len(secret) >= MIN_SECRET_LENGTH}
