"""Top-ups, codes and the search of the ledger by admins; and the audit on request."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.admin.actions import COMMAND_LINE, ActionFilters, Admin, list_actions
from app.admin.points import EntryFilters, create_codes, export_codes, grant, search_ledger, void_codes
from app.errors import ActionConflict, GrantConflict, InvalidParameter, NotFound, Unavailable
from app.jobs import audit_now
from app.jobs.audit_now import AuditState, get_audit_state, run_audit_now
from app.jobs.state import acquire_job, complete_job, list_job_states, release_job
from app.points.redeem_codes import list_batches, list_codes, redeem_code
from app.runtime import Runtime
from tests.support.lots import in_hours
from tests.support.makers import Maker
from tests.support.worlds import execute

pytestmark = [pytest.mark.anyio, pytest.mark.both_worlds]
ADMIN = Admin(7)


async def acts(runtime: Runtime) -> list[dict[str, Any]]:
    return (await list_actions(runtime.database, 1, ActionFilters(), page=1, size=100))[0]


# ------------------------------------------------------------------ top-ups


async def test_a_top_up_leaves_one_row_however_often_it_is_repeated(runtime: Runtime, make: Maker) -> None:
    user = await make.user(points=5)
    options: dict[str, Any] = {"user_id": user.id, "points": 100, "ref": "order-1", "remark": "充值"}
    results = await asyncio.gather(*[grant(runtime.database, ADMIN, **options) for _ in range(10)])
    assert sorted(results) == [(False, 105)] * 9 + [(True, 105)]
    (row,) = await acts(runtime)
    assert (row["action"], row["target"], row["ref"], row["reason"]) == (
        "points.grant",
        str(user.id),
        "order-1",
        "充值",
    )
    assert (row["before"], row["after"]) == ({"balance": 5}, {"points": 100, "expires": None, "balance": 105})


async def test_a_top_up_that_fails_leaves_no_row(runtime: Runtime, make: Maker) -> None:
    user = await make.user()
    await grant(runtime.database, ADMIN, user_id=user.id, points=5, ref="order-1", expires=in_hours(24))
    for error, options in (
        (GrantConflict, {"points": 6, "ref": "order-1"}),
        (InvalidParameter, {"points": 5, "ref": "order-2", "expires": in_hours(-1)}),
        (InvalidParameter, {"points": 5, "ref": "code:1"}),
        (NotFound, {"points": 5, "ref": "order-2", "user_id": 424242}),
    ):
        with pytest.raises(error):
            await grant(runtime.database, ADMIN, **({"user_id": user.id} | options))
    assert len(await acts(runtime)) == 1
    assert await make.balance(user) == (5, 0)


async def test_a_reference_of_another_act_gives_no_points(runtime: Runtime, make: Maker) -> None:
    user = await make.user()
    await create_codes(runtime.database, ADMIN, count=1, points=5, batch="b", ref="r-1")
    with pytest.raises(GrantConflict):
        await grant(runtime.database, ADMIN, user_id=user.id, points=5, ref="r-1")
    assert await make.balance(user) == (0, 0)


# ------------------------------------------------------------------ codes


async def test_codes_are_shown_once(runtime: Runtime, make: Maker) -> None:
    options: dict[str, Any] = {"count": 3, "points": 50, "batch": "spring", "expires": in_hours(24), "ref": "c-1"}
    made, codes = await create_codes(runtime.database, ADMIN, **options)
    again, none = await create_codes(runtime.database, ADMIN, **options)
    assert (made.applied, len(set(codes)), again.applied, none) == (True, 3, False, [])
    assert (await list_codes(runtime.database, "spring", limit=10))[1] == 3
    with pytest.raises(ActionConflict):
        await create_codes(runtime.database, ADMIN, **(options | {"count": 4}))
    (row,) = await acts(runtime)
    assert (row["action"], row["target"], row["after"]["count"]) == ("codes.create", "spring", 3)
    assert not any(code in str(row) for code in codes)
    user = await make.user()
    assert await redeem_code(runtime.database, user.id, codes[0]) == 50


async def test_of_equal_batches_at_once_one_is_made(runtime: Runtime) -> None:
    made = await asyncio.gather(
        *[create_codes(runtime.database, ADMIN, count=3, points=5, batch="b", ref="c-1") for _ in range(5)]
    )
    assert sorted(len(codes) for _, codes in made) == [0, 0, 0, 0, 3]
    assert (await list_codes(runtime.database, "b", limit=10))[1] == 3


async def test_a_batch_that_fails_leaves_nothing(runtime: Runtime) -> None:
    for options in ({"count": 0}, {"points": 0}, {"batch": " x"}, {"lot_days": 0}, {"expires": in_hours(-1)}):
        with pytest.raises(InvalidParameter):
            await create_codes(runtime.database, ADMIN, **({"count": 1, "points": 5, "batch": "b"} | options))
    assert (await acts(runtime), await list_batches(runtime.database, page=1, size=10)) == ([], ([], 0))


async def test_batches_count_the_states_of_their_codes(runtime: Runtime, make: Maker) -> None:
    user = await make.user()
    _, codes = await create_codes(runtime.database, ADMIN, count=3, points=50, batch="old")
    await redeem_code(runtime.database, user.id, codes[0])
    result = await void_codes(runtime.database, ADMIN, "old", reason="泄露", ref="v-1")
    assert result.after == {"voided": 2}
    assert not (await void_codes(runtime.database, ADMIN, "old", ref="v-1")).applied
    await create_codes(runtime.database, ADMIN, count=2, points=5, batch="new", expires=in_hours(1))
    await create_codes(runtime.database, ADMIN, count=1, points=7, batch="new")
    await execute(
        runtime, "UPDATE redeem_codes SET expires_at = '2020-01-01 00:00:00.000' WHERE expires_at IS NOT NULL"
    )
    (new, old), total = await list_batches(runtime.database, page=1, size=10)
    names = ("batch", "total", "unused", "redeemed", "expired", "void", "min_points", "max_points")
    assert [new[name] for name in names] == ["new", 3, 1, 0, 2, 0, 5, 7]
    assert [old[name] for name in names] == ["old", 3, 0, 1, 0, 2, 50, 50]
    assert (total, type(new["unused"]), old["expires_at"]) == (2, int, None)
    assert abs(datetime.now(UTC) - old["created_at"]) < timedelta(minutes=5)
    page, total = await list_batches(runtime.database, page=2, size=1)
    assert ([row["batch"] for row in page], total) == (["old"], 2)
    assert [row["action"] for row in await acts(runtime)] == [
        "codes.create",
        "codes.create",
        "codes.void",
        "codes.create",
    ]


async def test_an_export_has_no_secrets(runtime: Runtime, make: Maker) -> None:
    user = await make.user()
    _, codes = await create_codes(runtime.database, ADMIN, count=2, points=50, batch="b")
    await redeem_code(runtime.database, user.id, codes[0])
    rows = await export_codes(runtime.database, "b")
    assert {row["prefix"] for row in rows} == {code[:5] for code in codes}
    assert sorted((row["status"], row["redeemed_by"] or 0) for row in rows) == [("redeemed", user.id), ("unused", 0)]
    assert not any(code in str(rows) for code in codes)
    for act in (export_codes(runtime.database, "none"), void_codes(runtime.database, ADMIN, "none")):
        with pytest.raises(NotFound, match="批次不存在"):
            await act


# ------------------------------------------------------------------ the ledger


async def test_the_ledger_is_searched(runtime: Runtime, make: Maker) -> None:
    user, other = await make.user(username="alice"), await make.user()
    await grant(runtime.database, ADMIN, user_id=user.id, points=100, ref="order-1")
    await grant(runtime.database, ADMIN, user_id=other.id, points=50, ref="order-2")
    task_no = await make.task_no(user)

    async def found(**filters: Any) -> list[tuple[int, str, str | None]]:
        rows, total = await search_ledger(runtime.database, 1, EntryFilters(**filters), page=1, size=10)
        assert total == len(rows)
        return [(row["user_id"], row["kind"], row["ref"] or row["task_no"]) for row in rows]

    all_rows = [(user.id, "deduct", task_no), (other.id, "grant", "order-2"), (user.id, "grant", "order-1")]
    assert await found() == all_rows
    assert await found(user_id=user.id) == [all_rows[0], all_rows[2]]
    assert await found(kind="grant") == all_rows[1:]
    assert await found(ref="order-2") == await found(user_id=other.id, kind="grant") == [all_rows[1]]
    assert await found(task_no=task_no) == [all_rows[0]]
    assert await found(task_no="TASK-none") == await found(ref="ORDER-2") == await found(user_id=99) == []
    now = datetime.now(UTC)
    assert await found(start=now - timedelta(minutes=5), end=now + timedelta(minutes=5)) == all_rows
    assert await found(start=now + timedelta(minutes=5)) == []
    page, total = await search_ledger(runtime.database, 1, EntryFilters(), page=3, size=1)
    assert ([row["username"] for row in page], total) == (["alice"], 3)


# ------------------------------------------------------------------ the audit


async def test_the_audit_on_request_is_the_newest_result(runtime: Runtime) -> None:
    assert await get_audit_state(runtime.database) == AuditState()
    assert await run_audit_now(runtime.database, 3600) == []
    state = await get_audit_state(runtime.database)
    assert (state.violations, state.is_running) == (0, False)
    assert state.completed_at is not None
    assert not (await list_job_states(runtime.database))["audit"].is_due
    assert await run_audit_now(runtime.database, 3600) == []  # also when it is not due


async def test_the_audit_on_request_finds_what_is_wrong(runtime: Runtime, make: Maker) -> None:
    await make.user(points=50)
    wrong = "UPDATE points_accounts SET available = available - 20, held = held + 20"
    await execute(runtime, wrong)
    found = await run_audit_now(runtime.database, 3600)
    assert [one.invariant for one in found] == ["I1"]
    assert (await get_audit_state(runtime.database)).violations == 1
    await execute(runtime, "UPDATE points_accounts SET available = available + 20, held = held - 20")


async def test_one_audit_runs_at_a_time(runtime: Runtime) -> None:
    version = await acquire_job(runtime.database, "audit", 60)
    assert version is not None
    assert (await get_audit_state(runtime.database)).is_running
    with pytest.raises(ActionConflict, match="审计正在进行"):
        await run_audit_now(runtime.database, 3600)
    assert await complete_job(runtime.database, "audit", version, result=0, period_seconds=3600)
    assert await run_audit_now(runtime.database, 3600) == []


async def test_an_audit_that_takes_too_long_is_left_to_a_worker(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_now, "MAX_SECONDS", 0.0)
    with pytest.raises(Unavailable, match="后台"):
        await run_audit_now(runtime.database, 3600)
    assert (await list_job_states(runtime.database))["audit"].is_due
    version = await acquire_job(runtime.database, "audit", 60)
    assert version is not None
    assert await release_job(runtime.database, "audit", version, 0.0)


async def test_the_command_line_is_named(runtime: Runtime, make: Maker) -> None:
    user = await make.user()
    await grant(runtime.database, COMMAND_LINE, user_id=user.id, points=5, ref="order-1")
    assert [row["admin_id"] for row in await acts(runtime)] == [None]
