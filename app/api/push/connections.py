"""What both kinds of stream share: the limits of open streams, the origin check, and the events of tasks.

`app/tasks/stream.py` finds the changes. This package decides who receives them, and for how long.
"""

import json
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager, suppress
from typing import Any, Literal
from urllib.parse import urlsplit

import structlog
from starlette.datastructures import Headers

from app.accounts.authentication import Caller, reauthenticate
from app.aio import counted
from app.errors import Forbidden, RateLimited, Unauthenticated, Unavailable
from app.runtime import Runtime
from app.setting_values.text import find_origin
from app.settings import Settings
from app.tasks.stream import TaskStream, event_id
from app.tasks.view import view_task
from app.telemetry import metrics

log = structlog.get_logger()

MAX_STREAMS = 20  # of one user in one process
MAX_WAITS = 100  # requests with `?wait=`, likewise; a user needs one for each running task
REAUTHENTICATE_SECONDS = 5.0  # before an event; a ping is preceded by a check in any case
SEND_TIMEOUT_SECONDS = 20.0

Transport = Literal["sse", "websocket"]


class ConnectionLimiter:
    """Counts the open streams and the waiting requests of each user in this process."""

    def __init__(self) -> None:
        self._open: Counter[int] = Counter()
        self._waiting: Counter[int] = Counter()

    @contextmanager
    def acquire(self, user_id: int, transport: Transport) -> Iterator[None]:
        """Counts one stream while the block runs. Raises RateLimited where the user has MAX_STREAMS already."""
        with _count(self._open, user_id, MAX_STREAMS, "同时打开的推送连接过多"):
            metrics.OPEN_STREAMS.labels(transport).inc()
            try:
                yield
            finally:
                metrics.OPEN_STREAMS.labels(transport).dec()

    @contextmanager
    def acquire_wait(self, user_id: int) -> Iterator[None]:
        """Counts one request with `?wait=` in the same way, up to MAX_WAITS."""
        with _count(self._waiting, user_id, MAX_WAITS, "同时等待的请求过多"):
            yield


@contextmanager
def _count(counts: Counter[int], user_id: int, maximum: int, problem: str) -> Iterator[None]:
    if counts[user_id] >= maximum:
        raise RateLimited(f"{problem}，最多 {maximum} 个", retry_after_seconds=5)
    with counted(counts, user_id):
        yield


def is_origin_allowed(settings: Settings, headers: Headers) -> bool:
    """Whether the page's origin is in CORS_ORIGINS or is our own. A client without `Origin` is no browser."""
    origin = headers.get("origin")
    if origin is None or "*" in settings.cors_allowed or origin in settings.cors_allowed:
        return True
    try:
        page = urlsplit(origin)
    except ValueError:  # "http://["
        return False
    if page.scheme not in {"http", "https"}:
        return False
    return page.netloc == headers.get("host") or origin == find_origin(settings.own_url)


async def task_events(
    runtime: Runtime, caller: Caller, stream: TaskStream, transport: Transport
) -> AsyncGenerator[dict[str, Any] | None, None]:
    """`{"id", "data"}` of each change; `data` is what `GET` of the task answers. None as in `TaskStream.changes`.

    Raises Unauthenticated once the caller's credential is no longer valid for this stream.
    """
    check_at = 0.0
    async with aclosing(stream.changes()) as changes:
        async for row in changes:
            if row is None or time.monotonic() >= check_at:
                check_at = time.monotonic() + REAUTHENTICATE_SECONDS
                with suppress(Unavailable):
                    await _check_again(runtime, caller)
            if row is not None:
                metrics.EVENTS.labels(transport).inc()
            yield row and {"id": event_id(row), "data": view_task(runtime, row)}


async def _check_again(runtime: Runtime, caller: Caller) -> None:
    try:
        newest = await reauthenticate(runtime, caller)
    except Forbidden:
        raise Unauthenticated from None
    if not newest.has_scope("tasks:read"):
        raise Unauthenticated


def dump_json(message: Any) -> str:
    return json.dumps(message, ensure_ascii=False, separators=(",", ":"))


def record_slow_consumer(caller: Caller, transport: Transport) -> None:
    metrics.SLOW_CONSUMERS.labels(transport).inc()
    log.warning("stream_slow_consumer", user_id=caller.user_id, kind=transport)
