"""A job over time: what a look at a given moment shows. Knows no HTTP and no clock; only counters change."""

import hashlib
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import Any

from app.sandbox.plan import Plan, Trouble
from app.sandbox.works import Work

USUAL_SECONDS = (3.0, 6.0)
PENDING_SHARE = 0.15
JOBS_KEPT = 50_000
AWAITING = "awaiting_user_approval"


@dataclass(frozen=True, slots=True)
class Words:
    """An action's own words for its states, in small letters. `shouts`: `status` shows them in capitals."""

    pending: str
    running: str
    success: str
    shouts: bool = False


@dataclass(slots=True)
class Job:
    """An accepted job. Times are monotonic seconds; `work` is what it makes, `prompt_digest` tells prompts apart.

    `facts` are what its answers say beside what all answers of its action say.
    """

    task_id: str
    action: str
    plan: Plan
    work: Work
    words: Words
    prompt_digest: str
    cost_points: int
    submitted_at: float
    take_seconds: float
    facts: dict[str, Any] = field(default_factory=dict)
    used: Counter[int] = field(default_factory=Counter)
    looks_at_success: int = 0

    @property
    def begins_at(self) -> float:
        """The moment the work begins: at once, or when the approval is given."""
        return self.submitted_at + (self.plan.approval_seconds or 0.0)

    @property
    def ends_at(self) -> float | None:
        """The moment it ends; None where it never does."""
        if self.plan.expires_unapproved:
            return self.begins_at
        return None if self.plan.never_finishes else self.begins_at + self.take_seconds


@dataclass(frozen=True, slots=True)
class Look:
    """What is visible of a job at one moment. `status` and `state` are the same word, perhaps in two cases."""

    status: str
    state: str
    progress: int
    has_ended: bool = False
    has_succeeded: bool = False
    approval_left_seconds: float | None = None


def first_look(job: Job) -> Look:
    """What the answer to a submit shows: nothing has begun, however short the job may be."""
    left = job.plan.approval_seconds
    return Look(*_words(job, job.words.pending if left is None else AWAITING), 0, approval_left_seconds=left)


def look_at(job: Job, now: float) -> Look:
    """Waiting for approval where the plan asks for it, then pending, then running, then the end the plan asks for."""
    plan = job.plan
    if job.ends_at is not None and now >= job.ends_at:
        usual = "expired" if plan.expires_unapproved else job.words.success
        words = _words(job, usual, "" if plan.expires_unapproved else plan.end_word)
        return Look(*words, 100 if plan.succeeds else _progress(plan, 0.99), True, plan.succeeds)
    if now < job.begins_at:
        return Look(*_words(job, AWAITING), 0, approval_left_seconds=job.begins_at - now)
    done_share = min((now - job.begins_at) / job.take_seconds, 0.99) if job.take_seconds else 0.99
    usual = job.words.pending if done_share < PENDING_SHARE else job.words.running
    return Look(*_words(job, usual, plan.running_word), _progress(plan, done_share))


def _words(job: Job, usual: str, asked: str = "") -> tuple[str, str]:
    return (asked, asked) if asked else (usual.upper() if job.words.shouts else usual, usual)


def _progress(plan: Plan, done_share: float) -> int:
    if plan.progress:
        return plan.progress[min(int(done_share * len(plan.progress)), len(plan.progress) - 1)]
    return int(done_share * 100)


def usual_seconds(task_id: str, between: tuple[float, float] = USUAL_SECONDS) -> float:
    """Some time between the two, the same for the same task."""
    share = hashlib.sha256(task_id.encode()).digest()[0] / 255
    return between[0] + share * (between[1] - between[0])


def next_trouble(troubles: tuple[Trouble, ...], where: str, used: Counter[int]) -> Trouble | None:
    """The first trouble for this place that is not used up, and counts it: several of them form a queue."""
    for index, trouble in enumerate(troubles):
        if trouble.where == where and (trouble.times is None or used[index] < trouble.times):
            used[index] += 1
            return trouble
    return None


class JobBook:
    """The newest jobs, what each action consumed, and how often a prompt met its submit troubles. Forgets the oldest.

    A job is paid when it is accepted, where its plan lets it succeed.
    """

    def __init__(self, limit: int = JOBS_KEPT) -> None:
        self._limit = limit
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._newest_ids: dict[str, str] = {}
        self._used_by_prompt: OrderedDict[str, Counter[int]] = OrderedDict()
        self.requests: Counter[str] = Counter()
        self.cost_points: Counter[str] = Counter()

    def open(self, job: Job) -> None:
        self._jobs[job.task_id] = job
        self._newest_ids[job.action] = job.task_id
        self.requests[job.action] += 1
        self.cost_points[job.action] += job.cost_points if job.plan.succeeds else 0
        if len(self._jobs) > self._limit:
            self._jobs.popitem(last=False)

    def find(self, task_id: str) -> Job | None:
        return self._jobs.get(task_id)

    def newest_id(self, action: str) -> str | None:
        return self._newest_ids.get(action)

    def used_by(self, prompt_digest: str) -> Counter[int]:
        """How often each submit trouble of this prompt was used, by its place among the plan's troubles."""
        used = self._used_by_prompt.setdefault(prompt_digest, Counter())
        self._used_by_prompt.move_to_end(prompt_digest)
        if len(self._used_by_prompt) > self._limit:
            self._used_by_prompt.popitem(last=False)
        return used
