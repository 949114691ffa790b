"""Tasks that run or have ended without a worker, with stored files, for tests of what becomes of them later."""

from typing import Any

from sqlalchemy import select

from app.engine.claim import TaskFilter, claim_due, fenced_update
from app.engine.finish import finish_task
from app.engine.state import ClaimedTask
from app.engine.transitions import Complete, Fail
from app.errors import TaskFailure
from app.runtime import Runtime
from app.tables import tasks
from tests.support.makers import Maker, User

WAITING = TaskFilter(("prepare", "submit"))
LEASE_SECONDS = 300.0


async def start(runtime: Runtime, number: int = 100) -> dict[str, ClaimedTask]:
    """Claims the waiting tasks and sets them as accepted by SEE2AI. By task number."""
    claimed = {task.task_no: task for task in await claim_due(runtime.database, WAITING, number, LEASE_SECONDS)}
    for task in claimed.values():
        async with runtime.database.begin() as connection:
            assert await fenced_update(connection, task, step="poll", status="processing")
        task.version += 1
        task.step, task.status = "poll", "processing"
    return claimed


async def complete(runtime: Runtime, task: ClaimedTask) -> list[str]:
    """Ends a started task with one picture and its thumbnail. Returns the keys of both files."""
    start = f"results/{task.created_at:%Y/%m}/{task.task_no}-1"
    keys = [f"{start}.png", f"{start}-thumb.jpg"]
    for key in keys:
        await runtime.store.put(key, b"a picture", "image/png")
    result = {"key": keys[0], "thumbnailKey": keys[1], "type": "image/png", "width": 1, "height": 1, "bytes": 9}
    history = [*task.history, {"at": "2026-11-01T00:00:00.000+00:00", "step": "poll", "note": "secret words"}]
    assert await finish_task(runtime, task, Complete([result]), history)
    return keys


async def fail(runtime: Runtime, task: ClaimedTask) -> None:
    assert await finish_task(runtime, task, Fail(TaskFailure.UPSTREAM_FAILED, "secret words"), task.history)


async def completed(make: Maker, user: User, prompt: str = "secret words", **fields: Any) -> tuple[str, list[str]]:
    """A new task that has completed: its number and the keys of its files."""
    task_no = await make.task_no(user, prompt, **fields)
    return task_no, await complete(make.runtime, (await start(make.runtime))[task_no])


async def row(runtime: Runtime, task_no: str) -> dict[str, Any]:
    async with runtime.database.read() as connection:
        found = (await connection.execute(select(tasks).where(tasks.c.task_no == task_no))).one()
    return dict(found._mapping)


async def stored(runtime: Runtime, keys: list[str]) -> list[bool]:
    return [await runtime.store.exists(key) for key in keys]
