"""What keys and their end users spend: counted by submits, given back by the ends of tasks.

Each change happens in the transaction of the task, after the account of the key's user was locked. So the submits and
ends of one user run one after the other, and what a submit has read here stays true until its commit.
"""

from collections.abc import Collection
from functools import cache
from typing import Any

from sqlalchemy import BindParameter, ColumnElement, Update, and_, bindparam, case, func, insert, select, update

from app.accounts.keys.caps import END_USER, KEY, MONTH_LENGTH, Caps, Counter
from app.database import Connection, TransactionConflict, upsert_rows, utc_now
from app.errors import Unauthenticated
from app.tables import api_keys, end_user_budgets, key_budgets

Spender = tuple[int | None, str | None]
"""The id of the key of a submit, or None for a JWT, and the end user that it names."""


class Budgets:
    """The budgets that the submits of one transaction use. `charge` changes these copies, `write` the rows."""

    def __init__(self) -> None:
        self._budget_ids: dict[int, int] = {}
        """By the id of a key. Keys that replace each other have the same."""
        self._keys: dict[int, Counter] = {}
        self._end_users: dict[tuple[int, str], Counter] = {}
        self._before: dict[int, tuple[int, int]] = {}
        """Of each charged budget: its total and its running tasks as they were read."""
        self._charged_users: set[tuple[int, str]] = set()

    async def read(self, connection: Connection, spenders: Collection[Spender]) -> None:
        """Reads the budgets of these keys, and of the end users. The accounts of their users must be locked."""
        keys = sorted({key_id for key_id, _ in spenders if key_id is not None})
        names = sorted({name for key_id, name in spenders if key_id is not None and name is not None})
        if not keys:
            return
        caps_of_end_users = {}
        for row in await connection.execute(_OF_KEYS, {"keys": keys}):
            self._budget_ids[row.key_id] = row.id
            self._keys.setdefault(row.id, Counter(KEY, key_caps(row), *_counts(row)))
            caps_of_end_users[row.id] = end_user_caps(row)
        for key_id, name in spenders:
            budget_id = None if key_id is None else self._budget_ids.get(key_id)
            if name is not None and budget_id is not None:
                self._end_users[budget_id, name] = Counter(END_USER, caps_of_end_users[budget_id])
        if self._end_users:
            budgets = sorted({budget_id for budget_id, _ in self._end_users})
            for row in await connection.execute(_OF_END_USERS, {"budgets": budgets, "names": names}):
                if counter := self._end_users.get((row.budget_id, row.end_user)):
                    counter.day, counter.today, counter.month, counter.total, counter.running = _counts(row)

    def has(self, key_id: int) -> bool:
        return key_id in self._budget_ids

    def charge(self, key_id: int, end_user: str | None, day: str, cost: int) -> None:
        """Counts a task. Raises KeyBudgetExceeded or TooManyTasks, and then changes nothing."""
        budget_id = self._budget_ids[key_id]
        counters = [self._keys[budget_id]]
        if end_user is not None:
            counters.append(self._end_users[budget_id, end_user])
        for counter in counters:
            counter.check(day, cost)
        self._before.setdefault(budget_id, (counters[0].total, counters[0].running))
        for counter in counters:
            counter.add(day, cost)
        if end_user is not None:
            self._charged_users.add((budget_id, end_user))

    async def write(self, connection: Connection) -> None:
        """One statement for all budgets, and one for all end users. Raises TransactionConflict if a budget changed."""
        if not self._before:
            return
        values: dict[str, Any] = {"budgets": sorted(self._before)}
        for place, budget_id in enumerate(values["budgets"]):
            counter = self._keys[budget_id]
            counts = (*self._before[budget_id], counter.day, counter.today, counter.month, counter.total)
            values |= dict(
                zip([f"{name}_{place}" for name in _VALUES], (budget_id, *counts, counter.running), strict=True)
            )
        changed = await connection.execute(_charge(len(self._before)), values)
        if changed.rowcount != len(self._before):
            raise TransactionConflict
        if self._charged_users:
            await self._write_end_users(connection)

    async def _write_end_users(self, connection: Connection) -> None:
        rows = []
        for budget_id, name in sorted(self._charged_users):
            counter = self._end_users[budget_id, name]
            counts = (counter.day, counter.today, counter.month, counter.total, counter.running)
            row: dict[str, Any] = dict(zip(_COUNTS, counts, strict=True))
            rows.append({"budget_id": budget_id, "end_user": name, **row, "updated_at": utc_now()})
        statement = upsert_rows(
            connection.dialect.name, end_user_budgets, ("budget_id", "end_user"), rows, (*_COUNTS, "updated_at")
        )
        await connection.execute(statement)


async def create_budget(connection: Connection, user_id: int, caps: Caps, caps_of_end_users: Caps) -> int:
    """A new budget of which nothing is spent. Returns its id."""
    values = cap_columns(caps) | cap_columns(caps_of_end_users, "end_user_")
    made = await connection.execute(insert(key_budgets).values(user_id=user_id, updated_at=utc_now(), **values))
    return int(made.lastrowid)


async def ensure_budget(connection: Connection, key_id: int) -> int:
    """The key's budget. A key that is older than budgets gets one when it is first used or changed.

    So no task of a key is ever without a budget that counts it. Raises Unauthenticated for an unknown key.
    """
    row = (await connection.execute(_KEY_LOCKED, {"key": key_id})).one_or_none()
    if row is None:
        raise Unauthenticated
    if row.budget_id is not None:
        return int(row.budget_id)
    budget_id = await create_budget(connection, row.user_id, Caps(), Caps())
    await connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(budget_id=budget_id))
    return budget_id


async def release_budget(
    connection: Connection, key_id: int | None, end_user: str | None, *, day: str, refund: int
) -> None:
    """Counts the end of a task that was created on `day`. `refund` points are given back; 0 for a completed task.

    The account must be locked. The counter of the day gets points back if it still counts that day. A counter never
    falls below zero: the end of a task must not fail because of a counter, and the audit finds a wrong one.
    """
    if key_id is None:
        return
    budget_id = await connection.scalar(_BUDGET_ID, {"key": key_id})
    if budget_id is None:
        return
    values: dict[str, Any] = {"budget": budget_id, "in_day": day, "in_month": day[:MONTH_LENGTH], "refund": refund}
    await connection.execute(_RELEASE_KEY, values)
    if end_user is not None:
        await connection.execute(_RELEASE_END_USER, values | {"name": end_user})


def cap_columns(caps: Caps, prefix: str = "") -> dict[str, int | None]:
    return {
        f"{prefix}daily_cap": caps.daily,
        f"{prefix}monthly_cap": caps.monthly,
        f"{prefix}total_cap": caps.total,
        f"{prefix}max_tasks": caps.max_tasks,
    }


def key_caps(row: Any) -> Caps:
    return Caps(row.daily_cap, row.monthly_cap, row.total_cap, row.max_tasks)


def end_user_caps(row: Any) -> Caps:
    return Caps(row.end_user_daily_cap, row.end_user_monthly_cap, row.end_user_total_cap, row.end_user_max_tasks)


def _counts(row: Any) -> tuple[str, int, int, int, int]:
    return row.day, row.spent_today, row.spent_this_month, row.spent_total, row.running_tasks


_COUNTS = ("day", "spent_today", "spent_this_month", "spent_total", "running_tasks")
_VALUES = ("id", "old_total", "old_running", *_COUNTS)


@cache
def _charge(number: int) -> Update:
    """The statement for so many budgets. It changes only those whose counters are as they were read."""
    ids: list[BindParameter[int]] = [bindparam(f"id_{place}") for place in range(number)]

    def of_each(name: str) -> ColumnElement[Any]:
        cases: dict[Any, Any] = {key: bindparam(f"{name}_{place}") for place, key in enumerate(ids)}
        return case(cases, value=key_budgets.c.id)

    is_unchanged = and_(
        key_budgets.c.spent_total == of_each("old_total"), key_budgets.c.running_tasks == of_each("old_running")
    )
    new = {name: of_each(name) for name in _COUNTS}
    # MySQL assigns from left to right; no term reads a column that another one assigns.
    return (
        update(key_budgets)
        .where(key_budgets.c.id.in_(bindparam("budgets", expanding=True)), is_unchanged)
        .values(updated_at=utc_now(), **new)
    )


def _less(column: ColumnElement[Any], amount: ColumnElement[Any]) -> ColumnElement[Any]:
    return case((column >= amount, column - amount), else_=0)


def _release(table: Any) -> dict[str, Any]:
    refund: BindParameter[int] = bindparam("refund")
    is_today = table.c.day == bindparam("in_day")
    is_this_month = func.substr(table.c.day, 1, MONTH_LENGTH) == bindparam("in_month")
    return {
        "running_tasks": case((table.c.running_tasks > 0, table.c.running_tasks - 1), else_=0),
        "spent_total": _less(table.c.spent_total, refund),
        "spent_today": case((is_today, _less(table.c.spent_today, refund)), else_=table.c.spent_today),
        "spent_this_month": case(
            (is_this_month, _less(table.c.spent_this_month, refund)), else_=table.c.spent_this_month
        ),
        "updated_at": utc_now(),
    }


_OF_KEYS = (
    select(api_keys.c.id.label("key_id"), key_budgets)
    .join(key_budgets, key_budgets.c.id == api_keys.c.budget_id)
    .where(api_keys.c.id.in_(bindparam("keys", expanding=True)))
)
_OF_END_USERS = select(end_user_budgets).where(
    end_user_budgets.c.budget_id.in_(bindparam("budgets", expanding=True)),
    end_user_budgets.c.end_user.in_(bindparam("names", expanding=True)),
)
_KEY_LOCKED = (
    select(api_keys.c.user_id, api_keys.c.budget_id).where(api_keys.c.id == bindparam("key")).with_for_update()
)
_BUDGET_ID = select(api_keys.c.budget_id).where(api_keys.c.id == bindparam("key"))
_RELEASE_KEY = update(key_budgets).where(key_budgets.c.id == bindparam("budget")).values(**_release(key_budgets))
_RELEASE_END_USER = (
    update(end_user_budgets)
    .where(end_user_budgets.c.budget_id == bindparam("budget"), end_user_budgets.c.end_user == bindparam("name"))
    .values(**_release(end_user_budgets))
)
