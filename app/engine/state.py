"""What a worker holds of a task: the claimed row, what is known of its upstream job, and the changes of a step."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any

MAX_NOTE_LENGTH = 500


def boottime() -> float:
    """Seconds of a clock that also runs while the machine or the process is frozen."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@dataclass(frozen=True, slots=True)
class UpstreamState:
    """The column `tasks.upstream_state`. Callers never see it. The JSON holds only what differs from the defaults."""

    accepted_age_seconds: float = 0.0
    """The age of the task when the upstream accepted its job."""
    is_awaiting_approval: bool = False
    has_own_progress: bool = False
    """The upstream reports progress, so the gateway does not estimate it."""
    urls: tuple[str, ...] = ()
    """The newest known result URLs."""
    is_refreshed: bool = False
    """The result URLs were asked for once more after a failed download, or cannot be asked for."""
    server_errors: int = 0
    """Submits and preparations that the upstream answered with an error of its own."""
    empty_results: int = 0
    """Polls that reported success without a result URL."""
    unknown_state: str = ""
    """The state of the running job at its newest poll, if the gateway does not know the word."""
    not_found_polls: int = 0
    """404s in a row."""
    not_found_since: str = ""
    """ISO time of the first of them."""
    normalized_urls: tuple[str, ...] | None = None
    """References that are normalized; None where the model does not normalize references."""
    is_normalize_started: bool = False
    """A paid normalization was requested, or may have been: the task cannot be cancelled any more."""
    successes_when_refused: int | None = None
    """The `successes` of the circuit breaker when the job was first refused with an account error."""
    note: str = ""
    """Why the task waits. The operator reads it if the deadline passes."""

    @classmethod
    def from_json(cls, value: Mapping[str, Any] | None) -> "UpstreamState":
        """Keys that this release does not know are ignored."""
        values: dict[str, Any] = {}
        for key, item in (value or {}).items():
            name = _FORMER_KEYS.get(key, key)
            if name in _FIELDS:
                values[name] = tuple(item) if isinstance(item, list) else item
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in _FIELDS}
        changed = {name: value for name, value in values.items() if value != _FIELDS[name]}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in changed.items()}


_FIELDS = {one.name: one.default for one in fields(UpstreamState)}
_FORMER_KEYS = {
    "accepted_age": "accepted_age_seconds",
    "approval": "is_awaiting_approval",
    "told": "has_own_progress",
    "relooked": "is_refreshed",
    "troubles": "server_errors",
    "empty": "empty_results",
    "missing": "not_found_polls",
    "missing_since": "not_found_since",
    "normalized": "normalized_urls",
    "asked": "is_normalize_started",
}
"""Rows written before release 0.1.0 use these keys. A task that ran then is finished by the code of now."""


@dataclass(slots=True, eq=False)
class ClaimedTask:
    """One task that this process holds: the row as claimed, and how long it may be held.

    `now` is the database's clock at the claim. `held_until` is on this machine's boot clock. It counts from before
    the claim was sent, so it always ends earlier than the lease in the row.
    """

    id: int
    task_no: str
    user_id: int
    model_name: str
    task_type: str
    action: str
    upstream_request: dict[str, Any]
    points_cost: int
    status: str
    step: str
    version: int
    progress: int
    attempts: int
    crashes: int
    history: list[dict[str, Any]]
    upstream_task_id: str | None
    upstream_state: UpstreamState
    created_at: datetime
    deadline_at: datetime
    now: datetime
    claimed_at: float
    held_until: float
    key_id: int | None = None
    end_user: str | None = None

    def is_held(self) -> bool:
        return boottime() < self.held_until

    def seconds_left(self) -> float:
        """Seconds to the task's deadline, by the database's clock plus the time since the claim."""
        return (self.deadline_at - self.now).total_seconds() - (boottime() - self.claimed_at)

    def age_seconds(self) -> float:
        return (self.now - self.created_at).total_seconds() + boottime() - self.claimed_at


@dataclass(frozen=True, slots=True)
class TaskUpdate:
    """Columns that a step changes. None leaves a column as it is; `attempts` starts at 0 on every new step."""

    attempts: int = 0
    status: str | None = None
    progress: int | None = None
    upstream_request: dict[str, Any] | None = None
    upstream_task_id: str | None = None
    upstream_state: UpstreamState | None = None

    def columns(self) -> dict[str, Any]:
        """By column name, as the database takes them."""
        changed = {one.name: getattr(self, one.name) for one in fields(self) if getattr(self, one.name) is not None}
        if self.upstream_state is not None:
            changed["upstream_state"] = self.upstream_state.to_json()
        return changed

    def apply_to(self, task: ClaimedTask) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if value is not None:
                setattr(task, one.name, value)


@dataclass(frozen=True, slots=True, eq=False)
class Release:
    """The task keeps its step and goes back to the queue, due again after a delay."""

    task: ClaimedTask
    delay_seconds: float
    attempts: int = 0
    crashes: int = 0
    progress: int = 0
    upstream_state: UpstreamState = field(default_factory=UpstreamState)
