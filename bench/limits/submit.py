"""The baseline of a submit: the same transaction in a bare asyncmy loop.

    python -m bench.limits.submit CONNECTIONS USERS < seconds

It writes what the gateway writes, so the same audit checks it. It has its own users, those after the first USERS.
"""

import asyncio
import json
import os
import random
import secrets
import sys
import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncmy
from sqlalchemy.engine import make_url

from bench.callers import PROMPT
from bench.paired_runs import Slice, obey

AUTH_CONNECTIONS = 8

USER = "SELECT role, status, tokens_valid_from FROM users WHERE id = %s"
MODEL = """SELECT model_name, description, points_cost, task_type, action, params, defaults, price_rules, enabled, sort,
 UTC_TIMESTAMP(3) AS now FROM points_config WHERE model_name = %s"""
TASK = """INSERT INTO tasks (task_no, user_id, model_name, task_type, action, prompt, image_url, params,
 upstream_request, points_cost, status, progress, step, next_run_at, deadline_at, history, created_at, updated_at)
 VALUES (%s, %s, %s, %s, %s, %s, NULL, '{}', %s, %s, 'created', 0, 'submit', %s, %s, '[]', %s, %s)"""
TAKE = """UPDATE points_accounts SET available = available - %s, held = held + %s, seq = seq + 1,
 updated_at = UTC_TIMESTAMP(3) WHERE user_id = %s AND available >= %s"""
ENTRY = """INSERT INTO points_ledger (user_id, seq, kind, points, held, balance_after, task_id, phase, ref, remark,
 created_at) SELECT user_id, seq, 'deduct', %s, %s, available, %s, 'open', NULL, %s, UTC_TIMESTAMP(3)
 FROM points_accounts WHERE user_id = %s"""
REQUEST = json.dumps(
    {"prompt": PROMPT, "image_input": [], "aspect_ratio": "1:1", "resolution": "1K", "output_format": "jpg"},
    ensure_ascii=False,
    separators=(",", ":"),
)
BALANCE = "SELECT available FROM points_accounts WHERE user_id = %s"


class Loop:
    """The connections of one slice: one per writer for its transactions, and a few in autocommit for authentication."""

    def __init__(self, url: str, users: int) -> None:
        self._url = make_url(url)
        self._first, self._last = users + 1, 2 * users
        self._auth: asyncio.LifoQueue[Any] = asyncio.LifoQueue()

    async def run(self, seconds: float, connections: int) -> Slice:
        async with AsyncExitStack() as opened:
            for _ in range(AUTH_CONNECTIONS):
                self._auth.put_nowait(await opened.enter_async_context(self._connect(autocommit=True)))
            writers = [await opened.enter_async_context(self._connect(autocommit=False)) for _ in range(connections)]
            tally, began = Slice(), time.perf_counter()
            await asyncio.gather(*(self._submit_until(writer, began + seconds, tally) for writer in writers))
            tally.seconds = time.perf_counter() - began
            self._auth = asyncio.LifoQueue()
        return tally

    def _connect(self, *, autocommit: bool) -> Any:
        url = self._url
        return asyncmy.connect(
            host=url.host,
            port=url.port or 3306,
            user=url.username,
            password=url.password or "",
            db=url.database,
            charset="utf8mb4",
            autocommit=autocommit,
            init_command="SET time_zone='+00:00', tx_isolation='READ-COMMITTED'",
        )

    async def _submit_until(self, writer: Any, until: float, tally: Slice) -> None:
        while (began := time.perf_counter()) < until:
            user_id = random.randint(self._first, self._last)
            auth = await self._auth.get()
            async with auth.cursor() as cursor:
                await cursor.execute(USER, (user_id,))
                await cursor.fetchone()
            self._auth.put_nowait(auth)
            async with writer.cursor() as cursor:
                await submit(cursor, user_id)
            await writer.commit()
            tally.done += 1
            tally.latencies.append(round((time.perf_counter() - began) * 1000, 2))


async def submit(cursor: Any, user_id: int) -> None:
    """The statements of one submit, in the gateway's order."""
    await cursor.execute(MODEL, ("sc_soraimg_text_1x1",))
    name, description, cost, task_type, action, *_ = await cursor.fetchone()
    now = datetime.now(UTC).replace(tzinfo=None)
    task_no = f"TASK-{now:%Y%m%d%H%M%S}000-{secrets.token_hex(4)}"
    options = (task_no, user_id, name, task_type, action, PROMPT, REQUEST, cost)
    await cursor.execute(TASK, (*options, now, now + timedelta(seconds=600), now, now))
    task_id = cursor.lastrowid
    if await cursor.execute(TAKE, (cost, cost, user_id, cost)) != 1:
        raise AssertionError(f"user {user_id} has no points left")
    await cursor.execute(ENTRY, (-cost, cost, task_id, description, user_id))
    await cursor.execute(BALANCE, (user_id,))
    await cursor.fetchone()


def main() -> None:
    connections, users = map(int, sys.argv[1:])
    loop = Loop(os.environ["DATABASE_URL"], users)
    obey(lambda seconds: loop.run(seconds, connections))


if __name__ == "__main__":
    main()
