"""A job over time: its status at any given moment. Knows no HTTP and no clock; only counters change."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

from app.sandbox.media.render import MediaSpec
from app.sandbox.rules.rule_set import RuleSet
from app.sandbox.rules.scenario import Scenario

TYPICAL_SECONDS = (3.0, 6.0)
PENDING_FRACTION = 0.15
MAX_FRACTION_BEFORE_END = 0.99
AWAITING_APPROVAL = "awaiting_user_approval"


@dataclass(frozen=True, slots=True)
class StateNames:
    """An action's own names for its states, in lower case. With `uppercase` the field `status` has capitals."""

    pending: str
    running: str
    success: str
    uppercase: bool = False


@dataclass(slots=True)
class Job:
    """An accepted job. Times are monotonic seconds; `media` is what it produces, `rules` are those of its prompt.

    `extra_fields` are in its responses beside the fields that all responses of its action have.
    """

    task_id: str
    action: str
    scenario: Scenario
    media: MediaSpec
    state_names: StateNames
    cost_points: int
    submitted_at: float
    take_seconds: float
    rules: RuleSet = field(default_factory=RuleSet)
    extra_fields: dict[str, Any] = field(default_factory=dict)
    success_polls: int = 0

    @property
    def started_at(self) -> float:
        """When the job starts: at once, or when the approval is given."""
        return self.submitted_at + (self.scenario.approval_seconds or 0.0)

    @property
    def ends_at(self) -> float | None:
        """When the job ends; None where it never does."""
        if self.scenario.expires_unapproved:
            return self.started_at
        return None if self.scenario.never_ends else self.started_at + self.take_seconds


@dataclass(frozen=True, slots=True)
class JobStatus:
    """The status of a job at one moment. `status` and `state` are the same word, perhaps in two cases."""

    status: str
    state: str
    progress: int
    has_ended: bool = False
    has_succeeded: bool = False
    approval_left_seconds: float | None = None


def initial_status(job: Job) -> JobStatus:
    """The status in the response to a submit: nothing has started, however short the job may be."""
    left = job.scenario.approval_seconds
    words = _status_and_state(job, job.state_names.pending if left is None else AWAITING_APPROVAL)
    return JobStatus(*words, 0, approval_left_seconds=left)


def status_at(job: Job, now: float) -> JobStatus:
    """Waiting for approval where the scenario asks for it, then pending, then running, then ended."""
    scenario, names = job.scenario, job.state_names
    if job.ends_at is not None and now >= job.ends_at:
        if scenario.expires_unapproved:
            words = _status_and_state(job, "expired")
        else:
            words = _status_and_state(job, names.success, scenario.end)
        progress = 100 if scenario.succeeds else _progress(scenario, MAX_FRACTION_BEFORE_END)
        return JobStatus(*words, progress, has_ended=True, has_succeeded=scenario.succeeds)
    if now < job.started_at:
        words = _status_and_state(job, AWAITING_APPROVAL)
        return JobStatus(*words, 0, approval_left_seconds=job.started_at - now)
    fraction = (now - job.started_at) / job.take_seconds if job.take_seconds else MAX_FRACTION_BEFORE_END
    fraction = min(fraction, MAX_FRACTION_BEFORE_END)
    words = _status_and_state(job, names.pending if fraction < PENDING_FRACTION else names.running, scenario.state)
    return JobStatus(*words, _progress(scenario, fraction))


def typical_seconds(task_id: str, between: tuple[float, float] = TYPICAL_SECONDS) -> float:
    """Some time between the two, the same for the same task."""
    fraction = hashlib.sha256(task_id.encode()).digest()[0] / 255
    return between[0] + fraction * (between[1] - between[0])


def _status_and_state(job: Job, state: str, override: str | None = None) -> tuple[str, str]:
    """The two words; an override is shown as it is spelled."""
    if override:
        return override, override
    return state.upper() if job.state_names.uppercase else state, state


def _progress(scenario: Scenario, fraction: float) -> int:
    if scenario.progress:
        return scenario.progress[min(int(fraction * len(scenario.progress)), len(scenario.progress) - 1)]
    return int(fraction * 100)
