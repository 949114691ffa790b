"""Deducts the prices of many new tasks at once: a part of the ledger for submits that share a transaction.

The accounts are locked in one statement, each submit is decided in memory, and one statement each moves the points and
writes the entries. What is written is what `ledger.deduct` writes for each task. Accounts with points that expire take
that path, because each deduction consumes their lots.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import BindParameter, Update, bindparam, case, insert, select, update

from app.database import Connection, utc_now
from app.errors import InsufficientPoints
from app.points.ledger import LedgerInconsistency
from app.tables import points_accounts as accounts
from app.tables import points_ledger as ledger


@dataclass(slots=True)
class LockedAccount:
    """An account whose row is locked until the transaction ends. `deduct` changes this copy and remembers its entry."""

    user_id: int
    available: int
    seq: int
    next_expiry: datetime | None
    now: datetime
    deducted: int = 0

    def deduct(self, cost: int, remark: str) -> dict[str, Any]:
        """The entry of a deduction, without its task. Raises InsufficientPoints, and then changes nothing."""
        if self.available < cost:
            raise InsufficientPoints(self.available, cost)
        self.available -= cost
        self.deducted += cost
        self.seq += 1
        return {
            "user_id": self.user_id,
            "seq": self.seq,
            "kind": "deduct",
            "points": -cost,
            "held": cost,
            "balance_after": self.available,
            "phase": "open",
            "remark": remark,
            "created_at": self.now,
        }


async def lock_accounts(connection: Connection, user_ids: Collection[int], *, waits: bool) -> dict[int, LockedAccount]:
    """Locks the accounts of these users, in the order of their ids. A user without an account is not in the answer.

    Without `waits`, accounts that another transaction holds are left out, too.
    """
    statement = _LOCK if waits else _LOCK_FREE
    rows = await connection.execute(statement, {"users": sorted(user_ids)})
    return {row.user_id: LockedAccount(*row) for row in rows}


async def write_deductions(
    connection: Connection, locked: Collection[LockedAccount], entries: list[dict[str, Any]]
) -> None:
    """Moves the deducted points from `available` to `held` and writes the entries, which have their `task_id` now."""
    charged = [account for account in locked if account.deducted]
    if not charged:
        return
    values: dict[str, Any] = {"users": [account.user_id for account in charged]}
    for place, account in enumerate(charged):
        values |= {f"user_{place}": account.user_id, f"cost_{place}": account.deducted, f"seq_{place}": account.seq}
    moved = await connection.execute(_hold(len(charged)), values)
    if moved.rowcount != len(charged):
        raise LedgerInconsistency("an account changed although its row was locked")
    await connection.execute(_INSERT_ENTRIES, entries)


@cache
def _hold(number: int) -> Update:
    """The statement for so many accounts."""
    users: list[BindParameter[int]] = [bindparam(f"user_{place}") for place in range(number)]
    cost = case({user: bindparam(f"cost_{place}") for place, user in enumerate(users)}, value=accounts.c.user_id)
    seq = case({user: bindparam(f"seq_{place}") for place, user in enumerate(users)}, value=accounts.c.user_id)
    return (
        update(accounts)
        .where(accounts.c.user_id.in_(bindparam("users", expanding=True)), accounts.c.available >= cost)
        .values(available=accounts.c.available - cost, held=accounts.c.held + cost, seq=seq, updated_at=utc_now())
    )


_LOCK = (
    select(accounts.c.user_id, accounts.c.available, accounts.c.seq, accounts.c.next_expiry, utc_now().label("now"))
    .where(accounts.c.user_id.in_(bindparam("users", expanding=True)))
    .order_by(accounts.c.user_id)
    .with_for_update()
)
_LOCK_FREE = _LOCK.with_for_update(skip_locked=True)
_INSERT_ENTRIES = insert(ledger)
