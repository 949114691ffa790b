"""What the gateway asks of a provider's client, and what a provider may answer. No provider's rule stands here."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from app.settings import Settings
from app.upstreams.action import Action


class ResultKind(StrEnum):
    """What one answer means for the task."""

    ACCEPTED = "accepted"
    """A submit was taken; `task_id` is set."""
    NOT_SENT = "not_sent"
    """Nothing left this machine: another try is harmless."""
    REJECTED = "rejected"
    """The input is refused for good. A poll answers so for a video that "needs repair"."""
    ACCOUNT_ERROR = "account_error"
    """The gateway's key is bad or its balance is empty: the operator's task, never the user's."""
    RATE_LIMITED = "rate_limited"
    """Too many calls; `retry_after_seconds` may say how long to wait."""
    SERVER_ERROR = "server_error"
    """An error of the provider's own, which it does not charge. For a poll also an unreadable answer."""
    UPSTREAM_TIMEOUT = "upstream_timeout"
    """The provider says that the generation timed out."""
    UNKNOWN_OUTCOME = "unknown_outcome"
    """A job may run that the gateway does not know: it is never sent again."""
    RUNNING = "running"
    """The job goes on; `progress` may say how far it is."""
    SUCCEEDED = "succeeded"
    """The job succeeded. Without `urls` this is no success yet. Also a submit whose answer is the result."""
    FAILED = "failed"
    """The job failed."""
    NOT_FOUND = "not_found"
    """The provider does not know the job (404)."""


@dataclass(frozen=True, slots=True)
class UpstreamResult:
    """One answer, understood. `detail` is for the operator and never shown to a caller."""

    kind: ResultKind
    detail: str = ""
    task_id: str = ""
    is_awaiting_approval: bool = False
    urls: tuple[str, ...] = ()
    progress: int | None = None
    retry_after_seconds: float | None = None
    unknown_state: str = ""


class Upstream(Protocol):
    """The client of one provider. It makes one try, within a time of its own, and never raises for an answer."""

    async def submit(self, action: Action, request: dict[str, Any], *, may_send: Callable[[], bool]) -> UpstreamResult:
        """Sends one job, if `may_send` still allows it when the connection is open."""

    async def poll(self, action: Action, task_id: str) -> UpstreamResult:
        """Asks for the state of one job."""

    async def upload(self, path: Path) -> UpstreamResult:
        """Stores a file at the provider: SUCCEEDED with its URL. It may be repeated without harm."""

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Provider:
    """One provider: its actions, and how its client is opened. `registry.PROVIDERS` lists all."""

    name: str
    open: Callable[[Settings], Upstream]
    actions: Callable[[Settings], Iterable[Action]]
    known_actions: tuple[Action, ...]
    """What a model may name; `actions` may hold another form of an action, by the settings."""
