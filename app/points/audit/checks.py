"""Audits points and tasks. Each invariant is one SQL statement that finds the rows that violate it.

Each statement reads one committed state, so the audit may run at any time.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Executable, select, text

from app.database import Database, utc_after
from app.points.audit.key_checks import KEY_CHECKS
from app.points.audit.lot_checks import CODE_CHECKS, LOT_CHECKS
from app.tables import tasks, webhook_deliveries

MAX_SHOWN = 20
TIMEOUT_SECONDS = 3600.0
RECENT_SECONDS = 24 * 3600.0  # older deliveries may have been purged
OVERDUE_GRACE_SECONDS = 600.0  # workers may be down for a while


@dataclass(frozen=True, slots=True)
class Violation:
    """A row that violates an invariant. `meaning` is the invariant in words."""

    invariant: str
    meaning: str
    row: dict[str, Any]


async def audit(database: Database) -> list[Violation]:
    """All violations, at most MAX_SHOWN per check. An empty list means that every invariant holds."""
    checks: list[tuple[str, str, Executable]] = [*_TEXT_CHECKS, *_TIME_CHECKS]
    async with database.read(TIMEOUT_SECONDS) as connection:
        return [
            Violation(invariant, meaning, _as_plain(row._mapping))
            for invariant, meaning, statement in checks
            for row in await connection.execute(statement)
        ]


def _as_plain(row: Any) -> dict[str, Any]:
    return {name: value if isinstance(value, int | str | None) else str(value) for name, value in row.items()}


_SUMS = """
    SELECT user_id, COUNT(*) AS entries, MAX(seq) AS seq, SUM(points) AS available, SUM(held) AS held,
           SUM(CASE WHEN kind IN ('grant', 'adjust') THEN points ELSE 0 END) AS granted,
           SUM(CASE WHEN kind = 'settle' THEN -held ELSE 0 END) AS spent,
           SUM(CASE WHEN kind = 'expire' THEN -points ELSE 0 END) AS expired
    FROM points_ledger GROUP BY user_id
"""
_RUNNING_SUMS = """
    SELECT user_id, seq, balance_after, SUM(points) OVER (PARTITION BY user_id ORDER BY seq) AS running_sum,
           ROW_NUMBER() OVER (PARTITION BY user_id ORDER BY seq) AS entry_no
    FROM points_ledger
"""
_OPENS = "SELECT task_id, COUNT(*) AS n FROM points_ledger WHERE phase = 'open' GROUP BY task_id"
_CLOSES = "SELECT task_id, COUNT(*) AS n, MIN(kind) AS kind FROM points_ledger WHERE phase = 'close' GROUP BY task_id"

CHECKS: tuple[tuple[str, str, str], ...] = (
    (
        "I1",
        "granted = available + held + spent + expired",
        "SELECT * FROM points_accounts WHERE granted <> available + held + spent + expired",
    ),
    (
        "I1",
        "an account equals the sum of its ledger entries",
        f"SELECT a.*, s.entries, s.available AS sum_available, s.held AS sum_held FROM points_accounts a"  # noqa: S608
        f" LEFT JOIN ({_SUMS}) s ON s.user_id = a.user_id"
        " WHERE a.available <> COALESCE(s.available, 0) OR a.held <> COALESCE(s.held, 0)"
        " OR a.granted <> COALESCE(s.granted, 0) OR a.spent <> COALESCE(s.spent, 0)"
        " OR a.expired <> COALESCE(s.expired, 0) OR a.seq <> COALESCE(s.seq, 0) OR a.seq <> COALESCE(s.entries, 0)",
    ),
    (
        "I1",
        "every ledger entry belongs to an account",
        "SELECT l.id, l.user_id FROM points_ledger l LEFT JOIN points_accounts a ON a.user_id = l.user_id"
        " WHERE a.user_id IS NULL",
    ),
    (
        "I1",
        "entries are numbered without a gap, and each holds the balance after it",
        f"SELECT * FROM ({_RUNNING_SUMS}) r WHERE r.balance_after <> r.running_sum OR r.seq <> r.entry_no",  # noqa: S608
    ),
    (
        "I2",
        "no amount of an account is negative",
        "SELECT * FROM points_accounts WHERE available < 0 OR held < 0 OR granted < 0 OR spent < 0 OR expired < 0",
    ),
    (
        "I3",
        "a task with a price has exactly one deduction",
        f"SELECT t.task_no, t.points_cost, o.n FROM tasks t LEFT JOIN ({_OPENS}) o ON o.task_id = t.id"  # noqa: S608
        " WHERE t.points_cost > 0 AND (o.n IS NULL OR o.n <> 1)",
    ),
    (
        "I3",
        "a deduction, settle or refund equals the price of its task, which is not free",
        "SELECT l.*, t.task_no, t.points_cost FROM points_ledger l JOIN tasks t ON t.id = l.task_id"
        " WHERE l.phase IS NOT NULL AND (t.points_cost = 0 OR ABS(l.held) <> t.points_cost)",
    ),
    (
        "I3",
        "the task of a ledger entry exists and has the same user",
        "SELECT l.id, l.task_id, l.user_id FROM points_ledger l LEFT JOIN tasks t ON t.id = l.task_id"
        " WHERE l.task_id IS NOT NULL AND (t.id IS NULL OR t.user_id <> l.user_id)",
    ),
    (
        "I4",
        "an ended task has exactly one settle or refund; a running task has none",
        f"SELECT t.task_no, t.status, c.n FROM tasks t LEFT JOIN ({_CLOSES}) c ON c.task_id = t.id"  # noqa: S608
        " WHERE t.points_cost > 0 AND ((t.step = 'done' AND (c.n IS NULL OR c.n <> 1))"
        " OR (t.step <> 'done' AND c.n IS NOT NULL))",
    ),
    (
        "I5",
        "a completed task is settled and has results; a failed task is refunded and has none",
        # An erased task has an empty list of results, because NULL would mean that it did not complete.
        f"SELECT t.task_no, t.status, c.kind FROM tasks t LEFT JOIN ({_CLOSES}) c ON c.task_id = t.id"  # noqa: S608
        " WHERE (t.status = 'completed' AND (t.results IS NULL OR (t.results = '[]') <> (t.erased_at IS NOT NULL)"
        " OR (t.points_cost > 0 AND c.kind <> 'settle')))"
        " OR (t.status = 'failed' AND (t.results IS NOT NULL OR t.error_code IS NULL"
        " OR (t.points_cost > 0 AND c.kind <> 'refund')))",
    ),
    (
        "I5",
        "status, step and completed_at agree",
        "SELECT task_no, status, step, completed_at FROM tasks"
        " WHERE (status IN ('completed', 'failed')) <> (step = 'done')"
        " OR (step = 'done') <> (completed_at IS NOT NULL)",
    ),
    (
        "I7",
        "no two tasks of a user have the same idempotency key",
        "SELECT user_id, idempotency_key, COUNT(*) AS n FROM tasks WHERE idempotency_key IS NOT NULL"
        " GROUP BY user_id, idempotency_key HAVING COUNT(*) > 1",
    ),
    (
        "I8",
        "no two tasks have the same SEE2AI job",
        "SELECT action, upstream_task_id, COUNT(*) AS n FROM tasks WHERE upstream_task_id IS NOT NULL"
        " GROUP BY action, upstream_task_id HAVING COUNT(*) > 1",
    ),
    (
        "I9",
        "a running task has a next_run_at",
        "SELECT task_no, status, step FROM tasks WHERE step <> 'done' AND next_run_at IS NULL",
    ),
    (
        "I13",
        "every grant and adjustment has a reference, and no two entries have the same",
        "SELECT ref, COUNT(*) AS n FROM points_ledger WHERE kind IN ('grant', 'adjust') OR ref IS NOT NULL"
        " GROUP BY ref HAVING ref IS NULL OR COUNT(*) > 1",
    ),
)

_OVERDUE = (
    select(tasks.c.task_no, tasks.c.status, tasks.c.step, tasks.c.deadline_at)
    .where(tasks.c.step != "done", tasks.c.deadline_at < utc_after(-OVERDUE_GRACE_SECONDS))
    .limit(MAX_SHOWN)
)
_WITHOUT_OUTBOX = (
    select(tasks.c.task_no, tasks.c.status, tasks.c.completed_at)
    .outerjoin(
        webhook_deliveries, (webhook_deliveries.c.task_id == tasks.c.id) & (webhook_deliveries.c.endpoint_id == 0)
    )
    .where(
        tasks.c.callback_url.is_not(None),
        tasks.c.completed_at > utc_after(-RECENT_SECONDS),
        webhook_deliveries.c.id.is_(None),
    )
    .limit(MAX_SHOWN)
)
_TIME_CHECKS: tuple[tuple[str, str, Executable], ...] = (
    ("I9", "every task ends within its deadline and a grace period", _OVERDUE),
    ("I16", "an ended task with a callback URL has a delivery in the outbox", _WITHOUT_OUTBOX),
)
_TEXT_CHECKS: tuple[tuple[str, str, Executable], ...] = tuple(
    (invariant, meaning, text(f"{statement} LIMIT {MAX_SHOWN}"))
    for invariant, meaning, statement in (*CHECKS, *LOT_CHECKS, *CODE_CHECKS, *KEY_CHECKS)
)
