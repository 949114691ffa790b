"""What the sandbox knows of one action: its words, how its input is read, and what its answers say. No HTTP paths."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from starlette.responses import JSONResponse, Response

from app.sandbox.bodies import InputError
from app.sandbox.jobs import USUAL_SECONDS, Job, Look, Words
from app.sandbox.refusals import REASONS
from app.sandbox.works import Work

HOUR_SECONDS = 3600.0
OK = 200


@dataclass(frozen=True, slots=True)
class Order:
    """A validated input. `prompt` is where markers stand; `work` lacks text and digest, and the task id in its label.

    `blocks`: the plain POST answers only when the job is done.
    """

    prompt: str
    work: Work
    cost_points: int
    blocks: bool = False
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A submit on its way in: the request and its parsed body."""

    request: Request
    parsed: Any


@dataclass(frozen=True, slots=True)
class Moment:
    """A job at the moment it is looked at; `urls` only where it shows its results."""

    job: Job
    look: Look
    urls: list[str]
    now: float


class Action(ABC):
    """One action. `field` says which field carries the word: status, state or both."""

    name: str
    model: str
    words: Words
    field: str = "both"
    usual_seconds: tuple[float, float] = USUAL_SECONDS
    urls_live_seconds: float = HOUR_SECONDS
    marker_field: str = "prompt"
    has_async_path: bool = False
    has_status_path: bool = True
    knows_places: bool = False
    knows_images: bool = True

    @abstractmethod
    async def read(self, arrival: Arrival) -> Order:
        """The order in a parsed body. Raises InputError."""

    @abstractmethod
    def result(self, moment: Moment) -> dict[str, Any]:
        """The fields in which this action gives its result and its progress."""

    def refuse(self, error: InputError) -> Response:
        """How an input that breaks the rules is answered."""
        return JSONResponse({"detail": error.faults}, error.code)

    def failure(self, job: Job) -> tuple[int, dict[str, Any]]:
        """Status code and further fields of the answer to a look at a failed job."""
        return OK, {"error_message": self.reason(job)}

    def answer(self, moment: Moment) -> dict[str, Any]:
        """SEE2AI's published output, and what SEE2AI shows beside it: `status`, `state`, `progress`."""
        job, look, now = moment.job, moment.look, moment.now
        spent = ((job.ends_at or now) if look.has_ended else now) - job.submitted_at
        return {
            **self.envelope(job, look),
            **self.result(moment),
            "task_id": job.task_id,
            "cost_time": round(spent * 1000),
            **self.word(job, look),
            "provider_config_id": None,
            **job.facts,
        }

    def envelope(self, job: Job, look: Look) -> dict[str, Any]:
        """The fields that every action's output begins with."""
        return {
            "input_tokens": 0,
            "output_tokens": 0,
            "total_tokens": 0,
            "model": self.model,
            "source": "see2ai",
            "cost_points": job.cost_points if look.has_succeeded else None,
            "warnings": None,
        }

    def word(self, job: Job, look: Look) -> dict[str, Any]:
        both = {"status": look.status, "state": look.state}
        chosen = job.plan.field or self.field
        return both if chosen == "both" else {chosen: both[chosen]}

    def reason(self, job: Job) -> str:
        """Why the job failed."""
        usual = "The approval expired." if job.plan.expires_unapproved else REASONS[500]
        return job.plan.end_reason or usual
