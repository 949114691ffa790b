"""The bill of a day: what SEE2AI says that we consumed, beside what the gateway charged for the tasks of that day.

The day of a task is the local day in its number. SEE2AI bills by action, and several models may use one action: then
the cost of a model is its share of the action's jobs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import bindparam, case, func, select

from app.database import Database
from app.errors import Unavailable
from app.runtime import Runtime
from app.tables import tasks
from app.upstreams.see2ai.account import TOKENS_PER_RMB, see2ai_client
from app.upstreams.see2ai.client import UpstreamUnreachable
from app.upstreams.see2ai.usage import ActionUsage, Usage, get_usage

DAY_SECONDS = 60.0
"""The tasks of a day may be many; the database reads them by their numbers."""
JOBS_AT_ONCE = 500
MAX_UNOWNED_SHOWN = 100


@dataclass(frozen=True, slots=True)
class ModelBill:
    """One model on one day. `cost_tokens` is None where SEE2AI does not tell the cost of its action.

    `jobs` are the tasks that SEE2AI accepted. `is_share`: other models used the same action on that day.
    """

    model_name: str
    action: str
    tasks: int
    completed: int
    failed: int
    running: int
    jobs: int
    points_settled: int
    points_refunded: int
    points_held: int
    cost_tokens: Decimal | None = None
    is_share: bool = False

    @property
    def cost_rmb(self) -> Decimal | None:
        return None if self.cost_tokens is None else self.cost_tokens / TOKENS_PER_RMB

    def margin(self, rmb_per_point: Decimal) -> Decimal | None:
        """The part of the income that is left after SEE2AI's bill; None without an income or a known cost."""
        income = self.points_settled * rmb_per_point
        return None if self.cost_rmb is None or not income else (income - self.cost_rmb) / income


@dataclass(frozen=True, slots=True)
class ActionBill:
    """One action on one day: SEE2AI's figures, and our number of jobs.

    `unowned` is how many more calls SEE2AI counts than we have jobs. A reference that was normalized for a task is such
    a call, too.
    """

    action: str
    upstream_calls: int | None
    upstream_cost_tokens: Decimal | None
    jobs: int

    @property
    def unowned(self) -> int | None:
        return None if self.upstream_calls is None else max(self.upstream_calls - self.jobs, 0)


@dataclass(frozen=True, slots=True)
class Bill:
    """A day. `unowned_jobs` are the jobs in SEE2AI's list that no task has: at most MAX_UNOWNED_SHOWN.

    `is_dated` False: SEE2AI's answer names no day, so its figures may be those of a longer time.
    """

    day: date
    is_dated: bool
    models: list[ModelBill]
    actions: list[ActionBill]
    unowned_jobs: list[tuple[str, str]]


async def daily_bill(runtime: Runtime, day: date) -> Bill:
    """The bill of a local day. Raises Unavailable where SEE2AI does not tell its usage."""
    if not runtime.settings.see2ai_api_key:
        raise Unavailable("没有设置 SEE2AI_API_KEY")
    try:
        usage = await get_usage(see2ai_client(runtime.upstreams), day)
    except UpstreamUnreachable as error:
        raise Unavailable(f"SEE2AI 的用量暂时无法读取: {error}"[:300]) from error
    charged = await _charged(runtime.database, day)
    jobs = {name: sum(one.jobs for one in charged if one.action == name) for name in {one.action for one in charged}}
    return Bill(
        day,
        usage.is_dated,
        [_with_cost(one, usage, jobs, charged) for one in charged],
        _actions(usage, jobs),
        await _unowned_jobs(runtime.database, usage.jobs),
    )


async def _charged(database: Database, day: date) -> list[ModelBill]:
    async with database.read(DAY_SECONDS) as connection:
        rows = (await connection.execute(_OF_DAY, {"first": _first_number(day), "next": _next_number(day)})).all()
    found = []
    for row in sorted(rows, key=lambda row: (row.action, row.model_name)):
        sums: dict[str, Any] = {name: int(getattr(row, name) or 0) for name in _SUMS}
        found.append(ModelBill(model_name=row.model_name, action=row.action, **sums))
    return found


def _first_number(day: date) -> str:
    return f"TASK-{day.isoformat().replace('-', '')}"


def _next_number(day: date) -> str:
    return "TASK-:" if day == date.max else _first_number(day + timedelta(days=1))


def _with_cost(one: ModelBill, usage: Usage, jobs: Mapping[str, int], charged: Sequence[ModelBill]) -> ModelBill:
    """The model with its share of its action's cost."""
    cost = _usage_of(one.action, usage).cost_tokens
    others = [other for other in charged if other.action == one.action and other is not one and other.jobs]
    if cost is not None and others:
        cost = cost * one.jobs / jobs[one.action]
    return replace(one, cost_tokens=cost, is_share=bool(others))


def _actions(usage: Usage, jobs: Mapping[str, int]) -> list[ActionBill]:
    found = []
    for name in sorted({*usage.actions, *jobs}):
        known = _usage_of(name, usage)
        found.append(ActionBill(name, known.calls, known.cost_tokens, jobs.get(name, 0)))
    return found


def _usage_of(action: str, usage: Usage) -> ActionUsage:
    """An action that SEE2AI does not name cost nothing, unless the answer names neither an action nor the day."""
    is_understood = bool(usage.actions) or usage.is_dated
    return usage.actions.get(action, ActionUsage(0, Decimal()) if is_understood else ActionUsage())


async def _unowned_jobs(database: Database, jobs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The listed jobs that no task has, whatever its day."""
    unowned: list[tuple[str, str]] = []
    async with database.read(DAY_SECONDS) as connection:
        for start in range(0, len(jobs), JOBS_AT_ONCE):
            some = jobs[start : start + JOBS_AT_ONCE]
            values = {"actions": sorted({action for action, _ in some}), "jobs": sorted({job for _, job in some})}
            owned = {(row.action, row.upstream_task_id) for row in await connection.execute(_OWNED, values)}
            unowned += [one for one in some if one not in owned]
            if len(unowned) >= MAX_UNOWNED_SHOWN:
                break
    return unowned[:MAX_UNOWNED_SHOWN]


def _count(condition: Any) -> Any:
    return func.sum(case((condition, 1), else_=0))


def _points(condition: Any) -> Any:
    return func.sum(case((condition, tasks.c.points_cost), else_=0))


# A blocking action answers a submit with the result, so its jobs have no id.
_is_job = tasks.c.upstream_task_id.is_not(None) | (tasks.c.status == "completed")
_SUMS = {
    "tasks": func.count(),
    "completed": _count(tasks.c.status == "completed"),
    "failed": _count(tasks.c.status == "failed"),
    "running": _count(tasks.c.step != "done"),
    "jobs": _count(_is_job),
    "points_settled": _points(tasks.c.status == "completed"),
    "points_refunded": _points(tasks.c.status == "failed"),
    "points_held": _points(tasks.c.step != "done"),
}
_OF_DAY = (
    select(tasks.c.model_name, tasks.c.action, *[value.label(name) for name, value in _SUMS.items()])
    .where(tasks.c.task_no >= bindparam("first"), tasks.c.task_no < bindparam("next"))
    .group_by(tasks.c.model_name, tasks.c.action)
)
_OWNED = select(tasks.c.action, tasks.c.upstream_task_id).where(
    tasks.c.action.in_(bindparam("actions", expanding=True)),
    tasks.c.upstream_task_id.in_(bindparam("jobs", expanding=True)),
)
