"""Lots hold the part of an account's `available` that expires. The rest of `available` never expires.

Functions that write join the caller's transaction. The caller must have locked the account row, which also guards the
lots. Only `ledger.py` calls these functions; after a change it calls `refresh_next_expiry`.
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
    """Adds a lot for points that are already in `available`. `origin` is `ref` or `origin_lot_id`."""
    row = {"user_id": user_id, "granted": points, "remaining": points, "expires_at": expires, "created_at": utc_now()}
    await connection.execute(insert(lots).values(**row, **origin))


async def consume(connection: Connection, user_id: int, task_id: int, cost: int) -> None:
    """Consumes up to `cost` points from the lots, in the order of their expiry. The rest has no lot.

    The caller must have expired the due lots before. An adjustment passes the id of its entry as -id for `task_id`.
    """
    lot_uses = []
    for lot in await connection.execute(_LOTS_WITH_POINTS, {"user": user_id}):
        if not cost:
            break
        points = min(lot.remaining, cost)
        lot_uses.append({"task": task_id, "lot": lot.id, "amount": points})
        cost -= points
    if lot_uses:
        await connection.execute(_DECREASE, lot_uses)
        await connection.execute(_RECORD_USE, lot_uses)


async def expired_lots(connection: Connection, user_id: int, now: datetime) -> list[Row[Any]]:
    """`id` and `remaining` of each lot that has points and is past its expiry."""
    return list(await connection.execute(_EXPIRED_LOTS, {"user": user_id, "now": now}))


async def expire_lot(connection: Connection, lot_id: int, points: int) -> None:
    """Moves `points` of the lot from `remaining` to `expired`."""
    await connection.execute(_EXPIRE, {"lot": lot_id, "amount": points})


async def restore(connection: Connection, user_id: int, task_id: int, grace_days: int) -> None:
    """Returns a task's points to their lots. In place of an expired lot it creates a lot that lasts `grace_days`."""
    lot_uses = (await connection.execute(_USES_OF_TASK, {"task": task_id})).all()
    for use in lot_uses:
        if use.expired or use.expires_at <= use.now:
            expires = use.now + timedelta(days=grace_days)
            await create_lot(connection, user_id, use.points, expires, origin_lot_id=use.lot_id)
        else:
            await connection.execute(_INCREASE, {"lot": use.lot_id, "amount": use.points})
    if lot_uses:
        await refresh_next_expiry(connection, user_id)


async def refresh_next_expiry(connection: Connection, user_id: int) -> None:
    """Sets the account's `next_expiry`. No other function writes it."""
    await connection.execute(_REFRESH_NEXT_EXPIRY, {"user": user_id})


def spendable_points() -> ColumnElement[int]:
    """Of an account in the query: `available` minus the points of lots that are due but not yet expired."""
    due_points = (
        select(cast(func.coalesce(func.sum(lots.c.remaining), 0), BigInteger))
        .where(lots.c.user_id == accounts.c.user_id, lots.c.remaining > 0, lots.c.expires_at <= utc_now())
        .correlate(accounts)
        .scalar_subquery()
    )
    is_up_to_date = accounts.c.next_expiry.is_(None) | (accounts.c.next_expiry > utc_now())
    return case((is_up_to_date, accounts.c.available), else_=accounts.c.available - due_points)


def next_expiry() -> ScalarSelect[datetime]:
    """Of an account in the query: the earliest expiry of its spendable points. NULL if none of them expires."""
    is_live = (lots.c.user_id == accounts.c.user_id) & (lots.c.remaining > 0) & (lots.c.expires_at > utc_now())
    return select(func.min(lots.c.expires_at)).where(is_live).correlate(accounts).scalar_subquery()


_user: BindParameter[int] = bindparam("user")
_amount: BindParameter[int] = bindparam("amount")
_is_lot: ColumnElement[bool] = lots.c.id == bindparam("lot")
_has_points = (lots.c.user_id == _user) & (lots.c.remaining > 0)

_LOTS_WITH_POINTS = select(lots.c.id, lots.c.remaining).where(_has_points).order_by(lots.c.expires_at, lots.c.id)
_EXPIRED_LOTS = _LOTS_WITH_POINTS.where(lots.c.expires_at <= bindparam("now"))
_DECREASE = update(lots).where(_is_lot).values(remaining=lots.c.remaining - _amount)
_INCREASE = update(lots).where(_is_lot).values(remaining=lots.c.remaining + _amount)
_EXPIRE = update(lots).where(_is_lot).values(remaining=lots.c.remaining - _amount, expired=lots.c.expired + _amount)
_RECORD_USE = insert(uses).values(task_id=bindparam("task"), lot_id=bindparam("lot"), points=_amount)
_USES_OF_TASK = (
    select(uses.c.lot_id, uses.c.points, lots.c.expired, lots.c.expires_at, utc_now().label("now"))
    .join(lots, lots.c.id == uses.c.lot_id)
    .where(uses.c.task_id == bindparam("task"))
    .order_by(uses.c.lot_id)
)
_REFRESH_NEXT_EXPIRY = (
    update(accounts)
    .where(accounts.c.user_id == _user)
    .values(next_expiry=select(func.min(lots.c.expires_at)).where(_has_points).scalar_subquery())
)
