"""A job over time: what a look at a given moment shows. Knows no HTTP and no clock; only counters change."""

import hashlib
from collections import Counter, OrderedDict
from dataclasses import dataclass, field

from app.sandbox.markers import Plan, Trouble

SHORTEST_JOB_SECONDS = 3.0
LONGEST_JOB_SECONDS = 6.0
PENDING_SHARE = 0.15
JOBS_KEPT = 50_000
COST_POINTS = {"1K": 25_000, "2K": 40_000}
"""The sandbox's own prices in platform tokens; SEE2AI only says that they depend on the resolution."""


@dataclass(slots=True)
class Job:
    """An accepted job. Times are monotonic seconds; `text` is what the picture shows, already shortened."""

    task_id: str
    plan: Plan
    text: str
    prompt_digest: str
    aspect_ratio: str
    resolution: str
    output_format: str
    references: int
    submitted_at: float
    take_seconds: float
    used: Counter[int] = field(default_factory=Counter)
    looks_at_success: int = 0

    @property
    def ends_at(self) -> float | None:
        """The moment it ends; None where it never does."""
        return None if self.plan.never_finishes else self.submitted_at + self.take_seconds

    @property
    def cost_points(self) -> int:
        return COST_POINTS[self.resolution]


@dataclass(frozen=True, slots=True)
class Look:
    """What is visible of a job at one moment. `status` and `state` are the same word in two cases."""

    status: str
    state: str
    progress: int
    has_ended: bool
    has_succeeded: bool


def look_at(job: Job, now: float) -> Look:
    """PENDING, then RUNNING, then the end the plan asks for (SUCCESS where it asks for none)."""
    plan = job.plan
    if job.ends_at is not None and now >= job.ends_at:
        words = _words("SUCCESS", plan.end_word)
        return Look(*words, 100 if plan.succeeds else _progress(plan, 0.99), True, plan.succeeds)
    done_share = min((now - job.submitted_at) / job.take_seconds, 0.99) if job.take_seconds else 0.99
    words = _words("PENDING" if done_share < PENDING_SHARE else "RUNNING", plan.running_word)
    return Look(*words, _progress(plan, done_share), has_ended=False, has_succeeded=False)


def _words(usual: str, asked: str) -> tuple[str, str]:
    return (asked, asked) if asked else (usual, usual.lower())


def _progress(plan: Plan, done_share: float) -> int:
    if plan.progress:
        return plan.progress[min(int(done_share * len(plan.progress)), len(plan.progress) - 1)]
    return int(done_share * 100)


def usual_seconds(task_id: str) -> float:
    """Three to six seconds, the same for the same task."""
    share = hashlib.sha256(task_id.encode()).digest()[0] / 255
    return SHORTEST_JOB_SECONDS + share * (LONGEST_JOB_SECONDS - SHORTEST_JOB_SECONDS)


def next_trouble(troubles: tuple[Trouble, ...], where: str, used: Counter[int]) -> Trouble | None:
    """The first trouble for this place that is not used up, and counts it: several of them form a queue."""
    for index, trouble in enumerate(troubles):
        if trouble.where == where and (trouble.times is None or used[index] < trouble.times):
            used[index] += 1
            return trouble
    return None


class JobBook:
    """The newest jobs, and how often each distinct prompt met its submit troubles. Forgets the oldest."""

    def __init__(self, limit: int = JOBS_KEPT) -> None:
        self._limit = limit
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._used_by_prompt: OrderedDict[str, Counter[int]] = OrderedDict()
        self.accepted = 0
        self.cost_points = 0

    def open(self, job: Job) -> None:
        self._jobs[job.task_id] = job
        self.accepted += 1
        self.cost_points += job.cost_points if job.plan.succeeds else 0
        if len(self._jobs) > self._limit:
            self._jobs.popitem(last=False)

    def find(self, task_id: str) -> Job | None:
        return self._jobs.get(task_id)

    def newest_id(self) -> str | None:
        return next(reversed(self._jobs), None)

    def used_by(self, prompt_digest: str) -> Counter[int]:
        """How often each submit trouble of this prompt was used, by its place among the plan's troubles."""
        used = self._used_by_prompt.setdefault(prompt_digest, Counter())
        self._used_by_prompt.move_to_end(prompt_digest)
        if len(self._used_by_prompt) > self._limit:
            self._used_by_prompt.popitem(last=False)
        return used
