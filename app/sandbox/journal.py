"""The journal: everything that arrived at the sandbox, bounded, in memory, and without secrets."""

import json
import re
from collections import deque
from dataclasses import dataclass
from typing import Any

from starlette.types import Scope

from app.sandbox import clock

JOURNAL_LENGTH = 10_000
JOURNAL_BYTES = 64 << 20
BODY_KEPT_BYTES = 128 << 10
ACTION = re.compile(r"/api/v1/actions/([^/]+)")
SECRET_HEADERS = {"authorization", "cookie", "proxy-authorization"}


@dataclass(slots=True)
class Entry:
    """One arrival. `outcome`: accepted (a job was made), refused, looked, stored, served, told, or still empty.

    `upload` tells of an uploaded file what no body is kept for.
    """

    number: int
    at: float
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
    trouble: str | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "time": round(clock.as_wall(self.at), 6),
            "monotonic": round(self.at, 6),
            "method": self.method,
            "path": self.path,
            "headers": self.headers,
            "has_authorization": self.has_authorization,
            "action": self.action,
            "body": self.upload or _readable(self.body),
            "outcome": self.outcome,
            "status": self.status,
            "task_id": self.task_id,
            "trouble": self.trouble,
        }


class Journal:
    """The newest arrivals: at most 10,000, and at most 64 MB of bodies."""

    def __init__(self, length: int = JOURNAL_LENGTH, most_bytes: int = JOURNAL_BYTES) -> None:
        self._length, self._most_bytes = length, most_bytes
        self._entries: deque[Entry] = deque()
        self._bytes = 0
        self._written = 0

    def write(self, scope: Scope, body: bytes) -> Entry:
        """Notes a request before anything is done with it; not its query string: it may be signed."""
        self._written += 1
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        action = ACTION.match(scope["path"])
        entry = Entry(
            number=self._written,
            at=clock.now(),
            method=scope["method"],
            path=scope["path"],
            headers={name: value for name, value in headers.items() if name not in SECRET_HEADERS},
            has_authorization="authorization" in headers,
            body=body[:BODY_KEPT_BYTES],
            action=action[1] if action else None,
        )
        self._entries.append(entry)
        self._bytes += len(entry.body)
        while len(self._entries) > self._length or self._bytes > self._most_bytes:
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


def _readable(body: bytes) -> Any:
    """The body as JSON where it is JSON, else as text; None where there was none."""
    if not body:
        return None
    try:
        return json.loads(body)
    except ValueError:
        return body.decode("utf-8", "replace")
