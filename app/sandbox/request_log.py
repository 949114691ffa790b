"""The request log: every request to the sandbox, bounded, in memory, and without secrets."""

import json
import re
from collections import deque
from dataclasses import dataclass
from typing import Any

from starlette.types import Scope

from app.sandbox import clock

MAX_ENTRIES = 10_000
MAX_BYTES = 64 << 20
MAX_BODY_BYTES = 128 << 10
ACTION = re.compile(r"/api/v1/actions/([^/]+)")
SECRET_HEADERS = {"authorization", "cookie", "proxy-authorization"}


@dataclass(slots=True)
class Entry:
    """One request. `outcome`: accepted (a job was made), refused, polled, stored, served, reported, or still empty.

    `upload` describes an uploaded file, whose bytes are not kept.
    """

    number: int
    received_at: float
    method: str
    path: str
    headers: dict[str, str]
    has_authorization: bool
    body: bytes
    outcome: str = ""
    status: int | None = None
    action: str | None = None
    upload: dict[str, Any] | None = None
    task_id: str | None = None
    fault: str | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "time": round(clock.to_unix(self.received_at), 6),
            "monotonic": round(self.received_at, 6),
            "method": self.method,
            "path": self.path,
            "headers": self.headers,
            "has_authorization": self.has_authorization,
            "action": self.action,
            "body": self.upload or _decode_body(self.body),
            "outcome": self.outcome,
            "status": self.status,
            "task_id": self.task_id,
            "fault": self.fault,
        }


class RequestLog:
    """The newest requests: at most 10,000, and at most 64 MB of bodies."""

    def __init__(self, max_entries: int = MAX_ENTRIES, max_bytes: int = MAX_BYTES) -> None:
        self._max_entries, self._max_bytes = max_entries, max_bytes
        self._entries: deque[Entry] = deque()
        self._bytes = 0
        self._recorded = 0

    def record(self, scope: Scope, body: bytes) -> Entry:
        """Records a request before anything is done with it; not its query string, which may be signed."""
        self._recorded += 1
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        action = ACTION.match(scope["path"])
        entry = Entry(
            number=self._recorded,
            received_at=clock.now(),
            method=scope["method"],
            path=scope["path"],
            headers={name: value for name, value in headers.items() if name not in SECRET_HEADERS},
            has_authorization="authorization" in headers,
            body=body[:MAX_BODY_BYTES],
            action=action[1] if action else None,
        )
        self._entries.append(entry)
        self._bytes += len(entry.body)
        while len(self._entries) > self._max_entries or self._bytes > self._max_bytes:
            self._bytes -= len(self._entries.popleft().body)
        return entry

    def read(
        self, *, outcome: str | None = None, action: str | None = None, task_id: str | None = None
    ) -> list[dict[str, Any]]:
        return [
            entry.as_json()
            for entry in self._entries
            if outcome in {None, entry.outcome} and action in {None, entry.action} and task_id in {None, entry.task_id}
        ]

    def clear(self) -> None:
        self._entries.clear()
        self._bytes = 0


def _decode_body(body: bytes) -> Any:
    """The body as JSON where it is JSON, else as text; None where there was none."""
    if not body:
        return None
    try:
        return json.loads(body)
    except ValueError:
        return body.decode("utf-8", "replace")
