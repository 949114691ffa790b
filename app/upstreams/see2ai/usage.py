"""What SEE2AI says that we consumed, `GET /api/v1/usage`.

SEE2AI documents that the route exists, but neither its parameters nor its answer. So the day is asked for, and whatever
has the name of an action beside a number of calls or a cost is read, wherever it stands. An answer that names no day
may count from any time: `is_dated` says whether it names one.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal, InvalidOperation
from typing import Any

from app.upstreams.see2ai.account import read_number
from app.upstreams.see2ai.client import See2aiClient, UpstreamUnreachable
from app.upstreams.see2ai.responses import HttpResponse, error_text

PATH = "/api/v1/usage"
NOT_UNDERSTOOD = frozenset({400, 404, 422})
MAX_DEPTH = 6
MAX_ROWS = 20_000
MAX_DETAIL_LENGTH = 300
MAX_NAME_LENGTH = 100
ACTION_PREFIX = "see2ai_"
"""The names of all actions begin so. A key of an object that begins so is the name of an action."""
ACTIONS = ("action", "action_name", "action_id", "app", "api", "name")
COSTS = ("cost_points", "cost_tokens", "cost", "points", "tokens", "consumed", "total_cost", "amount")
CALLS = ("requests", "calls", "count", "request_count", "total_requests", "jobs_count", "total")
JOBS = ("task_id", "job_id")
DAYS = ("date", "day", "created_at", "create_time", "time", "timestamp")


@dataclass(frozen=True, slots=True)
class ActionUsage:
    """Of one action: calls and cost in platform tokens, as far as SEE2AI tells them."""

    calls: int | None = None
    cost_tokens: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """What SEE2AI says of a day. `jobs` are pairs of action and job id, where the answer lists jobs."""

    actions: dict[str, ActionUsage] = field(default_factory=dict)
    jobs: list[tuple[str, str]] = field(default_factory=list)
    is_dated: bool = False


@dataclass(slots=True)
class _Row:
    action: str
    calls: int | None
    cost_tokens: Decimal | None
    job: str | None
    day: str | None


async def get_usage(see2ai: See2aiClient, day: date) -> Usage:
    """The usage of one day. It asks once more without the day where SEE2AI refuses the parameter.

    Raises UpstreamUnreachable, with the reason for the operator, where there is no answer that can be read.
    """
    answer = await see2ai.get(f"{PATH}?date={day.isoformat()}")
    if answer.status in NOT_UNDERSTOOD:
        answer = await see2ai.get(PATH)
    return parse_usage(answer, day)


def parse_usage(answer: HttpResponse, day: date) -> Usage:
    """The usage that an answer describes. Rows of other days are left out. Raises UpstreamUnreachable."""
    if answer.status != 200:  # noqa: PLR2004
        raise UpstreamUnreachable(f"HTTP {answer.status}: {error_text(answer.body)}"[:MAX_DETAIL_LENGTH])
    try:
        value = json.loads(answer.body, parse_float=Decimal, parse_constant=lambda _: None)
    except (ValueError, InvalidOperation, RecursionError):
        value = None
    if not isinstance(value, dict | list):
        raise UpstreamUnreachable(f"no JSON object: {error_text(answer.body)}"[:MAX_DETAIL_LENGTH])
    rows = []
    for row in _rows(value, name=None, day=None, depth=MAX_DEPTH):
        rows.append(row)
        if len(rows) > MAX_ROWS:
            raise UpstreamUnreachable(f"more than {MAX_ROWS} rows")
    is_dated = any(row.day is not None for row in rows)
    if is_dated:
        rows = [row for row in rows if row.day == day.isoformat()]
    is_named = isinstance(value, dict) and _day(value) == day.isoformat()
    return Usage(_by_action(rows), [(row.action, row.job) for row in rows if row.job], is_dated or is_named)


def _rows(value: Any, *, name: str | None, day: str | None, depth: int, is_counted: bool = False) -> Iterator[_Row]:
    """Every object that has the name of an action and a number, from the outside to the inside.

    `is_counted`: an outer object has given the sum of this action. Inside it only jobs and days count.
    """
    if isinstance(value, list):
        for item in value if depth else ():
            yield from _rows(item, name=name, day=day, depth=depth - 1, is_counted=is_counted)
        return
    if not isinstance(value, dict):
        return
    own_name, own_day, job = _action(value), _day(value), _job(value)
    name, day, is_counted = own_name or name, own_day or day, is_counted and own_name is None
    calls, cost = _whole(_first(value, CALLS)), _number(_first(value, COSTS))
    has_number = calls is not None or cost is not None
    if name is not None and (job is not None or (has_number and (own_day is not None or not is_counted))):
        yield _Row(name, calls, cost, job, day)
        is_counted = is_counted or has_number
    for key, item in value.items() if depth else ():
        named, dated = key.startswith(ACTION_PREFIX), _is_day(key)
        yield from _rows(
            item,
            name=key[:MAX_NAME_LENGTH] if named else name,
            day=key[:10] if dated else day,
            depth=depth - 1,
            is_counted=is_counted and not named and not dated,
        )


def _by_action(rows: list[_Row]) -> dict[str, ActionUsage]:
    """Sums by action. Where SEE2AI gives a sum of its own, its single jobs are not added to it."""
    found: dict[str, ActionUsage] = {}
    for name in sorted({row.action for row in rows}):
        own = [row for row in rows if row.action == name]
        sums = [row for row in own if row.job is None]
        costs = [row.cost_tokens for row in sums or own if row.cost_tokens is not None]
        calls = [row.calls for row in sums if row.calls is not None] if sums else [len(own)]
        found[name] = ActionUsage(sum(calls) if calls else None, sum(costs, Decimal()) if costs else None)
    return found


def _first(value: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((value[name] for name in names if not isinstance(value.get(name), dict | list | None)), None)


def _action(value: dict[str, Any]) -> str | None:
    name = _first(value, ACTIONS)
    is_action = isinstance(name, str) and name.startswith(ACTION_PREFIX) and name.isprintable()
    return str(name)[:MAX_NAME_LENGTH] if is_action else None


def _job(value: dict[str, Any]) -> str | None:
    job = _first(value, JOBS)
    if isinstance(job, int) and not isinstance(job, bool):
        job = str(job)
    return job if isinstance(job, str) and 0 < len(job) <= 128 and job.isprintable() else None  # noqa: PLR2004


def _day(value: dict[str, Any]) -> str | None:
    day = _first(value, DAYS)
    return day[:10] if isinstance(day, str) and _is_day(day) else None


def _is_day(text: str) -> bool:
    try:
        date.fromisoformat(text[:10])
    except ValueError:
        return False
    return True


def _number(value: Any) -> Decimal | None:
    """A number that is not negative."""
    number = read_number(value)
    return None if number is None or number < 0 else number


def _whole(value: Any) -> int | None:
    number = _number(value)
    return None if number is None else int(number)
