"""What admins do with users: bans and roles keep one admin, a creation is one act, and a correction happens once."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import func, select

from app.admin.actions import COMMAND_LINE, ActionFilters, Admin, list_actions
from app.admin.users import UserFilters, adjust, create_user, get_user, list_users, set_role, set_status
from app.database import utc_after, utc_now
from app.errors import ActionConflict, GatewayError, InsufficientPoints, InvalidParameter, NotFound, UsernameTaken
from app.points import ledger
from app.points.balance import get_balance
from app.runtime import Runtime
from app.tables import refresh_tokens, users
from tests.support.makers import Maker

pytestmark = [pytest.mark.anyio, pytest.mark.both_worlds]


async def admins_of(runtime: Runtime) -> list[int]:
    async with runtime.database.read() as connection:
        is_admin = (users.c.role == "admin") & (users.c.status == "active")
        return list(await connection.scalars(select(users.c.id).where(is_admin).order_by(users.c.id)))


async def acts(runtime: Runtime, **filters: Any) -> list[dict[str, Any]]:
    return (await list_actions(runtime.database, 1, ActionFilters(**filters), page=1, size=100))[0]


# ------------------------------------------------------------------ one admin remains


async def test_the_last_admin_is_neither_banned_nor_demoted(runtime: Runtime, make: Maker) -> None:
    only, banned = await make.user(admin=True), await make.user(admin=True)
    await set_status(runtime.database, COMMAND_LINE, banned.id, "banned")
    for act in (
        set_status(runtime.database, COMMAND_LINE, only.id, "banned"),
        set_role(runtime.database, COMMAND_LINE, only.id, "user"),
    ):
        with pytest.raises(ActionConflict, match="至少须保留一名"):
            await act
    assert await admins_of(runtime) == [only.id]
    await set_role(runtime.database, COMMAND_LINE, banned.id, "user")  # was no active admin
    assert await admins_of(runtime) == [only.id]


async def test_an_admin_does_not_lock_themselves_out(runtime: Runtime, make: Maker) -> None:
    one, _other = await make.user(admin=True), await make.user(admin=True)
    for act in (
        set_status(runtime.database, Admin(one.id), one.id, "banned"),
        set_role(runtime.database, Admin(one.id), one.id, "user"),
    ):
        with pytest.raises(ActionConflict, match="自己"):
            await act
    assert len(await admins_of(runtime)) == 2


@pytest.mark.parametrize("number", [2, 5])
async def test_admins_who_ban_each_other_leave_one(runtime: Runtime, make: Maker, number: int) -> None:
    """Each bans or demotes the next one, all at once."""
    admins = [await make.user(admin=True) for _ in range(number)]
    pairs = list(zip(admins, [*admins[1:], admins[0]], strict=True))
    acting: list[Any] = [
        set_status(runtime.database, Admin(one.id), other.id, "banned")
        if place % 2 == 0
        else set_role(runtime.database, Admin(one.id), other.id, "user")
        for place, (one, other) in enumerate(pairs)
    ]
    results = await asyncio.gather(*acting, return_exceptions=True)
    refused = [result for result in results if isinstance(result, GatewayError)]
    assert [type(one) for one in refused] == [ActionConflict]
    assert len(await admins_of(runtime)) == 1
    assert len(await acts(runtime)) == number - 1


async def test_bans_and_promotions_at_once_leave_an_admin(runtime: Runtime, make: Maker) -> None:
    admins, others = [await make.user(admin=True) for _ in range(3)], [await make.user() for _ in range(3)]
    await asyncio.gather(
        *[set_role(runtime.database, COMMAND_LINE, user.id, "admin") for user in others],
        *[set_status(runtime.database, COMMAND_LINE, user.id, "banned") for user in (*admins, *others)],
        return_exceptions=True,
    )
    assert len(await admins_of(runtime)) >= 1


# ------------------------------------------------------------------ ban, unban, role


async def test_a_ban_ends_the_log_ins_for_good(runtime: Runtime, make: Maker) -> None:
    user, other = await make.user(), await make.user()
    row = {"family": "f", "client": "c", "created_at": utc_now(), "expires_at": utc_after(3600)}
    async with runtime.database.begin() as connection:
        for owner in (user, other):
            await connection.execute(refresh_tokens.insert().values(user_id=owner.id, digest=f"d{owner.id}", **row))
    await set_status(runtime.database, COMMAND_LINE, user.id, "banned", reason="滥用")
    await set_status(runtime.database, COMMAND_LINE, user.id, "active")
    async with runtime.database.read() as connection:
        live = select(refresh_tokens.c.user_id).where(refresh_tokens.c.revoked_at.is_(None))
        assert list(await connection.scalars(live)) == [other.id]
        versions = select(users.c.token_version).where(users.c.id.in_([user.id, other.id])).order_by(users.c.id)
        assert list(await connection.scalars(versions)) == [1, 0]
    unbanned, banned = await acts(runtime, target=str(user.id))
    assert (banned["action"], banned["reason"]) == ("user.ban", "滥用")
    assert (banned["before"], banned["after"]) == ({"status": "active"}, {"status": "banned"})
    assert (unbanned["action"], unbanned["before"]) == ("user.unban", {"status": "banned"})


async def test_a_ban_by_reference_happens_once(runtime: Runtime, make: Maker) -> None:
    user = await make.user()
    assert (await set_status(runtime.database, COMMAND_LINE, user.id, "banned", ref="b-1")).applied
    await set_status(runtime.database, COMMAND_LINE, user.id, "active")
    assert not (await set_status(runtime.database, COMMAND_LINE, user.id, "banned", ref="b-1")).applied
    assert (await get_user(runtime.database, user.id))["status"] == "active"
    with pytest.raises(ActionConflict):
        await set_status(runtime.database, COMMAND_LINE, user.id, "active", ref="b-1")


async def test_a_role_is_given_and_taken(runtime: Runtime, make: Maker) -> None:
    await make.user(admin=True)
    user = await make.user()
    for role in ("admin", "user"):
        await set_role(runtime.database, COMMAND_LINE, user.id, role)
        assert (await get_user(runtime.database, user.id))["role"] == role
    taken, given = await acts(runtime, target=str(user.id))
    assert (given["before"], given["after"]) == ({"role": "user"}, {"role": "admin"})
    assert (taken["before"], taken["after"]) == ({"role": "admin"}, {"role": "user"})


async def test_an_unknown_user_is_not_found(runtime: Runtime) -> None:
    for act in (
        set_status(runtime.database, COMMAND_LINE, 99, "banned"),
        set_status(runtime.database, COMMAND_LINE, 99, "active"),
        set_role(runtime.database, COMMAND_LINE, 99, "admin"),
        adjust(runtime.database, COMMAND_LINE, 99, 5, reason="x", ref="r"),
        get_user(runtime.database, 99),
    ):
        with pytest.raises(NotFound, match="用户不存在"):
            await act
    assert await acts(runtime) == []


# ------------------------------------------------------------------ creation


async def test_a_creation_is_one_act(runtime: Runtime) -> None:
    made = await create_user(runtime.database, Admin(7), username="alice", role="admin", points=50, ref="c-1")
    again = await create_user(runtime.database, Admin(7), username="alice", role="admin", points=50, ref="c-1")
    assert (made.applied, again.applied, again.target) == (True, False, made.target)
    found = await get_user(runtime.database, int(made.target))
    assert (found["username"], found["role"], found["available"]) == ("alice", "admin", 50)
    (row,) = await acts(runtime)
    assert (row["action"], row["target"], row["before"]) == ("user.create", made.target, None)
    with pytest.raises(ActionConflict):
        await create_user(runtime.database, Admin(7), username="bob", ref="c-1")


async def test_ten_creations_at_once_with_one_reference_make_one_user(runtime: Runtime) -> None:
    made = await asyncio.gather(
        *[create_user(runtime.database, Admin(7), username="alice", points=5, ref="c-1") for _ in range(10)]
    )
    assert sorted(one.applied for one in made) == [False] * 9 + [True]
    assert len({one.target for one in made}) == 1
    async with runtime.database.read() as connection:
        assert await connection.scalar(select(func.count()).select_from(users)) == 1


async def test_ten_creations_at_once_make_ten_users(runtime: Runtime) -> None:
    made = await asyncio.gather(*[create_user(runtime.database, COMMAND_LINE, points=5) for _ in range(10)])
    assert len({one.target for one in made}) == 10
    assert len(await acts(runtime)) == 10


async def test_a_creation_that_fails_leaves_nothing(runtime: Runtime, make: Maker) -> None:
    await make.user(username="alice", user_id=5)
    for options in (
        {"username": "alice"},
        {"user_id": 5},
        {"username": " x"},
        {"user_id": 0},
        {"username": "bob", "points": ledger.MAX_POINTS + 1},
    ):
        with pytest.raises((InvalidParameter, UsernameTaken)):
            await create_user(runtime.database, COMMAND_LINE, **options)
    assert (await list_users(runtime.database, 1, UserFilters(), page=1, size=10))[1] == 1
    assert await acts(runtime) == []


# ------------------------------------------------------------------ corrections


async def test_a_correction_happens_once(runtime: Runtime, make: Maker) -> None:
    user = await make.user(points=100)
    results = await asyncio.gather(
        *[adjust(runtime.database, Admin(7), user.id, -60, reason="重复充值", ref="fix-1") for _ in range(10)]
    )
    assert sorted(result.applied for result in results) == [False] * 9 + [True]
    assert (await get_balance(runtime.database, user.id)).available == 40
    (row,) = await acts(runtime, target=str(user.id))
    assert (row["action"], row["reason"], row["ref"]) == ("user.adjust", "重复充值", "fix-1")
    assert (row["before"], row["after"]) == ({"balance": 100}, {"points": -60, "balance": 40})


async def test_a_repeated_correction_of_an_empty_account_is_no_error(runtime: Runtime, make: Maker) -> None:
    user = await make.user(points=10)
    for applied in (True, False):
        result = await adjust(runtime.database, Admin(7), user.id, -10, reason="x", ref="fix-1")
        assert (result.applied, result.after) == (applied, {"points": -10, "balance": 0})


async def test_a_reference_of_a_top_up_or_of_another_correction_is_refused(runtime: Runtime, make: Maker) -> None:
    user, other = await make.user(points=100), await make.user(points=100)
    await ledger.grant(runtime.database, user_id=user.id, points=5, ref="order-1")
    await adjust(runtime.database, Admin(7), user.id, 5, reason="x", ref="fix-1")
    for user_id, points, ref in ((user.id, 5, "order-1"), (other.id, 5, "fix-1"), (user.id, 6, "fix-1")):
        with pytest.raises(ActionConflict):
            await adjust(runtime.database, Admin(7), user_id, points, reason="x", ref=ref)
    assert (await get_balance(runtime.database, user.id)).available == 110
    assert (await get_balance(runtime.database, other.id)).available == 100


async def test_corrections_at_once_never_go_below_zero(runtime: Runtime, make: Maker) -> None:
    user = await make.user(points=100)
    results = await asyncio.gather(
        *[adjust(runtime.database, Admin(7), user.id, -30, reason="x", ref=f"fix-{n}") for n in range(8)],
        return_exceptions=True,
    )
    assert [type(result) for result in results].count(InsufficientPoints) == 5
    assert (await get_balance(runtime.database, user.id)).available == 10
    assert len(await acts(runtime)) == 3


@pytest.mark.parametrize("reason", ["", "  "])
async def test_a_correction_needs_a_reason(runtime: Runtime, make: Maker, reason: str) -> None:
    user = await make.user(points=10)
    with pytest.raises(InvalidParameter, match="reason"):
        await adjust(runtime.database, Admin(7), user.id, 5, reason=reason, ref="fix-1")
    assert (await get_balance(runtime.database, user.id)).available == 10


# ------------------------------------------------------------------ find


async def test_users_are_found(runtime: Runtime, make: Maker) -> None:
    alice, albert = await make.user(username="alice", points=5), await make.user(username="albert", admin=True)
    upper, nameless = await make.user(username="ALEX"), await make.user(username="a%l")
    await set_status(runtime.database, COMMAND_LINE, upper.id, "banned")

    async def found(**filters: Any) -> list[int]:
        rows, total = await list_users(runtime.database, 1, UserFilters(**filters), page=1, size=10)
        assert total == len(rows)
        return [row["id"] for row in rows]

    assert await found() == [nameless.id, upper.id, albert.id, alice.id]
    assert await found(name="al") == await found(name="ＡL") == [upper.id, albert.id, alice.id]
    assert await found(name="a%") == [nameless.id]
    assert await found(status="banned") == [upper.id]
    assert await found(name="alicex") == await found(name="_l") == []
    assert await found(role="admin") == await found(role="admin", name="al", user_id=albert.id) == [albert.id]
    assert await found(user_id=alice.id) == [alice.id]
    rows, total = await list_users(runtime.database, 1, UserFilters(), page=2, size=3)
    assert ([row["id"] for row in rows], total, rows[0]["available"]) == ([alice.id], 4, 5)
