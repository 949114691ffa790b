"""An admin ends living tasks and closes suspected orphans: one refund, one audit row, and never a job sent after it."""

import asyncio
from typing import Any

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import select, update

from app.admin.actions import Admin
from app.admin.tasks.changes import close_orphan, end_task
from app.engine.claim import TaskFilter, claim_due
from app.engine.execute import LostLease, run_steps
from app.errors import ActionConflict, InvalidParameter, NotFound
from app.runtime import Runtime
from app.tables import admin_actions, points_ledger, tasks, webhook_deliveries
from tests.support.makers import Maker
from tests.support.sandbox_server import Server
from tests.support.task_rows import distinct, row_of, submits
from tests.support.waiting import until
from tests.support.worlds import REAL, execute

pytestmark = [pytest.mark.anyio, pytest.mark.both_worlds(usually=REAL)]
ADMIN = Admin(1, "request-1")


async def end(runtime: Runtime, task_no: str, *, may_run: bool = False, ref: str | None = None) -> Any:
    return await end_task(runtime, ADMIN, task_no, may_run_upstream=may_run, reason="投诉", ref=ref)


async def audit_rows(runtime: Runtime, task_no: str) -> list[Any]:
    async with runtime.database.read() as connection:
        query = select(admin_actions).where(admin_actions.c.target == task_no).order_by(admin_actions.c.id)
        return list((await connection.execute(query)).all())


async def refunds(runtime: Runtime, task_id: int) -> list[int]:
    async with runtime.database.read() as connection:
        query = select(points_ledger.c.points).where(
            points_ledger.c.task_id == task_id, points_ledger.c.kind == "refund"
        )
        return list(await connection.scalars(query))


async def move(runtime: Runtime, task_no: str, step: str) -> None:
    """The task at another step, as a worker would have left it."""
    async with runtime.database.begin() as connection:
        await connection.execute(update(tasks).where(tasks.c.task_no == task_no).values(step=step, status="processing"))


async def test_a_task_that_is_not_sent_is_ended_and_refunded(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=30)
    task_no = await make.task_no(user, callbackUrl="https://receiver.example.com/hook")
    result = await end(runtime, task_no)
    assert result.applied
    task, row = await make.task(user, task_no), await row_of(runtime, task_no)
    assert (task["status"], task["errorCode"], task["pointsRefunded"]) == ("failed", "ENDED_BY_PLATFORM", 30)
    assert await make.balance(user) == (30, 0)
    assert row["suspected_orphan"] is False
    assert "投诉" in row["operator_note"]
    assert row["history"][-1]["step"] == "done"
    async with runtime.database.read() as connection:
        deliveries = list(await connection.scalars(select(webhook_deliveries.c.task_id)))
    assert deliveries == [row["id"]]
    (written,) = await audit_rows(runtime, task_no)
    assert (written.action, written.target_type, written.admin_id) == ("task.end", "task", 1)
    assert (written.reason, written.request_id) == ("投诉", "request-1")
    assert written.before == {"status": "created", "step": "submit"}
    assert written.after["pointsRefunded"] == 30


async def test_a_free_task_is_ended_without_a_refund(make: Maker, runtime: Runtime) -> None:
    await execute(runtime, "UPDATE points_config SET points_cost = 0 WHERE model_name = 'sc_soraimg_text_1x1'")
    user = await make.user()
    task_no = await make.task_no(user)
    assert (await end(runtime, task_no)).applied
    assert await refunds(runtime, (await row_of(runtime, task_no))["id"]) == []


@pytest.mark.parametrize("step", ["submitting", "poll"])
async def test_a_job_that_may_run_needs_a_word_and_becomes_a_suspected_orphan(
    make: Maker, runtime: Runtime, step: str
) -> None:
    user = await make.user(points=30)
    task_no = await make.task_no(user)
    await move(runtime, task_no, step)
    with pytest.raises(ActionConflict, match="mayRunUpstream"):
        await end(runtime, task_no)
    assert await make.balance(user) == (0, 30)
    assert await audit_rows(runtime, task_no) == []
    before = REGISTRY.get_sample_value("gateway_suspected_orphans_total") or 0
    assert (await end(runtime, task_no, may_run=True)).applied
    assert (await row_of(runtime, task_no))["suspected_orphan"] is True
    assert REGISTRY.get_sample_value("gateway_suspected_orphans_total") == before + 1
    assert await make.balance(user) == (30, 0)


async def test_a_finished_job_whose_result_is_being_stored_is_no_orphan(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=30)
    task_no = await make.task_no(user)
    await move(runtime, task_no, "rehost")
    assert (await end(runtime, task_no)).applied
    assert (await row_of(runtime, task_no))["suspected_orphan"] is False


async def test_an_ended_or_unknown_task_cannot_be_ended(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=30)
    task_no = await make.task_no(user)
    await end(runtime, task_no)
    with pytest.raises(ActionConflict):
        await end(runtime, task_no, may_run=True)
    for unknown in ("TASK-1", f"{task_no} ", task_no.lower(), "猫", "", "T" * 100):
        with pytest.raises(NotFound):
            await end(runtime, unknown)
    assert await make.balance(user) == (30, 0)
    assert len(await audit_rows(runtime, task_no)) == 1


async def test_a_reference_is_used_once(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=60)
    first, second = await make.task_no(user), await make.task_no(user)
    results = await asyncio.gather(*(end(runtime, first, ref="ticket-1") for _ in range(5)))
    assert sorted(result.applied for result in results) == [False] * 4 + [True]
    assert {str(result.after) for result in results} == {str(results[0].after)}
    with pytest.raises(ActionConflict):
        await end(runtime, second, ref="ticket-1")
    with pytest.raises(InvalidParameter):
        await end(runtime, second, ref=" ticket-2")
    assert await make.balance(user) == (30, 30)
    assert await refunds(runtime, (await row_of(runtime, first))["id"]) == [30]


async def test_many_admins_end_a_task_once(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=30)
    task_no = await make.task_no(user)
    results = await asyncio.gather(*(end(runtime, task_no) for _ in range(6)), return_exceptions=True)
    assert sum(isinstance(result, ActionConflict) for result in results) == 5
    assert await refunds(runtime, (await row_of(runtime, task_no))["id"]) == [30]
    assert len(await audit_rows(runtime, task_no)) == 1


# ------------------------------------------------------------------ against a worker that holds the row


async def test_a_worker_that_holds_an_ended_task_sends_nothing(make: Maker, runtime: Runtime, upstream: Server) -> None:
    user = await make.user(points=30)
    prompt = distinct("一只被终止的猫")
    task_no = await make.task_no(user, prompt)
    (claimed,) = await claim_due(runtime.database, TaskFilter(("submit",)), 10, 30.0)
    assert (await end(runtime, task_no)).applied
    with pytest.raises(LostLease):
        await run_steps(runtime, claimed)
    assert submits(upstream, prompt) == []
    assert await refunds(runtime, (await row_of(runtime, task_no))["id"]) == [30]


@pytest.mark.usefixtures("working")
async def test_the_answer_to_a_job_that_was_ended_while_it_was_sent_changes_nothing(
    make: Maker, runtime: Runtime, upstream: Server
) -> None:
    user = await make.user(points=30)
    prompt = distinct("慢")
    upstream.control({"where": "submit", "delay_seconds": 0.8})
    task_no = await make.task_no(user, prompt)

    async def is_sending() -> bool:
        return bool((await row_of(runtime, task_no))["step"] == "submitting")

    await until("the worker sends", is_sending)
    with pytest.raises(ActionConflict):
        await end(runtime, task_no)
    assert (await end(runtime, task_no, may_run=True)).applied
    await until("SEE2AI has accepted it", lambda: submits(upstream, prompt, "accepted"))
    other = await make.user(points=30)
    upstream.control()
    assert (await make.ended(other, await make.task_no(other)))["status"] == "completed"
    row = await row_of(runtime, task_no)
    assert (row["status"], row["error_code"], row["suspected_orphan"]) == ("failed", "ENDED_BY_PLATFORM", True)
    assert len(submits(upstream, prompt)) == 1
    assert await refunds(runtime, row["id"]) == [30]
    assert await make.balance(user) == (30, 0)


@pytest.mark.usefixtures("working")
async def test_ended_before_it_is_sent_or_known_to_run_but_never_both(
    make: Maker, runtime: Runtime, upstream: Server
) -> None:
    """Thirty tasks, each ended while a worker begins it. Whoever is refused asks again with the word."""
    user = await make.user(points=30 * 30)
    prompts = [distinct('[[sandbox: {"take_seconds": 0}]] 赛跑') for _ in range(30)]
    few = asyncio.Semaphore(6)

    async def race(number: int) -> tuple[str, bool]:
        async with few:
            task_no = await make.task_no(user, prompts[number])
            await asyncio.sleep(number % 6 * 0.02)
            for may_run in (False, True):
                try:
                    return task_no, (await end(runtime, task_no, may_run=may_run)).applied
                except ActionConflict:
                    continue
            return task_no, False

    raced = await asyncio.gather(*map(race, range(30)))
    number_ended = 0
    for prompt, (task_no, was_ended) in zip(prompts, raced, strict=True):
        await make.ended(user, task_no)
        row = await row_of(runtime, task_no)
        assert (row["error_code"] == "ENDED_BY_PLATFORM") == was_ended
        if submits(upstream, prompt) and was_ended:
            assert row["suspected_orphan"] or row["history"][-1]["note"].startswith("ended by an admin at step rehost")
        if not submits(upstream, prompt):
            assert was_ended
            assert row["suspected_orphan"] is False or "submitting" in row["operator_note"]
        number_ended += was_ended
    assert await make.balance(user) == (number_ended * 30, 0)


# ------------------------------------------------------------------ suspected orphans


async def test_a_suspected_orphan_is_closed_once_with_a_note(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=30)
    task_no = await make.task_no(user)
    await move(runtime, task_no, "submitting")
    await end(runtime, task_no, may_run=True)
    shown = await make.task(user, task_no)

    async def close(ref: str | None = None) -> Any:
        return await close_orphan(runtime, ADMIN, task_no, reason="SEE2AI 已退款", ref=ref)

    assert (await close("orphan-1")).applied
    assert (await close("orphan-1")).applied is False
    with pytest.raises(ActionConflict):
        await close()
    row = await row_of(runtime, task_no)
    assert row["suspected_orphan"] is False
    assert row["operator_note"].splitlines()[-1] == "orphan closed: SEE2AI 已退款"
    assert [written.action for written in await audit_rows(runtime, task_no)] == ["task.end", "task.close_orphan"]
    assert await make.task(user, task_no) == shown, "its owner sees no difference"
    with pytest.raises(NotFound):
        await close_orphan(runtime, ADMIN, "TASK-1", reason="x", ref=None)
