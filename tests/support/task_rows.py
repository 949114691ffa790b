"""What no caller may see of a task, for tests that check it: its row, SEE2AI's request log, an earlier deadline."""

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import update

from app.database import utc_after
from app.engine.runner import TaskRunner
from app.runtime import Runtime
from app.tables import tasks
from app.tasks.queries import get_task_for_operator
from tests.support.makers import Maker, User
from tests.support.sandbox_server import Server

_numbers = itertools.count(1)
SECRET = "geheim"
"""A word in SEE2AI's texts that callers must never see."""


@dataclass(frozen=True)
class Ended:
    """An ended task: as its caller sees it, all texts that the caller sees except the prompts, and its row."""

    task: dict[str, Any]
    words: str
    row: dict[str, Any]

    @property
    def prompt(self) -> str:
        return str(self.task["prompt"])

    @property
    def outcome(self) -> str:
        return "completed" if self.task["status"] == "completed" else str(self.task["errorCode"])


def shorten_delays(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.05) -> None:
    """An idle worker polls at this short interval, instead of once a second."""
    assert TaskRunner.__init__.__kwdefaults__ is not None
    monkeypatch.setitem(TaskRunner.__init__.__kwdefaults__, "idle_seconds", seconds)


async def row_of(runtime: Runtime, task_no: str) -> dict[str, Any]:
    return await get_task_for_operator(runtime.database, task_no)


async def set_deadline(runtime: Runtime, task_no: str, seconds: float) -> None:
    """Seconds from now, by the database's clock. The next worker that claims the task sees it."""
    async with runtime.database.begin() as connection:
        await connection.execute(
            update(tasks).where(tasks.c.task_no == task_no).values(deadline_at=utc_after(float(seconds)))
        )


async def ended(make: Maker, user: User, task_no: str, seconds: float = 120) -> Ended:
    task = await make.ended(user, task_no, seconds)
    one = await make.api.get(f"/user/ai/tasks/{task_no}", headers=user.headers)
    many = await make.api.get("/user/ai/tasks/list?size=100", headers=user.headers)
    payload = [one.json()["data"], *many.json()["data"]["records"]]
    # The prompt is the caller's own text, and tells the sandbox its answer.
    words = json.dumps(
        [{name: value for name, value in seen.items() if not name.startswith("prompt")} for seen in payload],
        ensure_ascii=False,
    )
    return Ended(task, words, await row_of(make.runtime, task_no))


async def run_all(make: Maker, user: User, prompts: Iterable[str], seconds: float = 120) -> dict[str, Ended]:
    """Submits all prompts with a unique number in each, then waits for all ends. The keys have no numbers.

    The sandbox counts the faults of a submit by distinct prompt, and serves all tests of a run.
    """
    numbers = {prompt: await make.task_no(user, distinct(prompt)) for prompt in prompts}
    return {prompt: await ended(make, user, task_no, seconds) for prompt, task_no in numbers.items()}


def distinct(prompt: str) -> str:
    return f"{prompt} {next(_numbers)}"


def submits(upstream: Server, prompt: str, outcome: str = "") -> list[dict[str, Any]]:
    """The submits of exactly this prompt in the request log, oldest first."""
    return [
        entry
        for entry in upstream.journal()
        if entry["method"] == "POST"
        and isinstance(entry["body"], dict)
        and entry["body"].get("prompt") == prompt
        and outcome in {"", entry["outcome"]}
    ]


def polls(upstream: Server, row: dict[str, Any]) -> list[dict[str, Any]]:
    """The polls of the row's job in the request log, oldest first."""
    return [entry for entry in upstream.journal() if entry["path"].endswith(f"/status/{row['upstream_task_id']}")]


def fetches(upstream: Server, row: dict[str, Any]) -> list[dict[str, Any]]:
    """The downloads of the row's pictures in the request log, oldest first."""
    return [entry for entry in upstream.journal() if entry["path"].startswith(f"/results/{row['upstream_task_id']}")]
