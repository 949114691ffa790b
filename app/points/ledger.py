"""The only writer of points. Every function joins the caller's transaction; none commits.

An entry says what happened to `available` (its `points`) and to `held`, so that the account is the fold of its
entries. Money moves by one conditional UPDATE and its row count; then the entry copies its number and balance from
the account row, which this transaction has locked. The account row is the hottest lock: it is taken last, before
lots and entries, which it guards. Accounts without points that expire know nothing of lots.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BindParameter, Row, Update, bindparam, insert, select, update

from app.database import Connection, Database, UniqueViolation, insert_ignore, retry_on_conflict, utc_now
from app.errors import GatewayError, GrantConflict, InsufficientPoints, InvalidParameter
from app.points import lots
from app.tables import points_accounts as accounts
from app.tables import points_ledger as ledger
from app.tables import points_lots

MAX_POINTS = 2**53  # JavaScript reads whole numbers exactly up to here
MAX_REF_LENGTH = 128
MAX_REMARK_LENGTH = 255
MAX_EXPIRY = datetime(9999, 1, 1, tzinfo=UTC)  # told in local time, it must still be a date
RESERVED_REF_PREFIXES = ("expire:", "code:", "users-create:")  # numbered by this gateway itself: no top-up may take one


class AccountLimitExceeded(InvalidParameter):
    """The top-up would bring the account past MAX_POINTS. Nothing moved."""

    def __init__(self) -> None:
        super().__init__("points", "超出账户上限")


class LedgerInconsistency(GatewayError):
    """An account does not hold what its open tasks say it holds. The transaction is rolled back, nothing moves."""


async def deduct(connection: Connection, *, user_id: int, task_id: int, cost: int, remark: str) -> None:
    """Takes `cost` points for a task that is being stored. InsufficientPoints takes nothing.

    From here to the commit the user's account row is locked: their submits pass one after the other.
    """
    taken = await connection.execute(_TAKE_AT_ONCE, {"user": user_id, "cost": cost})
    if not taken.rowcount:
        await _deduct_with_lots(connection, user_id, task_id, cost)
    await _write(connection, user_id, "deduct", task_id=task_id, phase="open", points=-cost, held=cost, remark=remark)


async def lock_account(connection: Connection, user_id: int) -> None:
    """What `deduct` does to other submits of the user, where nothing is deducted. Makes the account if need be."""
    absent = insert_ignore(connection.dialect.name, accounts, "user_id")
    await connection.execute(absent.values(user_id=user_id, updated_at=utc_now()))


async def _deduct_with_lots(connection: Connection, user_id: int, task_id: int, cost: int) -> None:
    """The slow way, for too few points as well: what has lapsed goes first, then the lots pay, then the pool."""
    account = await _lock(connection, user_id)
    if account is None:
        raise InsufficientPoints(0, cost)
    available = account.available
    if account.next_expiry is not None:
        available -= sum(await expire_due_lots(connection, user_id, account.now))
    if available < cost:
        raise InsufficientPoints(available, cost)
    await lots.consume(connection, user_id, task_id, cost)
    await _apply(connection, _TAKE, user_id, cost)
    await lots.refresh_next_expiry(connection, user_id)


async def expire_due_lots(connection: Connection, user_id: int, now: datetime) -> list[int]:
    """Ends the user's lots whose time is over, each by one entry: the points of each. Its account must be locked."""
    ended = await lots.expired_lots(connection, user_id, now)
    for lot in ended:
        await lots.expire_lot(connection, lot.id, lot.remaining)
        await _apply(connection, _EXPIRE, user_id, lot.remaining)
        told = {"ref": f"expire:{lot.id}", "remark": "积分到期"}
        await _write(connection, user_id, "expire", points=-lot.remaining, held=0, **told)
    if ended:
        await lots.refresh_next_expiry(connection, user_id)
    return [lot.remaining for lot in ended]


@retry_on_conflict
async def expire_account(database: Database, user_id: int) -> list[int]:
    """Ends what has lapsed of one user: the points of each lot. Repeated or beside another, it finds nothing left."""
    async with database.begin() as connection:
        account = await _lock(connection, user_id)
        if account is None or account.next_expiry is None or account.next_expiry > account.now:
            return []
        return await expire_due_lots(connection, user_id, account.now)


async def settle(connection: Connection, *, user_id: int, task_id: int, cost: int) -> None:
    """The task completed: what was held is spent. 0 points move, and nothing in the lots."""
    await _apply(connection, _SPEND, user_id, cost)
    await _write(connection, user_id, "settle", task_id=task_id, phase="close", points=0, held=-cost)


async def refund(
    connection: Connection, *, user_id: int, task_id: int, cost: int, remark: str, grace_days: int
) -> None:
    """The task failed: what was held is available again, in the lots it came from or, where one lapsed, for a grace."""
    await _apply(connection, _GIVE_BACK, user_id, cost)
    await _write(connection, user_id, "refund", task_id=task_id, phase="close", points=cost, held=-cost, remark=remark)
    await lots.restore(connection, user_id, task_id, grace_days)


async def _lock(connection: Connection, user_id: int) -> Row[Any] | None:
    return (await connection.execute(_LOCKED, {"user": user_id})).one_or_none()


async def _apply(connection: Connection, statement: Update, user_id: int, cost: int) -> None:
    moved = await connection.execute(statement, {"user": user_id, "cost": cost})
    if not moved.rowcount:
        raise LedgerInconsistency(f"the account of user {user_id} has not the {cost} points that its entries say")


@retry_on_conflict
async def grant(
    database: Database,
    *,
    user_id: int,
    points: int,
    ref: str,
    remark: str = "",
    expires: datetime | None = None,
    is_internal: bool = False,
) -> tuple[bool, int]:
    """Tops a user up once per `ref`: (applied, balance). A known ref changes nothing and answers applied False.

    GrantConflict where the known ref was for another user, for other points or until another time. `is_internal` lets
    through what this gateway numbers itself.
    """
    if ref.startswith(RESERVED_REF_PREFIXES) and not is_internal:
        raise InvalidParameter("ref", f"不能以 {'、'.join(RESERVED_REF_PREFIXES)} 开头")
    try:
        async with database.begin() as connection:
            await grant_in_transaction(
                connection, user_id=user_id, points=points, ref=ref, remark=remark, expires=expires
            )
            return True, await balance_of(connection, user_id)
    except UniqueViolation as error:
        if "ref" not in error.text:
            raise
    except AccountLimitExceeded:  # perhaps by this very top-up
        if not await _is_known(database, ref):
            raise
    async with database.read() as connection:
        same = {"ref": ref, "user": user_id, "points": points, "expires": expires}
        if await connection.scalar(_SAME_GRANT, same) is None:
            raise GrantConflict
        return False, await balance_of(connection, user_id)


async def _is_known(database: Database, ref: str) -> bool:
    async with database.read() as connection:
        return await connection.scalar(_BY_REF, {"ref": ref}) is not None


async def grant_in_transaction(
    connection: Connection, *, user_id: int, points: int, ref: str, remark: str, expires: datetime | None = None
) -> None:
    """The grant itself; UniqueViolation where its `ref` is known. Points that expire get a lot of their own."""
    if not 0 < points <= MAX_POINTS:
        raise InvalidParameter("points", "须为正整数")
    if not ref or ref != ref.strip() or len(ref) > MAX_REF_LENGTH:
        raise InvalidParameter("ref", f"不能为空、首尾不能有空格且最多 {MAX_REF_LENGTH} 个字符")
    if len(remark) > MAX_REMARK_LENGTH:
        raise InvalidParameter("remark", f"最多 {MAX_REMARK_LENGTH} 个字符")
    await lock_account(connection, user_id)
    added = await connection.execute(_ADD, {"user": user_id, "cost": points})
    if not added.rowcount:
        raise AccountLimitExceeded
    await _write(connection, user_id, "grant", points=points, held=0, ref=ref, remark=remark)
    if expires is not None:
        await check_expiry(connection, expires)
        await lots.create_lot(connection, user_id, points, expires, ref=ref)
        await lots.refresh_next_expiry(connection, user_id)


async def check_expiry(connection: Connection, expires: datetime) -> None:
    """InvalidParameter for a time that is over, or too far away to be told."""
    if not (await connection.execute(_NOW)).scalar_one() < expires < MAX_EXPIRY:
        raise InvalidParameter("expires", "须晚于当前时间，早于 9999 年")


async def balance_of(connection: Connection, user_id: int) -> int:
    """Points that can be spent; 0 for a user who never had any."""
    return int(await connection.scalar(_BALANCE, {"user": user_id}) or 0)


async def _write(connection: Connection, user_id: int, kind: str, **columns: Any) -> None:
    blank = {"task_id": None, "phase": None, "ref": None, "remark": ""}
    await connection.execute(_ENTRY, {"user": user_id, "kind": kind, **blank, **columns})


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
    .where(_mine, accounts.c.granted <= MAX_POINTS - _cost)
    .values(available=accounts.c.available + _cost, granted=accounts.c.granted + _cost, **_next)
)
_LOCKED = select(accounts.c.available, accounts.c.next_expiry, utc_now().label("now")).where(_mine).with_for_update()
_NOW = select(utc_now())
_BALANCE = select(lots.spendable_points(_user))
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
