"""The only writer of points. Every function joins the caller's transaction; none commits.

An entry says what happened to `available` (its `points`) and to `held`, so that the account is the fold of its
entries. Money moves by one conditional UPDATE and its row count; then the entry copies its number and balance from
the account row, which this transaction has locked. The account row is the hottest lock: it is taken last, before
lots and entries, which it guards. Accounts without points that expire know nothing of lots.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BindParameter, Row, Update, bindparam, insert, select, update

from app.database import DuplicateRow, Session, Sessions, insert_if_absent, repeat_on_conflict, utc_now
from app.errors import GatewayError, GrantConflict, InsufficientPoints, InvalidParameter
from app.points import lots
from app.tables import points_accounts as accounts
from app.tables import points_ledger as ledger
from app.tables import points_lots

MOST_POINTS = 2**53  # JavaScript reads whole numbers exactly up to here
LONGEST_REF = 128
LONGEST_REMARK = 255
LATEST_EXPIRY = datetime(9999, 1, 1, tzinfo=UTC)  # told in local time, it must still be a date
OWN_REFS = ("expire:", "code:", "users-create:")  # numbered by this gateway itself: no top-up may take one


class AccountFull(InvalidParameter):
    """The top-up would bring the account past MOST_POINTS. Nothing moved."""

    def __init__(self) -> None:
        super().__init__("points", "超出账户上限")


class BooksDisagree(GatewayError):
    """An account does not hold what its open tasks say it holds. The transaction is rolled back, nothing moves."""


async def deduct(session: Session, *, user_id: int, task_id: int, cost: int, remark: str) -> None:
    """Takes `cost` points for a task that is being stored. InsufficientPoints takes nothing.

    From here to the commit the user's account row is locked: their submits pass one after the other.
    """
    taken = await session.execute(_TAKE_AT_ONCE, {"user": user_id, "cost": cost})
    if not taken.rowcount:
        await _deduct_with_lots(session, user_id, task_id, cost)
    await _write(session, user_id, "deduct", task_id=task_id, phase="open", points=-cost, held=cost, remark=remark)


async def lock_account(session: Session, user_id: int) -> None:
    """What `deduct` does to other submits of the user, where nothing is deducted. Makes the account if need be."""
    absent = insert_if_absent(session.dialect.name, accounts, "user_id")
    await session.execute(absent.values(user_id=user_id, updated_at=utc_now()))


async def _deduct_with_lots(session: Session, user_id: int, task_id: int, cost: int) -> None:
    """The slow way, for too few points as well: what has lapsed goes first, then the lots pay, then the pool."""
    account = await _lock(session, user_id)
    if account is None:
        raise InsufficientPoints(0, cost)
    available = account.available
    if account.next_expiry is not None:
        available -= sum(await expire_lapsed(session, user_id, account.now))
    if available < cost:
        raise InsufficientPoints(available, cost)
    await lots.consume(session, user_id, task_id, cost)
    await _apply(session, _TAKE, user_id, cost)
    await lots.refresh_next_expiry(session, user_id)


async def expire_lapsed(session: Session, user_id: int, now: datetime) -> list[int]:
    """Ends the user's lots whose time is over, each by one entry: the points of each. Its account must be locked."""
    ended = await lots.lapsed(session, user_id, now)
    for lot in ended:
        await lots.expire_lot(session, lot.id, lot.remaining)
        await _apply(session, _EXPIRE, user_id, lot.remaining)
        told = {"ref": f"expire:{lot.id}", "remark": "积分到期"}
        await _write(session, user_id, "expire", points=-lot.remaining, held=0, **told)
    if ended:
        await lots.refresh_next_expiry(session, user_id)
    return [lot.remaining for lot in ended]


@repeat_on_conflict
async def expire_account(sessions: Sessions, user_id: int) -> list[int]:
    """Ends what has lapsed of one user: the points of each lot. Repeated or beside another, it finds nothing left."""
    async with sessions.begin() as session:
        account = await _lock(session, user_id)
        if account is None or account.next_expiry is None or account.next_expiry > account.now:
            return []
        return await expire_lapsed(session, user_id, account.now)


async def settle(session: Session, *, user_id: int, task_id: int, cost: int) -> None:
    """The task completed: what was held is spent. 0 points move, and nothing in the lots."""
    await _apply(session, _SPEND, user_id, cost)
    await _write(session, user_id, "settle", task_id=task_id, phase="close", points=0, held=-cost)


async def refund(session: Session, *, user_id: int, task_id: int, cost: int, remark: str, grace_days: int) -> None:
    """The task failed: what was held is available again, in the lots it came from or, where one lapsed, for a grace."""
    await _apply(session, _GIVE_BACK, user_id, cost)
    await _write(session, user_id, "refund", task_id=task_id, phase="close", points=cost, held=-cost, remark=remark)
    await lots.restore(session, user_id, task_id, grace_days)


async def _lock(session: Session, user_id: int) -> Row[Any] | None:
    return (await session.execute(_LOCKED, {"user": user_id})).one_or_none()


async def _apply(session: Session, statement: Update, user_id: int, cost: int) -> None:
    moved = await session.execute(statement, {"user": user_id, "cost": cost})
    if not moved.rowcount:
        raise BooksDisagree(f"the account of user {user_id} has not the {cost} points that its entries say")


@repeat_on_conflict
async def grant(
    sessions: Sessions,
    *,
    user_id: int,
    points: int,
    ref: str,
    remark: str = "",
    expires: datetime | None = None,
    is_own: bool = False,
) -> tuple[bool, int]:
    """Tops a user up once per `ref`: (applied, balance). A known ref changes nothing and answers applied False.

    GrantConflict where the known ref was for another user, for other points or until another time. `is_own` lets
    through what this gateway numbers itself.
    """
    if ref.startswith(OWN_REFS) and not is_own:
        raise InvalidParameter("ref", f"不能以 {'、'.join(OWN_REFS)} 开头")
    try:
        async with sessions.begin() as session:
            await grant_in_transaction(session, user_id=user_id, points=points, ref=ref, remark=remark, expires=expires)
            return True, await balance_of(session, user_id)
    except DuplicateRow as error:
        if "ref" not in error.text:
            raise
    except AccountFull:  # perhaps by this very top-up
        if not await _is_known(sessions, ref):
            raise
    async with sessions.read() as session:
        same = {"ref": ref, "user": user_id, "points": points, "expires": expires}
        if await session.scalar(_SAME_GRANT, same) is None:
            raise GrantConflict
        return False, await balance_of(session, user_id)


async def _is_known(sessions: Sessions, ref: str) -> bool:
    async with sessions.read() as session:
        return await session.scalar(_BY_REF, {"ref": ref}) is not None


async def grant_in_transaction(
    session: Session, *, user_id: int, points: int, ref: str, remark: str, expires: datetime | None = None
) -> None:
    """The grant itself; DuplicateRow where its `ref` is known. Points that expire get a lot of their own."""
    if not 0 < points <= MOST_POINTS:
        raise InvalidParameter("points", "须为正整数")
    if not ref or ref != ref.strip() or len(ref) > LONGEST_REF:
        raise InvalidParameter("ref", f"不能为空、首尾不能有空格且最多 {LONGEST_REF} 个字符")
    if len(remark) > LONGEST_REMARK:
        raise InvalidParameter("remark", f"最多 {LONGEST_REMARK} 个字符")
    await lock_account(session, user_id)
    added = await session.execute(_ADD, {"user": user_id, "cost": points})
    if not added.rowcount:
        raise AccountFull
    await _write(session, user_id, "grant", points=points, held=0, ref=ref, remark=remark)
    if expires is not None:
        await check_expiry(session, expires)
        await lots.open_lot(session, user_id, points, expires, ref=ref)
        await lots.refresh_next_expiry(session, user_id)


async def check_expiry(session: Session, expires: datetime) -> None:
    """InvalidParameter for a time that is over, or too far away to be told."""
    if not (await session.execute(_NOW)).scalar_one() < expires < LATEST_EXPIRY:
        raise InvalidParameter("expires", "须晚于当前时间，早于 9999 年")


async def balance_of(session: Session, user_id: int) -> int:
    """Points that can be spent; 0 for a user who never had any."""
    return int(await session.scalar(_BALANCE, {"user": user_id}) or 0)


async def _write(session: Session, user_id: int, kind: str, **columns: Any) -> None:
    blank = {"task_id": None, "phase": None, "ref": None, "remark": ""}
    await session.execute(_ENTRY, {"user": user_id, "kind": kind, **blank, **columns})


_user: BindParameter[int] = bindparam("user")
_cost: BindParameter[int] = bindparam("cost")
_mine = accounts.c.user_id == _user
_next = {"seq": accounts.c.seq + 1, "updated_at": utc_now()}

_TAKE = (
    update(accounts)
    .where(_mine, accounts.c.available >= _cost)
    .values(available=accounts.c.available - _cost, held=accounts.c.held + _cost, **_next)
)
_TAKE_AT_ONCE = _TAKE.where(accounts.c.next_expiry.is_(None))
_SPEND = (
    update(accounts)
    .where(_mine, accounts.c.held >= _cost)
    .values(held=accounts.c.held - _cost, spent=accounts.c.spent + _cost, **_next)
)
_GIVE_BACK = (
    update(accounts)
    .where(_mine, accounts.c.held >= _cost)
    .values(held=accounts.c.held - _cost, available=accounts.c.available + _cost, **_next)
)
_EXPIRE = (
    update(accounts)
    .where(_mine, accounts.c.available >= _cost)
    .values(available=accounts.c.available - _cost, expired=accounts.c.expired + _cost, **_next)
)
_ADD = (
    update(accounts)
    .where(_mine, accounts.c.granted <= MOST_POINTS - _cost)
    .values(available=accounts.c.available + _cost, granted=accounts.c.granted + _cost, **_next)
)
_LOCKED = select(accounts.c.available, accounts.c.next_expiry, utc_now().label("now")).where(_mine).with_for_update()
_NOW = select(utc_now())
_BALANCE = select(lots.spendable(_user))
_BY_REF = select(ledger.c.id).where(ledger.c.ref == bindparam("ref"))
_SAME_GRANT = (
    select(ledger.c.id)
    .outerjoin(points_lots, points_lots.c.ref == ledger.c.ref)
    .where(
        ledger.c.ref == bindparam("ref"),
        ledger.c.kind == "grant",
        ledger.c.user_id == _user,
        ledger.c.points == bindparam("points"),
        points_lots.c.expires_at.is_not_distinct_from(bindparam("expires")),
    )
)
_ENTRY = insert(ledger).from_select(
    [
        "user_id",
        "seq",
        "kind",
        "points",
        "held",
        "balance_after",
        "task_id",
        "phase",
        "ref",
        "remark",
        "created_at",
    ],
    select(
        accounts.c.user_id,
        accounts.c.seq,
        bindparam("kind"),
        bindparam("points"),
        bindparam("held"),
        accounts.c.available,
        bindparam("task_id"),
        bindparam("phase"),
        bindparam("ref"),
        bindparam("remark"),
        utc_now(),
    ).where(_mine),
)
