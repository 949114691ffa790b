"""What tests with real processes need: a database, the services' settings, and access to the books from outside."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import select

from app.accounts.users import create_user
from app.catalog.models import set_model
from app.points import ledger
from app.points.audit.checks import audit
from app.runtime import Runtime, open_runtime
from app.settings import Settings
from app.tables import points_ledger, tasks
from app.tasks.submit import submit_task
from app.tasks.validation import Submission
from tests.support.makers import IMAGE_MODEL, TEXT_MODEL
from tests.support.sandbox_server import KEY, Server
from tests.support.services import RealServices

LEASE_SECONDS = 5  # short, but longer than a Python process pauses while nine others start
JWT_SECRET = "a-secret-of-the-tests-with-real-processes"
ENDED = frozenset({"completed", "failed"})


def environment(services: RealServices, sandbox: Server, database_url: str) -> dict[str, Any]:
    """The environment of a gateway on the real services, with short leases so that workers take over quickly."""
    return services.settings() | {
        "database_url": database_url,
        "see2ai_base_url": sandbox.origin,
        "see2ai_api_key": KEY,
        "egress_allow": sandbox.origin.removeprefix("http://"),
        "jwt_secret": JWT_SECRET,
        "lease_seconds": LEASE_SECONDS,
        "submit_rate_per_minute": 100_000,
        "read_rate_per_minute": 100_000,
    }


class Books:
    """Reads a gateway's database from outside its processes, and submits where no API process is needed."""

    def __init__(self, runtime: Runtime, user_id: int) -> None:
        self.runtime = runtime
        self.user_id = user_id

    async def submit(self, prompt: str, model: str = TEXT_MODEL) -> str:
        result = await submit_task(self.runtime, self.user_id, Submission(model, prompt))
        return str(result.row["task_no"])

    async def submit_with_jobs(self, prompt: str) -> str:
        """A task with a call before its submit: its reference is normalized."""
        fixed = {"aspectRatio": "1:1", "normalizeReferences": True}
        await set_model(self.runtime.database, IMAGE_MODEL, {"params": fixed})
        requested = Submission(IMAGE_MODEL, prompt, "https://example.com/a.jpg")
        return str((await submit_task(self.runtime, self.user_id, requested)).row["task_no"])

    async def row(self, task_no: str) -> dict[str, Any]:
        return next(row for row in await self.rows() if row["task_no"] == task_no)

    async def rows(self) -> list[dict[str, Any]]:
        async with self.runtime.database.read() as connection:
            return [dict(row._mapping) for row in await connection.execute(select(tasks).order_by(tasks.c.id))]

    async def kinds(self, task_id: int) -> list[str]:
        """The kinds of a task's ledger entries, in order. ["deduct", "settle"] is a completed task."""
        entries = select(points_ledger.c.kind).where(points_ledger.c.task_id == task_id).order_by(points_ledger.c.id)
        async with self.runtime.database.read() as connection:
            return list(await connection.scalars(entries))

    async def all_ended(self, seconds: float = 120.0) -> list[dict[str, Any]]:
        """The row of every task once all have ended. Fails if one has not ended in time."""
        rows: list[dict[str, Any]] = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    rows = await self.rows()
                    if rows and all(row["status"] in ENDED for row in rows):
                        return rows
                    await asyncio.sleep(0.1)
        shown = ("task_no", "status", "step", "version", "attempts", "crashes", "next_run_at", "lease_until", "history")
        raise AssertionError([{name: row[name] for name in shown} for row in rows if row["status"] not in ENDED])

    async def prove(self) -> None:
        """Each ended task was charged once, then settled or refunded once. The audit finds nothing."""
        ends = {"completed": "settle", "failed": "refund"}
        for row in await self.rows():
            end = [ends[row["status"]]] if row["status"] in ends else []
            assert await self.kinds(row["id"]) == ["deduct", *end], row
        assert await audit(self.runtime.database) == []


@asynccontextmanager
async def open_books(env: dict[str, Any], *, points: int = 1000, user_id: int | None = None) -> AsyncIterator[Books]:
    """A user with points on a migrated database. With `user_id` the existing user.

    MariaDB ends a transaction that is idle for a lease, because its process may be frozen. Here it must not: this
    process also runs other cases, whose migrations and waits may take longer than a gateway's short lease.
    """
    async with open_runtime(Settings(_env_file=None, **(env | {"lease_seconds": 120}))) as runtime:
        if user_id is None:
            user_id = await create_user(runtime.database)
            await ledger.grant(runtime.database, user_id=user_id, points=points, ref=f"test:{user_id}")
        yield Books(runtime, user_id)


def accepted(sandbox: Server, word: str) -> list[dict[str, Any]]:
    """Jobs that SEE2AI's stand-in accepted for prompts with this word."""
    return [entry for entry in sandbox.journal(outcome="accepted") if word in str(entry["body"])]
