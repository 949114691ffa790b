"""What the sandbox knows of one action: its states, how it reads its input, what its responses say. No HTTP paths."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from starlette.responses import JSONResponse, Response

from app.sandbox.error_responses import REASONS
from app.sandbox.jobs.job import TYPICAL_SECONDS, Job, JobStatus, StateNames
from app.sandbox.media.render import MediaSpec
from app.sandbox.parsing import InputError

HOUR_SECONDS = 3600.0
OK = 200


@dataclass(frozen=True, slots=True)
class SubmitRequest:
    """A submit before it is validated: the request and its parsed body."""

    request: Request
    parsed: Any


@dataclass(frozen=True, slots=True)
class JobSpec:
    """A validated input. `prompt` holds the directives; `media` lacks text and digest, and the task id in its label.

    With `blocks` the plain POST answers only when the job is done.
    """

    prompt: str
    media: MediaSpec
    cost_points: int
    blocks: bool = False
    extra_fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JobSnapshot:
    """A job at one moment, `now`; `urls` only where it shows its results."""

    job: Job
    status: JobStatus
    urls: list[str]
    now: float


class Action(ABC):
    """One action. `state_field` says which field carries the state: status, state or both."""

    name: str
    model: str
    state_names: StateNames
    state_field: str = "both"
    typical_seconds: tuple[float, float] = TYPICAL_SECONDS
    url_lifetime_seconds: float = HOUR_SECONDS
    directive_field: str = "prompt"
    has_async_path: bool = False
    has_status_path: bool = True
    has_image_fields: bool = False
    has_result_list: bool = True

    @abstractmethod
    async def read(self, submit: SubmitRequest) -> JobSpec:
        """The job that a parsed body asks for. Raises InputError."""

    @abstractmethod
    def result(self, snapshot: JobSnapshot) -> dict[str, Any]:
        """The fields in which this action gives its result and its progress."""

    def refuse(self, error: InputError) -> Response:
        """The response to an input that breaks the rules of the action."""
        return JSONResponse({"detail": error.errors}, error.code)

    def failure(self, job: Job) -> tuple[int, dict[str, Any]]:
        """Status code and further fields of the response to a poll of a failed job."""
        return OK, {"error_message": self.reason(job)}

    def answer(self, snapshot: JobSnapshot) -> dict[str, Any]:
        """SEE2AI's published output, and what SEE2AI shows beside it: `status`, `state`, `progress`."""
        job, status, now = snapshot.job, snapshot.status, snapshot.now
        elapsed_seconds = ((job.ends_at or now) if status.has_ended else now) - job.submitted_at
        return {
            **self.common_fields(job, status),
            **self.result(snapshot),
            "task_id": job.task_id,
            "cost_time": round(elapsed_seconds * 1000),
            **self.state_fields(job, status),
            "provider_config_id": None,
            **job.extra_fields,
        }

    def common_fields(self, job: Job, status: JobStatus) -> dict[str, Any]:
        """The fields that every action's output begins with."""
        return {
            "input_tokens": 0,
            "output_tokens": 0,
            "total_tokens": 0,
            "model": self.model,
            "source": "see2ai",
            "cost_points": job.cost_points if status.has_succeeded else None,
            "warnings": None,
        }

    def state_fields(self, job: Job, status: JobStatus) -> dict[str, Any]:
        both = {"status": status.status, "state": status.state}
        chosen = job.scenario.state_field or self.state_field
        return both if chosen == "both" else {chosen: both[chosen]}

    def reason(self, job: Job) -> str:
        """Why the job failed."""
        default = "The approval expired." if job.scenario.expires_unapproved else REASONS[500]
        return job.scenario.text or default
