"""Each act of an admin leaves one row, in the transaction of its change. A reference makes it happen once."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import DBAPIError

from app.admin import actions
from app.admin.actions import COMMAND_LINE, Action, ActionFilters, Admin, Change, list_actions, perform
from app.database import Connection, TransactionConflict
from app.errors import ActionConflict, InvalidParameter, NotFound
from app.runtime import Runtime
from app.tables import admin_actions, points_config
from tests.support.makers import TEXT_MODEL, Maker
from tests.support.worlds import execute

pytestmark = [pytest.mark.anyio, pytest.mark.both_worlds]
ADMIN = Admin(user_id=7, request_id="request-1")


def act(ref: str | None = None, **changes: Any) -> Action:
    return Action(**({"name": "model.set", "target_type": "model", "target": TEXT_MODEL, "ref": ref} | changes))


def count_up(runs: list[int]) -> Callable[[Connection], Awaitable[Change]]:
    """A change that raises the place of a model by one, and counts its runs."""

    async def change(connection: Connection) -> Change:
        runs.append(1)
        is_model = points_config.c.model_name == TEXT_MODEL
        await connection.execute(update(points_config).where(is_model).values(sort=points_config.c.sort + 1))
        sort = int(await connection.scalar(select(points_config.c.sort).where(is_model)) or 0)
        return Change({"sort": sort - 1}, {"sort": sort})

    return change


async def sort_of(runtime: Runtime) -> int:
    async with runtime.database.read() as connection:
        found = await connection.scalar(select(points_config.c.sort).where(points_config.c.model_name == TEXT_MODEL))
    return int(found or 0)


async def rows(runtime: Runtime) -> list[Any]:
    async with runtime.database.read() as connection:
        return list(await connection.execute(select(admin_actions).order_by(admin_actions.c.id)))


async def test_an_act_leaves_one_row(runtime: Runtime) -> None:
    before = await sort_of(runtime)
    result = await perform(runtime.database, ADMIN, act("r-1", values={"by": 1}, reason="新的顺序"), count_up([]))
    assert (result.applied, result.after) == (True, {"sort": before + 1, "by": 1})
    (row,) = await rows(runtime)
    assert (row.admin_id, row.action, row.target_type, row.target) == (7, "model.set", "model", TEXT_MODEL)
    assert (row.before, row.after) == ({"sort": before}, {"sort": before + 1, "by": 1})
    assert (row.reason, row.ref, row.request_id) == ("新的顺序", "r-1", "request-1")
    assert abs(datetime.now(UTC) - row.created_at) < timedelta(minutes=5)


async def test_the_command_line_has_no_id(runtime: Runtime) -> None:
    await perform(runtime.database, COMMAND_LINE, act(), count_up([]))
    (row,) = await rows(runtime)
    assert (row.admin_id, row.ref, row.request_id) == (None, None, "")


async def test_without_a_reference_each_request_acts(runtime: Runtime) -> None:
    before = await sort_of(runtime)
    for _ in range(2):
        assert (await perform(runtime.database, ADMIN, act(), count_up([]))).applied
    assert (await sort_of(runtime), len(await rows(runtime))) == (before + 2, 2)


async def test_a_repetition_reads_the_first_result(runtime: Runtime) -> None:
    before, runs = await sort_of(runtime), list[int]()
    first = await perform(runtime.database, ADMIN, act("r-1"), count_up(runs))
    again = await perform(runtime.database, Admin(8), act("r-1", reason="other words"), count_up(runs))
    assert (first.applied, again.applied, again.after) == (True, False, first.after)
    assert (await sort_of(runtime), len(await rows(runtime)), len(runs)) == (before + 1, 1, 1)


async def test_ten_at_once_with_one_reference_act_once(runtime: Runtime) -> None:
    before = await sort_of(runtime)
    results = await asyncio.gather(
        *[perform(runtime.database, ADMIN, act("r-1", values={"by": 1}), count_up([])) for _ in range(10)]
    )
    assert sorted(result.applied for result in results) == [False] * 9 + [True]
    assert [result.after for result in results] == [{"sort": before + 1, "by": 1}] * 10
    assert (await sort_of(runtime), len(await rows(runtime))) == (before + 1, 1)


@pytest.mark.parametrize(
    "other", [{"name": "model.disable"}, {"target_type": "user"}, {"target": "x"}, {"values": {"by": 2}}]
)
async def test_a_reference_of_another_act_is_refused(runtime: Runtime, other: dict[str, Any]) -> None:
    await perform(runtime.database, ADMIN, act("r-1", values={"by": 1}), count_up([]))
    before = await sort_of(runtime)
    with pytest.raises(ActionConflict):
        await perform(runtime.database, ADMIN, act("r-1", **({"values": {"by": 1}} | other)), count_up([]))
    assert (await sort_of(runtime), len(await rows(runtime))) == (before, 1)


async def test_two_acts_at_once_with_one_reference_are_one_and_a_conflict(runtime: Runtime) -> None:
    before = await sort_of(runtime)
    results = await asyncio.gather(
        *[perform(runtime.database, ADMIN, act("r-1", values={"by": by}), count_up([])) for by in range(6)],
        return_exceptions=True,
    )
    assert sorted(type(result).__name__ for result in results) == ["ActionConflict"] * 5 + ["ActionResult"]
    assert (await sort_of(runtime), len(await rows(runtime))) == (before + 1, 1)


async def test_a_change_that_fails_leaves_no_row_and_a_free_reference(runtime: Runtime) -> None:
    before = await sort_of(runtime)

    async def fail(connection: Connection) -> Change:
        await count_up([])(connection)
        raise NotFound

    with pytest.raises(NotFound):
        await perform(runtime.database, ADMIN, act("r-1"), fail)
    assert (await sort_of(runtime), await rows(runtime)) == (before, [])
    assert (await perform(runtime.database, ADMIN, act("r-1"), count_up([]))).applied


async def test_a_row_that_cannot_be_written_undoes_the_change(runtime: Runtime) -> None:
    before = await sort_of(runtime)

    async def change(connection: Connection) -> Change:
        await count_up([])(connection)
        return Change(None, {"not JSON": object()})

    with pytest.raises(Exception, match="JSON"):
        await perform(runtime.database, ADMIN, act(), change)
    assert (await sort_of(runtime), await rows(runtime)) == (before, [])


async def test_a_request_that_another_one_overtook_reads_its_result(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one commits after the look for the reference, and has used up what this change needs."""
    first, read, reads = await perform(runtime.database, ADMIN, act("r-1"), count_up([])), actions._read, list[int]()

    async def read_late(connection: Connection, ref: str | None) -> Any:
        reads.append(1)
        return None if len(reads) == 1 else await read(connection, ref)

    async def used_up(connection: Connection) -> Change:
        raise NotFound

    monkeypatch.setattr(actions, "_read", read_late)
    again = await perform(runtime.database, ADMIN, act("r-1"), used_up)
    assert (again.applied, again.after, len(reads)) == (False, first.after, 2)


async def test_a_conflict_runs_the_change_again_and_leaves_one_row(runtime: Runtime) -> None:
    before, runs = await sort_of(runtime), list[int]()

    async def change(connection: Connection) -> Change:
        made = await count_up(runs)(connection)
        if len(runs) < 3:
            raise TransactionConflict
        return made

    assert (await perform(runtime.database, ADMIN, act("r-1"), change)).applied
    assert (await sort_of(runtime), len(await rows(runtime)), len(runs)) == (before + 1, 1, 3)


async def test_something_new_is_found_by_its_reference(runtime: Runtime) -> None:
    async def change(connection: Connection) -> Change:
        return Change(None, {}, target="42")

    first = await perform(runtime.database, ADMIN, act("r-1", target=""), change)
    again = await perform(runtime.database, ADMIN, act("r-1", target=""), change)
    assert [(one.applied, one.target) for one in (first, again)] == [(True, "42"), (False, "42")]
    assert [row.target for row in await rows(runtime)] == ["42"]


@pytest.mark.parametrize("ref", ["", " x", "x ", "x\x00", "x" * 129])
async def test_a_reference_that_cannot_be_stored_is_refused(runtime: Runtime, ref: str) -> None:
    with pytest.raises(InvalidParameter, match="ref"):
        await perform(runtime.database, ADMIN, act(ref), count_up([]))
    assert await rows(runtime) == []


async def test_a_reason_that_is_too_long_is_refused(runtime: Runtime) -> None:
    with pytest.raises(InvalidParameter, match="reason"):
        await perform(runtime.database, ADMIN, act(reason="x" * 256), count_up([]))
    assert (await perform(runtime.database, ADMIN, act(reason="字" * 255), count_up([]))).applied


@pytest.mark.parametrize(
    "damage",
    ["UPDATE admin_actions SET reason = 'x'", "DELETE FROM admin_actions", "UPDATE admin_actions SET ref = NULL"],
)
async def test_the_rows_cannot_be_changed(runtime: Runtime, damage: str) -> None:
    await perform(runtime.database, ADMIN, act("r-1", reason="so"), count_up([]))
    with pytest.raises(DBAPIError, match="append-only"):
        await execute(runtime, damage)
    assert [(row.reason, row.ref) for row in await rows(runtime)] == [("so", "r-1")]


async def test_the_list_is_filtered_and_newest_first(runtime: Runtime, make: Maker) -> None:
    admin = await make.user(username="root", admin=True)
    for number, who in enumerate((Admin(admin.id), Admin(8), COMMAND_LINE)):
        for name in ("model.set", "user.ban"):
            await perform(runtime.database, who, act(f"{name}-{number}", name=name), count_up([]))

    async def found(**filters: Any) -> list[tuple[int | None, str]]:
        listed, total = await list_actions(runtime.database, admin.id, ActionFilters(**filters), page=1, size=100)
        assert total == len(listed)
        return [(row["admin_id"], row["action"]) for row in listed]

    both = ["user.ban", "model.set"]
    assert await found() == [(who, name) for who in (None, 8, admin.id) for name in both]
    assert await found(admin_id=admin.id) == [(admin.id, name) for name in both]
    assert await found(admin_id=0) == [(None, name) for name in both]
    assert await found(action="user.ban", admin_id=8) == [(8, "user.ban")]
    assert len(await found(target_type="model", target=TEXT_MODEL)) == 6
    assert await found(target="x") == await found(target_type="user") == []
    assert await found(ref="model.set-1") == [(8, "model.set")]
    now = datetime.now(UTC)
    assert len(await found(start=now - timedelta(minutes=5), end=now + timedelta(minutes=5))) == 6
    assert await found(start=now + timedelta(minutes=5)) == await found(end=now - timedelta(minutes=5)) == []
    page, total = await list_actions(runtime.database, admin.id, ActionFilters(), page=2, size=4)
    assert (len(page), total, page[-1]["admin_name"]) == (2, 6, "root")
