"""The audit finds what it claims to find: each kind of damage, done by hand, is seen under its invariant."""

from collections.abc import AsyncIterator

import pytest

from app.points import ledger
from app.points.audit import audit
from app.runtime import Runtime, open_runtime
from app.settings import Settings
from app.tasks.submit import Submission, submit_task
from tests.makers import TEXT_MODEL
from tests.worlds import execute

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("world", ["embedded"], indirect=True)]

UNLOCK = (
    "DROP TRIGGER points_ledger_no_update",
    "DROP TRIGGER points_ledger_no_delete",
    "PRAGMA ignore_check_constraints=ON",
)
ENDED = "step = 'done', next_run_at = NULL, completed_at = created_at"
SECOND_CLOSE = """
    INSERT INTO points_ledger
        (user_id, seq, kind, points, held, balance_after, task_id, phase, remark, created_at)
    SELECT user_id, 3, 'settle', 0, -30, 70, task_id, 'close', '', created_at
    FROM points_ledger WHERE kind = 'deduct'
"""
DAMAGE = [
    ("I1", "UPDATE points_accounts SET granted = granted + 1"),
    ("I1", "UPDATE points_accounts SET available = available + 1, granted = granted + 1"),
    ("I1", "UPDATE points_ledger SET points = points + 1 WHERE kind = 'grant'"),
    ("I1", "UPDATE points_ledger SET balance_after = balance_after + 1 WHERE kind = 'deduct'"),
    ("I1", "DELETE FROM points_ledger WHERE kind = 'grant'"),
    ("I1", "DELETE FROM points_accounts"),
    ("I2", "UPDATE points_accounts SET available = -1"),
    ("I3", "DELETE FROM points_ledger WHERE kind = 'deduct'"),
    ("I3", "UPDATE points_ledger SET held = 29, points = -29 WHERE kind = 'deduct'"),
    ("I3", "UPDATE points_ledger SET task_id = 999 WHERE kind = 'deduct'"),
    ("I3", "UPDATE tasks SET user_id = 77"),
    ("I4", f"UPDATE tasks SET status = 'failed', error_code = 'X', {ENDED}"),
    ("I4", SECOND_CLOSE),
    ("I5", f"UPDATE tasks SET status = 'completed', {ENDED}"),
    ("I5", "UPDATE tasks SET status = 'failed'"),
    ("I9", "UPDATE tasks SET next_run_at = NULL"),
    ("I9", "UPDATE tasks SET deadline_at = '2020-01-01 00:00:00.000000'"),
]


@pytest.fixture
async def books(settings: Settings) -> AsyncIterator[Runtime]:
    """One grant of 100 and one live task of 30, in a database nobody audits afterwards."""
    async with open_runtime(settings) as runtime:
        await ledger.grant(runtime.sessions, user_id=1, points=100, ref="g")
        await submit_task(runtime, 1, Submission(TEXT_MODEL, "一只猫"))
        yield runtime


async def test_sound_books_are_proved(books: Runtime) -> None:
    assert await audit(books.sessions) == []


@pytest.mark.parametrize(("invariant", "damage"), DAMAGE)
async def test_damage_is_seen(books: Runtime, invariant: str, damage: str) -> None:
    for statement in (*UNLOCK, damage):
        await execute(books, statement)
    found = await audit(books.sessions)
    assert invariant in {violation.invariant for violation in found}
