"""Ended free tasks by the million, written with INSERT … SELECT. The audit finds no fault in them."""

import json
import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text

from app.database import Database
from bench.callers import PROMPT

ROWS_AT_ONCE = 10_000
OTHERS = 1000  # users whose tasks lie between those of the two users
RESULTS = [
    {
        "key": "results/2026/01/bench-1.jpg",
        "thumbnailKey": "results/2026/01/bench-1-thumb.jpg",
        "type": "image/jpeg",
        "width": 1024,
        "height": 1024,
        "bytes": 183_402,
    }
]
_DIGITS = " CROSS JOIN ".join(
    f"(SELECT 0 AS n {' '.join(f'UNION ALL SELECT {digit}' for digit in range(1, 10))}) AS d{place}"
    for place in range(4)
)
NUMBERS = (
    f"(SELECT n FROM (SELECT :first + d0.n + 10 * d1.n + 100 * d2.n + 1000 * d3.n AS n FROM {_DIGITS}) AS numbers"
    " WHERE n < :first + :rows ORDER BY n) AS numbered"
)
"""The numbers from `:first` on, `:rows` of them and at most ROWS_AT_ONCE."""
_INSERT = f"""
INSERT INTO tasks (task_no, user_id, model_name, task_type, action, prompt, params, upstream_request, points_cost,
 status, progress, step, deadline_at, history, results, created_at, updated_at, completed_at)
SELECT CONCAT('BENCH-', n), USER_OF_N, 'sc_soraimg_text_1x1', 'text_to_image', 'see2ai_image_generation_fast_v1',
 :prompt, :empty, :empty, 0, 'completed', 100, 'done', at, '[]', :results, at, at, at
FROM (SELECT n, TIMESTAMPADD(SECOND, n, UTC_TIMESTAMP(3) - INTERVAL 100 DAY) AS at FROM {NUMBERS}) AS timed
"""


@dataclass(frozen=True)
class Seeded:
    """What was written: rows in all, and those of the user with many and of the user with few."""

    rows: int
    many: int
    few: int


async def write_tasks(database: Database, user: str, first: int, number: int) -> None:
    """`number` tasks; `user` is the SQL of the user id of task number `n`."""
    for start in range(first, first + number, ROWS_AT_ONCE):
        values: dict[str, Any] = {"first": start, "rows": min(ROWS_AT_ONCE, first + number - start)}
        values |= {"prompt": PROMPT, "empty": "{}", "results": json.dumps(RESULTS)}
        async with database.begin() as connection:
            await connection.execute(text(_INSERT.replace("USER_OF_N", user)), values)


async def write_history(database: Database, rows: int, many: int, few: int, seconds: float) -> Seeded:
    """`rows` tasks of user 1 (`many`), user 2 (`few`) and others, mixed.

    The tasks of the two users come first. After `seconds` no more rows are written.
    """
    first_part = min(rows, 2 * many)  # every second task is of user 1
    gap = max(first_part // (2 * few) * 2, 2)
    until, written = time.monotonic() + seconds, first_part
    user = f"CASE WHEN n % 2 = 0 THEN 1 WHEN n % {gap} = 1 AND n < {gap * few} THEN 2 ELSE 3 + n % {OTHERS} END"
    await write_tasks(database, user, 0, first_part)
    while written < rows and time.monotonic() < until:
        await write_tasks(database, f"3 + n % {OTHERS}", written, min(ROWS_AT_ONCE, rows - written))
        written = min(written + ROWS_AT_ONCE, rows)
    return Seeded(written, first_part // 2, min(few, first_part // gap))
