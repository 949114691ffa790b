"""The COMMIT of a claim got no answer. The rows may have ended or belong to another worker when they are released."""

import pytest

from app.engine.claim import TaskFilter, claim_due, release
from app.engine.transitions import unchanged
from app.runtime import Runtime
from app.tasks.cancel import cancel_task
from tests.support.makers import Maker
from tests.support.worlds import execute

pytestmark = [pytest.mark.anyio, pytest.mark.both_worlds]


async def test_a_claim_that_was_not_committed_releases_no_cancelled_task(make: Maker, runtime: Runtime) -> None:
    """The cancel changes version 0 to 1, the same version that the claim would have written."""
    user = await make.user(points=60)
    cancelled, other = await make.task_no(user), await make.task_no(user)
    claimed = await claim_due(runtime.database, TaskFilter(("submit",)), 9, 30)
    await execute(runtime, f"UPDATE tasks SET version = 0, lease_until = NULL WHERE task_no = '{cancelled}'")
    assert (await cancel_task(runtime, user.id, cancelled))["status"] == "failed"
    await release(runtime.database, [unchanged(task, 0.0) for task in claimed])
    rows = {row.task_no: row for row in await execute(runtime, "SELECT task_no, step, version, lease_until FROM tasks")}
    assert (rows[cancelled].step, rows[cancelled].version) == ("done", 1)
    assert (rows[other].version, rows[other].lease_until) == (2, None), "the other tasks of the batch are released"
    assert await make.balance(user) == (30, 30)
