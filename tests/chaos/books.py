"""Compares the records after a storm: the database, SEE2AI's request log, the bucket and the callers must agree."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select

from app.points.audit.checks import audit
from app.runtime import Runtime
from app.tables import points_accounts, points_ledger, tasks
from tests.chaos.bank import ActionInput
from tests.chaos.callers import Diary

CLOCKS_SECONDS = 0.05  # the largest error between the time of the database and that of the request log
MAX_SHOWN = 10
KNOWS_ITS_JOB = ("RESULT_LOST",)  # an action without a task id, whose answer was the result


@dataclass
class Story:
    """All records of one storm."""

    tasks: list[dict[str, Any]]
    accounts: list[dict[str, Any]]
    ledger: list[dict[str, Any]]
    accepted: list[dict[str, Any]]  # entries of the request log for accepted submits
    diary: Diary
    orders: dict[str, ActionInput]
    violations: list[str] = field(default_factory=list)  # of `gateway audit`
    run: str = "chaos"
    hostile_id: int = 0  # whose tasks have no word

    def __post_init__(self) -> None:
        self.words = re.compile(rf"{re.escape(self.run)}-\d+\.(?:\d+\.)?")
        self.by_word: dict[str, list[dict[str, Any]]] = {}
        for task in self.tasks:
            if task["user_id"] == self.hostile_id:
                continue
            self.by_word.setdefault(self.word_of(task), []).append(task)
        self.jobs: dict[str, list[dict[str, Any]]] = {}
        for entry in self.accepted:
            if word := self.word_of_job(entry):
                self.jobs.setdefault(word, []).append(entry)

    def word_of(self, task: dict[str, Any]) -> str:
        found = self.words.search(f"{task['prompt']} {json.dumps(task['image_url'])}")
        return found[0] if found else f"no word: {task['task_no']}"

    def word_of_job(self, entry: dict[str, Any]) -> str | None:
        """None for a call that prepares a job: a reference that is normalized or uploaded."""
        found = self.words.search(json.dumps(entry["body"], ensure_ascii=False))
        return found[0] if found else None

    def ended(self, status: str) -> list[dict[str, Any]]:
        return [task for task in self.tasks if task["status"] == status]

    def kinds(self) -> Counter[str]:
        return Counter(entry["kind"] for entry in self.ledger)


async def read_story(runtime: Runtime, journal: list[dict[str, Any]], diary: Diary, **rest: Any) -> Story:
    async with runtime.database.read(120) as connection:
        rows = {
            table.name: [dict(row._mapping) for row in await connection.execute(select(table))]
            for table in (tasks, points_accounts, points_ledger)
        }
    violations = [f"{one.invariant} {one.meaning}: {one.row}" for one in await audit(runtime.database)]
    accounts, entries = rows["points_accounts"], rows["points_ledger"]
    accepted = [entry for entry in journal if entry["outcome"] == "accepted"]
    return Story(rows["tasks"], accounts, entries, accepted, diary, violations=violations, **rest)


def differences(story: Story, *, is_stored: Callable[[str], bool]) -> list[str]:
    """All differences between the records. After a storm the list must be empty."""
    return [
        line
        for check in (_ends, _money, _jobs, _late, _callers, _results(is_stored), _audit)
        for line in _few(check.__name__, list(check(story)))
    ]


def _few(name: str, lines: list[str]) -> list[str]:
    more = [f"… and {len(lines) - MAX_SHOWN} more of {name.strip('_')}"] if len(lines) > MAX_SHOWN else []
    return lines[:MAX_SHOWN] + more


def _audit(story: Story) -> Iterable[str]:
    return [f"gateway audit: {line}" for line in story.violations]


def _ends(story: Story) -> Iterable[str]:
    for task in story.tasks:
        if task["status"] not in {"completed", "failed"}:
            yield f"{task['task_no']} has not ended: {task['status']}, step {task['step']}"


def _money(story: Story) -> Iterable[str]:
    """Grants equal orders. Each task has one opening and one closing entry of its price. Nothing stays held."""
    ordered: Counter[int] = Counter()
    for order in story.orders.values():
        ordered[order.user_id] += order.points
    for account in story.accounts:
        if account["granted"] != ordered[account["user_id"]]:
            yield f"user {account['user_id']} was granted {account['granted']}, ordered {ordered[account['user_id']]}"
        if account["held"]:
            yield f"user {account['user_id']} has {account['held']} points held by no task"
    kinds: dict[int, list[tuple[str, int]]] = {}
    for entry in story.ledger:
        if entry["task_id"] is not None:
            kinds.setdefault(entry["task_id"], []).append((entry["kind"], entry["held"]))
    for task in story.tasks:
        cost, end = task["points_cost"], {"completed": "settle", "failed": "refund"}.get(task["status"])
        wanted = sorted([("deduct", cost), *([(end, -cost)] if end else [])])
        if sorted(kinds.pop(task["id"], [])) != wanted:
            yield f"{task['task_no']} ({task['status']}) has not just {wanted} in the ledger"
    for task_id in kinds:
        yield f"the ledger names task {task_id}, which is not there"


def _jobs(story: Story) -> Iterable[str]:
    """At most one job for each task, no job without a task, and a flag on each lost job."""
    for word, entries in story.jobs.items():
        if word not in story.by_word:
            yield f"SEE2AI has {len(entries)} jobs for {word}, which is no task"
        if len(entries) > 1:
            yield f"SEE2AI has {len(entries)} jobs for {word}"
    for word, (task, *_) in story.by_word.items():
        entries = story.jobs.get(word, [])
        if task["status"] == "completed" and len(entries) != 1:
            yield f"{task['task_no']} is completed with {len(entries)} jobs"
        is_known = task["upstream_task_id"] is not None or task["error_code"] in KNOWS_ITS_JOB
        if task["status"] == "failed" and entries and not is_known and not task["suspected_orphan"]:
            yield f"{task['task_no']} ({task['error_code']}) left a job at SEE2AI and is not flagged"


def _late(story: Story) -> Iterable[str]:
    for task, seconds in after_the_end(story):
        if seconds > CLOCKS_SECONDS:
            yield f"{task['task_no']} was sent {seconds:.2f} s after its refund ({task['error_code']})"


def after_the_end(story: Story) -> Iterable[tuple[dict[str, Any], float]]:
    """Each job of a refunded task, and the seconds from the refund to its arrival. They must be negative."""
    for word, (task, *_) in story.by_word.items():
        if task["status"] == "failed":
            for entry in story.jobs.get(word, []):
                yield task, entry["time"] - _seconds(task["completed_at"])


def _seconds(moment: datetime) -> float:
    return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()


def _callers(story: Story) -> Iterable[str]:
    """One task for each key. Each task answered with 200 is stored. A cancelled task has no job."""
    for word, found in story.by_word.items():
        if len(found) > 1:
            yield f"{word} became {len(found)} tasks"
    for word, numbers in story.diary.payload.items():
        stored = {task["task_no"] for task in story.by_word.get(word, [])}
        if len(numbers) > 1:
            yield f"{word} was answered with {sorted(numbers)}"
        if not numbers <= stored:
            yield f"{word} was answered with {sorted(numbers)}, stored is {sorted(stored) or 'nothing'}"
    for task in story.tasks:
        if task["task_no"] in story.diary.cancelled and task["error_code"] != "CANCELLED":
            yield f"{task['task_no']} was answered as cancelled and is {task['status']} {task['error_code']}"
        if task["error_code"] == "CANCELLED" and story.jobs.get(story.word_of(task)):
            yield f"{task['task_no']} was cancelled and sent"
    for status in story.diary.answers:
        if re.search(r": (5(?!03)\d\d|400|401|403|404|409) ", status + " ") and not status.startswith("cancel: 409"):
            yield f"callers were answered {status}"


def _results(is_stored: Callable[[str], bool]) -> Callable[[Story], Iterable[str]]:
    def results(story: Story) -> Iterable[str]:
        """The files of each completed task are in the bucket."""
        for task in story.ended("completed"):
            keys = [result[name] for result in task["results"] for name in ("key", "thumbnailKey") if result.get(name)]
            for key in keys:
                if not is_stored(key):
                    yield f"{task['task_no']}: {key} is not in the bucket"

    return results
