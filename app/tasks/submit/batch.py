"""Stores many submits in one transaction: about eight round trips in all, however many they are.

The models are read and the rows made before the transaction begins. It locks the accounts, decides each submit in
memory in the order of arrival, and writes the accepted tasks, the accounts and the entries with one statement each. A
submit that is refused falls out alone. What cannot be decided so is left to a transaction of its own.
"""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BindParameter, ColumnElement, and_, bindparam, insert, or_, select

from app.accounts.keys.budgets import Budgets, Spender
from app.accounts.keys.caps import local_day
from app.catalog.models import Model, get_models
from app.database import CommitUnknown, Connection, TransactionConflict, UniqueViolation, retry_on_conflict
from app.errors import InsufficientPoints, ModelNotFound, Unavailable
from app.failpoints import failpoint
from app.points.group_deduct import LockedAccount, lock_accounts, write_deductions
from app.runtime import Runtime
from app.tables import tasks
from app.tasks.submit.outcome import PendingSubmit, SubmitResult, TaskCounts, check_bounds, count_tasks, find_stored
from app.tasks.submit.task_row import new_task_row
from app.tasks.validation import find_uploads

Outcome = SubmitResult | Exception


class AccountLocked(Exception):
    """Another transaction holds the account. Nothing was stored; the submit may wait for it."""


class NeedsSingle(Exception):
    """The submit needs statements of its own. Nothing was stored."""


@dataclass(slots=True)
class _Candidate:
    """A submit whose row is made."""

    row: dict[str, Any]
    remark: str
    outcome: Outcome | None = None
    entry: dict[str, Any] | None = None
    """The ledger entry of an accepted submit that costs points."""

    @property
    def key(self) -> tuple[int, str] | None:
        key = self.row["idempotency_key"]
        return None if key is None else (self.row["user_id"], key)

    @property
    def spender(self) -> Spender:
        return self.row["key_id"], self.row["end_user"]


async def store_batch(runtime: Runtime, batch: list[PendingSubmit]) -> list[Outcome]:
    """The outcome of each submit: its result, or why it was not stored. It waits for no account."""
    outcomes = await _prepare(runtime, batch)
    candidates = [one for one in outcomes if isinstance(one, _Candidate)]
    try:
        await _store(runtime, candidates, waits=False)
    except Exception as error:
        # Nothing was stored. What is nobody's fault, or that of one of many, is not the end of the others.
        is_final = isinstance(error, Unavailable) and not isinstance(error, TransactionConflict)
        is_own = len(candidates) == 1 and not isinstance(error, TransactionConflict)
        for one in candidates:
            one.outcome = error if is_final or is_own else AccountLocked()
    return _outcomes(outcomes)


async def store_waiting(runtime: Runtime, batch: list[PendingSubmit]) -> list[Outcome]:
    """The same for submits of one user, whose account another transaction may hold."""
    try:
        return await _store_waiting(runtime, batch)
    except Unavailable:
        raise
    except Exception as error:
        if len(batch) == 1:
            return [error]
    outcomes: list[Outcome] = []
    for one in batch:
        try:
            outcomes += await _store_waiting(runtime, [one])
        except Exception as error:  # each is a transaction of its own: those before are stored
            outcomes.append(error)
    return outcomes


@retry_on_conflict
async def _store_waiting(runtime: Runtime, batch: list[PendingSubmit]) -> list[Outcome]:
    """The rows are made anew at each try: it may have waited for long, and a price may have changed."""
    outcomes = await _prepare(runtime, batch)
    await _store(runtime, [one for one in outcomes if isinstance(one, _Candidate)], waits=True)
    return _outcomes(outcomes)


def _outcomes(prepared: list["_Candidate | Exception"]) -> list[Outcome]:
    found = [one.outcome if isinstance(one, _Candidate) else one for one in prepared]
    return [NeedsSingle() if one is None else one for one in found]


async def _prepare(runtime: Runtime, batch: list[PendingSubmit]) -> "list[_Candidate | Exception]":
    """The row of each submit, or why it has none. Their numbers differ from one another."""
    async with runtime.database.read() as connection:
        models = await get_models(connection, {one.submission.model_name for one in batch})
    prepared: list[_Candidate | Exception] = []
    numbers = set[str]()
    for one in batch:
        try:
            candidate = _candidate(runtime, one, models.get(one.submission.model_name), numbers)
        except Exception as error:
            prepared.append(error)
        else:
            prepared.append(candidate)
            numbers.add(candidate.row["task_no"])
    return prepared


def _candidate(runtime: Runtime, pending: PendingSubmit, model: Model | None, numbers: set[str]) -> _Candidate:
    if model is None:
        raise ModelNotFound
    while True:
        row = new_task_row(runtime, pending.user_id, pending.submission, model, new_suffix(), key_id=pending.key_id)
        if row["task_no"] not in numbers:
            break
    action = runtime.actions[model.action]
    has_uploads = find_uploads(runtime.store, pending.submission, action, row["upstream_request"])
    if has_uploads or runtime.breakers[action.provider].state.admits_trial:
        raise NeedsSingle
    return _Candidate(row, model.description)


def new_suffix() -> str:
    """The random end of a task number. It must not be guessed, because the URLs of results contain it."""
    return f"{secrets.randbelow(10**6):06d}"


async def _store(runtime: Runtime, candidates: list[_Candidate], *, waits: bool) -> None:
    """One transaction. Sets the outcome of each candidate. An error means that nothing was stored."""
    if not candidates:
        return
    accepted: list[_Candidate] = []
    budgets = Budgets()
    try:
        async with runtime.database.begin() as connection:
            accounts = await lock_accounts(connection, {one.row["user_id"] for one in candidates}, waits=waits)
            await budgets.read(connection, {one.spender for one in candidates if one.row["user_id"] in accounts})
            accepted = await _decide(runtime, connection, candidates, accounts, budgets, waits=waits)
            await _insert_tasks(connection, accepted)
            await budgets.write(connection)
            entries = [one.entry | {"task_id": one.row["id"]} for one in accepted if one.entry is not None]
            await write_deductions(connection, accounts.values(), entries)
            failpoint("submit.before_commit")
    except CommitUnknown:
        if accepted and not await find_stored(runtime, [one.row["task_no"] for one in accepted]):
            raise
    failpoint("submit.after_commit")


async def _decide(
    runtime: Runtime,
    connection: Connection,
    candidates: list[_Candidate],
    accounts: dict[int, LockedAccount],
    budgets: Budgets,
    *,
    waits: bool,
) -> list[_Candidate]:
    """The accepted ones. The others get the reason as their outcome."""
    counts = await count_tasks(connection, accounts) if accounts else {}
    taken = await _taken_keys(connection, {one.key for one in candidates if one.key is not None})
    accepted = []
    for one in candidates:
        user_id = one.row["user_id"]
        try:
            if user_id not in accounts:
                raise NeedsSingle if waits else AccountLocked
            if one.key in taken:
                raise UniqueViolation("idempotency_key")
            one.entry = _accept(runtime, one, accounts[user_id], counts[user_id], budgets)
        except Exception as error:
            one.outcome = error
        else:
            one.outcome = SubmitResult(one.row, accounts[user_id].available)
            accepted.append(one)
            if one.key is not None:
                taken.add(one.key)  # another one with this key asks again, and finds this task
    return accepted


def _accept(
    runtime: Runtime, candidate: _Candidate, account: LockedAccount, counts: TaskCounts, budgets: Budgets
) -> dict[str, Any] | None:
    """Charges account and budget and counts the task. Returns the entry; None for a task that costs nothing."""
    cost, key_id = candidate.row["points_cost"], candidate.row["key_id"]
    if account.next_expiry is not None or (key_id is not None and not budgets.has(key_id)):
        raise NeedsSingle
    if account.available < cost:
        raise InsufficientPoints(account.available, cost)
    check_bounds(runtime.settings, counts)
    if key_id is not None:
        day = local_day(candidate.row["created_at"], runtime.settings.zone)
        budgets.charge(key_id, candidate.row["end_user"], day, cost)
    counts.running += 1
    return account.deduct(cost, candidate.remark) if cost else None


async def _insert_tasks(connection: Connection, accepted: list[_Candidate]) -> None:
    """Inserts the rows and adds the id to each. Ids are looked up, because a server may leave gaps between them."""
    if not accepted:
        return
    rows = [one.row for one in accepted]
    if len(rows) == 1:
        rows[0]["id"] = (await connection.execute(_INSERT, rows[0])).lastrowid
        return
    await connection.execute(_INSERT, rows)
    stored = await connection.execute(_IDS, {"numbers": [row["task_no"] for row in rows]})
    ids = {one.task_no: one.id for one in stored}
    for row in rows:
        row["id"] = ids[row["task_no"]]


async def _taken_keys(connection: Connection, keys: Iterable[tuple[int, str]]) -> set[tuple[int, str]]:
    """Those of the idempotency keys that a task has. With the accounts locked no other submit takes one."""
    values: dict[str, Any] = {}
    conditions: list[ColumnElement[bool]] = []
    for place, (user_id, key) in enumerate(sorted(keys)):
        values |= {f"user_{place}": user_id, f"key_{place}": key}
        user: BindParameter[int] = bindparam(f"user_{place}")
        name: BindParameter[str] = bindparam(f"key_{place}")
        conditions.append(and_(tasks.c.user_id == user, tasks.c.idempotency_key == name))
    if not conditions:
        return set()
    rows = await connection.execute(select(tasks.c.user_id, tasks.c.idempotency_key).where(or_(*conditions)), values)
    return {(row.user_id, row.idempotency_key) for row in rows}


_INSERT = insert(tasks)
_IDS = select(tasks.c.id, tasks.c.task_no).where(tasks.c.task_no.in_(bindparam("numbers", expanding=True)))
