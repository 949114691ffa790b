"""The ledger: the only writer of points.

Functions that take a Connection join its transaction and never commit. An entry holds the change of `available` (its
`points`) and of `held`, so an account is the sum of its entries. Points move by one conditional UPDATE of the account
and its row count. The UPDATE locks the row; then the entry copies its `seq` and its balance from there.

The account row is the most contended lock. It is taken after the task or code, and before its lots and entries.
"""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BindParameter, ColumnElement, Row, Update, bindparam, insert, select, update

from app.database import Connection, Database, UniqueViolation, insert_ignore, retry_on_conflict, utc_now
from app.errors import GatewayError, GrantConflict, InsufficientPoints, InvalidParameter
from app.points import lots
from app.tables import points_accounts as accounts
from app.tables import points_ledger as ledger
from app.tables import points_lots

MAX_POINTS = 2**53  # JavaScript reads whole numbers exactly up to here
MAX_REF_LENGTH = 128
MAX_REMARK_LENGTH = 255
MAX_EXPIRY = datetime(9999, 1, 1, tzinfo=UTC)  # in any time zone it is still a valid date
RESERVED_REF_PREFIXES = ("expire:", "code:", "users-create:", "signup:")  # references that the gateway itself creates


class AccountLimitExceeded(InvalidParameter):
    """The top-up would raise the granted points of the account above MAX_POINTS. Nothing changed."""

    def __init__(self) -> None:
        super().__init__("points", "超出账户上限")


class LedgerInconsistency(GatewayError):
    """An account has fewer points than its entries say. The transaction rolls back, and nothing changes."""


async def deduct(connection: Connection, *, user_id: int, task_id: int, cost: int, remark: str) -> None:
    """Moves `cost` points from `available` to `held` for a new task. Raises InsufficientPoints.

    It locks the account row until the commit, so the submits of one user run one after the other.
    """
    updated = await connection.execute(_HOLD_WITHOUT_LOTS, {"user": user_id, "cost": cost})
    if not updated.rowcount:
        await _deduct_with_lots(connection, user_id, task_id, cost)
    await _write(connection, user_id, "deduct", task_id=task_id, phase="open", points=-cost, held=cost, remark=remark)


async def lock_account(connection: Connection, user_id: int) -> None:
    """Locks the account row as `deduct` does, and creates it if needed."""
    statement = insert_ignore(connection.dialect.name, accounts, "user_id")
    await connection.execute(statement.values(user_id=user_id, updated_at=utc_now()))


async def _deduct_with_lots(connection: Connection, user_id: int, task_id: int, cost: int) -> None:
    """The slow path: expires due lots, then consumes lots. It also decides whether the points are too few."""
    await _lock_points(connection, user_id, cost)
    await lots.consume(connection, user_id, task_id, cost)
    await _apply(connection, _HOLD, user_id, cost)
    await lots.refresh_next_expiry(connection, user_id)


async def _lock_points(connection: Connection, user_id: int, cost: int) -> None:
    """Locks the account and expires its due lots. Raises InsufficientPoints if fewer than `cost` points are left."""
    account = await _lock(connection, user_id)
    available = 0 if account is None else account.available
    if account is not None and account.next_expiry is not None:
        available -= sum(await expire_due_lots(connection, user_id, account.now))
    if account is None or available < cost:
        raise InsufficientPoints(available, cost)


async def expire_due_lots(connection: Connection, user_id: int, now: datetime) -> list[int]:
    """Expires the user's due lots, with one entry per lot. Returns the points of each lot.

    The caller must have locked the account.
    """
    due_lots = await lots.expired_lots(connection, user_id, now)
    for lot in due_lots:
        await lots.expire_lot(connection, lot.id, lot.remaining)
        await _apply(connection, _EXPIRE, user_id, lot.remaining)
        text = {"ref": f"expire:{lot.id}", "remark": "积分到期"}
        await _write(connection, user_id, "expire", points=-lot.remaining, held=0, **text)
    if due_lots:
        await lots.refresh_next_expiry(connection, user_id)
    return [lot.remaining for lot in due_lots]


@retry_on_conflict
async def expire_account(database: Database, user_id: int) -> list[int]:
    """Expires the due lots of one user and returns the points of each. A second call finds nothing."""
    async with database.begin() as connection:
        account = await _lock(connection, user_id)
        if account is None or account.next_expiry is None or account.next_expiry > account.now:
            return []
        return await expire_due_lots(connection, user_id, account.now)


async def settle(connection: Connection, *, user_id: int, task_id: int, cost: int) -> None:
    """Moves the held points of a completed task to `spent`. `available` and the lots do not change."""
    await _apply(connection, _SPEND, user_id, cost)
    await _write(connection, user_id, "settle", task_id=task_id, phase="close", points=0, held=-cost)


async def refund(
    connection: Connection, *, user_id: int, task_id: int, cost: int, remark: str, grace_days: int
) -> None:
    """Moves the held points of a failed task back to `available` and to their lots.

    Points of an expired lot go to a new lot that lasts `grace_days`.
    """
    await _apply(connection, _REFUND, user_id, cost)
    await _write(connection, user_id, "refund", task_id=task_id, phase="close", points=cost, held=-cost, remark=remark)
    await lots.restore(connection, user_id, task_id, grace_days)


async def _lock(connection: Connection, user_id: int) -> Row[Any] | None:
    return (await connection.execute(_LOCK, {"user": user_id})).one_or_none()


async def _apply(connection: Connection, statement: Update, user_id: int, cost: int) -> None:
    updated = await connection.execute(statement, {"user": user_id, "cost": cost})
    if not updated.rowcount:
        raise LedgerInconsistency(f"the account of user {user_id} lacks the {cost} points that its entries hold")


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
    record: Callable[[Connection], Awaitable[None]] | None = None,
) -> tuple[bool, int]:
    """Grants points to a user once per `ref`. Returns (applied, balance); `applied` is False for a known `ref`.

    Raises GrantConflict if the known `ref` was for another user, other points or another expiry. Only the gateway
    itself (`is_internal`) may use a reserved prefix. `record` writes more in the transaction that applies the grant.
    """
    if not is_internal:
        _refuse_reserved(ref)
    try:
        async with database.begin() as connection:
            await grant_in_transaction(
                connection, user_id=user_id, points=points, ref=ref, remark=remark, expires=expires
            )
            if record is not None:
                await record(connection)
            return True, await balance_of(connection, user_id)
    except UniqueViolation as error:
        if "ref" not in error.text:
            raise
    except AccountLimitExceeded:  # an earlier request with this `ref` may have used up the limit
        if not await _ref_exists(database, ref):
            raise
    async with database.read() as connection:
        values = {"ref": ref, "user": user_id, "points": points, "expires": expires}
        if await connection.scalar(_SAME_GRANT, values) is None:
            raise GrantConflict
        return False, await balance_of(connection, user_id)


async def _ref_exists(database: Database, ref: str) -> bool:
    async with database.read() as connection:
        return await connection.scalar(_BY_REF, {"ref": ref}) is not None


async def grant_in_transaction(
    connection: Connection, *, user_id: int, points: int, ref: str, remark: str, expires: datetime | None = None
) -> None:
    """Grants points. Raises UniqueViolation for a known `ref`. Points with an expiry get a lot of their own."""
    if not 0 < points <= MAX_POINTS:
        raise InvalidParameter("points", "须为正整数")
    await _add(connection, user_id, "grant", points, ref, remark)
    if expires is not None:
        await check_expiry(connection, expires)
        await lots.create_lot(connection, user_id, points, expires, ref=ref)
        await lots.refresh_next_expiry(connection, user_id)


async def adjust(connection: Connection, *, user_id: int, points: int, ref: str, remark: str) -> None:
    """Corrects the account by `points`, which may be negative. Raises UniqueViolation for a known `ref`.

    Added points never expire. Points are taken as a task takes them: first those that expire soonest. The lots name the
    entry in place of a task, as -id. Raises InsufficientPoints if fewer points are available.
    """
    if not 0 < abs(points) <= MAX_POINTS:
        raise InvalidParameter("points", "须为非零整数")
    _refuse_reserved(ref)
    if points > 0:
        await _add(connection, user_id, "adjust", points, ref, remark)
        return
    _check_texts(ref, remark)
    await _lock_points(connection, user_id, -points)
    await _apply(connection, _TAKE_BACK, user_id, -points)
    await _write(connection, user_id, "adjust", points=points, held=0, ref=ref, remark=remark)
    entry_id = (await connection.execute(_BY_REF, {"ref": ref})).scalar_one()
    await lots.consume(connection, user_id, -entry_id, -points)
    await lots.refresh_next_expiry(connection, user_id)


async def _add(connection: Connection, user_id: int, kind: str, points: int, ref: str, remark: str) -> None:
    _check_texts(ref, remark)
    await lock_account(connection, user_id)
    updated = await connection.execute(_GRANT, {"user": user_id, "cost": points})
    if not updated.rowcount:
        raise AccountLimitExceeded
    await _write(connection, user_id, kind, points=points, held=0, ref=ref, remark=remark)


def _refuse_reserved(ref: str) -> None:
    if ref.startswith(RESERVED_REF_PREFIXES):
        raise InvalidParameter("ref", f"不能以 {'、'.join(RESERVED_REF_PREFIXES)} 开头")


def _check_texts(ref: str, remark: str) -> None:
    if not ref or ref != ref.strip() or len(ref) > MAX_REF_LENGTH:
        raise InvalidParameter("ref", f"不能为空、首尾不能有空格且最多 {MAX_REF_LENGTH} 个字符")
    if len(remark) > MAX_REMARK_LENGTH:
        raise InvalidParameter("remark", f"最多 {MAX_REMARK_LENGTH} 个字符")


async def check_expiry(connection: Connection, expires: datetime) -> None:
    """Raises InvalidParameter for a time in the past, or after MAX_EXPIRY."""
    if not (await connection.execute(_NOW)).scalar_one() < expires < MAX_EXPIRY:
        raise InvalidParameter("expires", "须晚于当前时间，早于 9999 年")


async def balance_of(connection: Connection, user_id: int) -> int:
    """The points that the user can spend. It is 0 for a user who never had points."""
    return int(await connection.scalar(_BALANCE, {"user": user_id}) or 0)


async def _write(connection: Connection, user_id: int, kind: str, **columns: Any) -> None:
    defaults = {"task_id": None, "phase": None, "ref": None, "remark": ""}
    await connection.execute(_INSERT_ENTRY, {"user": user_id, "kind": kind, **defaults, **columns})


_user: BindParameter[int] = bindparam("user")
_cost: BindParameter[int] = bindparam("cost")
_mine = accounts.c.user_id == _user
_next = {"seq": accounts.c.seq + 1, "updated_at": utc_now()}


def _move(from_: ColumnElement[int], **changes: ColumnElement[int]) -> Update:
    """The statement that changes an account if `from_` holds the points."""
    return update(accounts).where(_mine, from_ >= _cost).values(**changes, **_next)


_available, _held, _granted = accounts.c.available, accounts.c.held, accounts.c.granted
_HOLD = _move(_available, available=_available - _cost, held=_held + _cost)
_HOLD_WITHOUT_LOTS = _HOLD.where(accounts.c.next_expiry.is_(None))
_SPEND = _move(_held, held=_held - _cost, spent=accounts.c.spent + _cost)
_REFUND = _move(_held, held=_held - _cost, available=_available + _cost)
_EXPIRE = _move(_available, available=_available - _cost, expired=accounts.c.expired + _cost)
_GRANT = _move(MAX_POINTS - _granted, available=_available + _cost, granted=_granted + _cost)
_TAKE_BACK = _move(_available, available=_available - _cost, granted=_granted - _cost)
_LOCK = select(accounts.c.available, accounts.c.next_expiry, utc_now().label("now")).where(_mine).with_for_update()
_NOW = select(utc_now())
_BALANCE = select(lots.spendable_points()).where(_mine)
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
_INSERT_ENTRY = insert(ledger).from_select(
    ["user_id", "seq", "kind", "points", "held", "balance_after", "task_id", "phase", "ref", "remark", "created_at"],
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
