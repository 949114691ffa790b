"""Users with points by the hundred thousand, written with INSERT … SELECT. The audit finds no fault in them."""

from sqlalchemy import text

from app.database import Database
from bench.seed_lists import NUMBERS, ROWS_AT_ONCE

POINTS = 10**9
_STATEMENTS = (
    "INSERT INTO users (id, role, status, created_at) SELECT n, 'user', 'active', UTC_TIMESTAMP(3)",
    "INSERT INTO points_accounts (user_id, available, held, granted, spent, expired, seq, updated_at)"
    " SELECT n, :points, 0, :points, 0, 0, 1, UTC_TIMESTAMP(3)",
    "INSERT INTO points_ledger (user_id, seq, kind, points, held, balance_after, ref, remark, created_at)"
    " SELECT n, 1, 'grant', :points, 0, :points, CONCAT('bench:', n), '', UTC_TIMESTAMP(3)",
)


async def write_users(database: Database, first: int, number: int) -> None:
    """Users `first` to `first + number - 1`, each with POINTS."""
    for start in range(first, first + number, ROWS_AT_ONCE):
        values = {"first": start, "rows": min(ROWS_AT_ONCE, first + number - start), "points": POINTS}
        async with database.begin() as connection:
            for statement in _STATEMENTS:
                used = {name: value for name, value in values.items() if f":{name}" in statement + NUMBERS}
                await connection.execute(text(f"{statement} FROM {NUMBERS}"), used)
