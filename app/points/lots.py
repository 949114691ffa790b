"""Lots: the part of an account's `available` that expires, the soonest first. What they leave is the pool.

Every function that writes joins the caller's transaction, which has locked the account row: that lock guards the lots,
too. The ledger alone moves points; this follows it. Whoever changes lots calls `follow` afterwards.
"""

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    BindParameter,
    ColumnElement,
    Row,
    ScalarSelect,
    bindparam,
    case,
    cast,
    func,
    insert,
    select,
    update,
)

from app.database import Connection, utc_now
from app.tables import points_accounts as accounts
from app.tables import points_lot_uses as uses
from app.tables import points_lots as lots


async def create_lot(connection: Connection, user_id: int, points: int, expires: datetime, **origin: Any) -> None:
    """Points that are in `available` already expire from now on. `origin` is `ref`, or `origin_lot_id`."""
    made = {"user_id": user_id, "granted": points, "remaining": points, "expires_at": expires, "created_at": utc_now()}
    await connection.execute(insert(lots).values(**made, **origin))


async def consume(connection: Connection, user_id: int, task_id: int, cost: int) -> None:
    """Takes up to `cost` from the lots, the soonest expiring first; whatever is left over comes from the pool.

    Lapsed lots must have been emptied before.
    """
    taken = []
    for lot in await connection.execute(_LIVE, {"user": user_id}):
        if not cost:
            break
        points = min(lot.remaining, cost)
        taken.append({"task": task_id, "lot": lot.id, "moved": points})
        cost -= points
    if taken:
        await connection.execute(_LESS, taken)
        await connection.execute(_USE, taken)


async def expired_lots(connection: Connection, user_id: int, now: datetime) -> list[Row[Any]]:
    """`id` and `remaining` of each lot whose time is over."""
    return list(await connection.execute(_LAPSED, {"user": user_id, "now": now}))


async def expire_lot(connection: Connection, lot_id: int, points: int) -> None:
    """What remained has expired."""
    await connection.execute(_EMPTY, {"lot": lot_id, "moved": points})


async def restore(connection: Connection, user_id: int, task_id: int, grace_days: int) -> None:
    """A task's points return to the lots they came from; in the place of a lapsed one comes a lot of grace."""
    taken = (await connection.execute(_TAKEN, {"task": task_id})).all()
    for use in taken:
        if use.expired or use.expires_at <= use.now:
            until = use.now + timedelta(days=grace_days)
            await create_lot(connection, user_id, use.points, until, origin_lot_id=use.lot_id)
        else:
            await connection.execute(_MORE, {"lot": use.lot_id, "moved": use.points})
    if taken:
        await refresh_next_expiry(connection, user_id)


async def refresh_next_expiry(connection: Connection, user_id: int) -> None:
    """Tells the account when the next of its lots is due: the only writer of `next_expiry`."""
    await connection.execute(_FOLLOW, {"user": user_id})


def spendable_points(user: BindParameter[int]) -> ScalarSelect[int]:
    """The user's `available` without what has lapsed and was not yet swept; NULL where there is no account."""
    over = (
        select(cast(func.coalesce(func.sum(lots.c.remaining), 0), BigInteger))
        .where(lots.c.user_id == user, lots.c.remaining > 0, lots.c.expires_at <= utc_now())
        .scalar_subquery()
    )
    is_sound = accounts.c.next_expiry.is_(None) | (accounts.c.next_expiry > utc_now())
    points = case((is_sound, accounts.c.available), else_=accounts.c.available - over)
    return select(points).where(accounts.c.user_id == user).scalar_subquery()


def next_expiry(user: BindParameter[int]) -> ScalarSelect[datetime]:
    """When the soonest expiring of the user's spendable points lapse; NULL where none does."""
    live = (lots.c.user_id == user) & (lots.c.remaining > 0) & (lots.c.expires_at > utc_now())
    return select(func.min(lots.c.expires_at)).where(live).scalar_subquery()


_user: BindParameter[int] = bindparam("user")
_moved: BindParameter[int] = bindparam("moved")
_this_lot: ColumnElement[bool] = lots.c.id == bindparam("lot")
_with_points = (lots.c.user_id == _user) & (lots.c.remaining > 0)
_soonest_first = (lots.c.expires_at, lots.c.id)

_LIVE = select(lots.c.id, lots.c.remaining).where(_with_points).order_by(*_soonest_first)
_LAPSED = _LIVE.where(lots.c.expires_at <= bindparam("now"))
_LESS = update(lots).where(_this_lot).values(remaining=lots.c.remaining - _moved)
_MORE = update(lots).where(_this_lot).values(remaining=lots.c.remaining + _moved)
_EMPTY = update(lots).where(_this_lot).values(remaining=lots.c.remaining - _moved, expired=lots.c.expired + _moved)
_USE = insert(uses).values(task_id=bindparam("task"), lot_id=bindparam("lot"), points=_moved)
_TAKEN = (
    select(uses.c.lot_id, uses.c.points, lots.c.expired, lots.c.expires_at, utc_now().label("now"))
    .join(lots, lots.c.id == uses.c.lot_id)
    .where(uses.c.task_id == bindparam("task"))
    .order_by(uses.c.lot_id)
)
_FOLLOW = (
    update(accounts)
    .where(accounts.c.user_id == _user)
    .values(next_expiry=select(func.min(lots.c.expires_at)).where(_with_points).scalar_subquery())
)
