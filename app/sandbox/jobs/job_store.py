"""The newest jobs, what each action consumed, and how often the rules of a prompt were used at its submits."""

from collections import Counter, OrderedDict, defaultdict
from datetime import datetime, timedelta, timezone

from app.sandbox import clock
from app.sandbox.jobs.job import Job

MAX_JOBS = 50_000
CHINA = timezone(timedelta(hours=8))


def day_of(monotonic_seconds: float) -> str:
    """The day of a time in China, where SEE2AI is."""
    return datetime.fromtimestamp(clock.to_unix(monotonic_seconds), CHINA).date().isoformat()


class JobStore:
    """Forgets the oldest. A job is charged when it is accepted, where its scenario lets it succeed."""

    def __init__(self, max_jobs: int = MAX_JOBS) -> None:
        self._max_jobs = max_jobs
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._newest_ids: dict[str, str] = {}
        self._uses_by_prompt: OrderedDict[str, Counter[int]] = OrderedDict()
        self.requests: Counter[str] = Counter()
        self.cost_points: Counter[str] = Counter()
        self._requests_by_day: dict[str, Counter[str]] = defaultdict(Counter)
        self._cost_points_by_day: dict[str, Counter[str]] = defaultdict(Counter)

    def add(self, job: Job) -> None:
        self._jobs[job.task_id] = job
        self._newest_ids[job.action] = job.task_id
        day, cost_points = day_of(job.submitted_at), job.cost_points if job.scenario.succeeds else 0
        for requests in (self.requests, self._requests_by_day[day]):
            requests[job.action] += 1
        for costs in (self.cost_points, self._cost_points_by_day[day]):
            costs[job.action] += cost_points
        if len(self._jobs) > self._max_jobs:
            self._jobs.popitem(last=False)

    def consumed(self, day: str | None) -> tuple[Counter[str], Counter[str]]:
        """The requests and the cost by action: of one day, or since the start."""
        if day is None:
            return self.requests, self.cost_points
        return self._requests_by_day.get(day, Counter()), self._cost_points_by_day.get(day, Counter())

    def find(self, task_id: str) -> Job | None:
        return self._jobs.get(task_id)

    def newest_id(self, action: str) -> str | None:
        return self._newest_ids.get(action)

    def uses_of(self, prompt_key: str) -> Counter[int]:
        """How often each rule of this prompt was used at a submit, by its place among the rules."""
        uses = self._uses_by_prompt.setdefault(prompt_key, Counter())
        self._uses_by_prompt.move_to_end(prompt_key)
        if len(self._uses_by_prompt) > self._max_jobs:
            self._uses_by_prompt.popitem(last=False)
        return uses
