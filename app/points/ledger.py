"""The only writer of points. Every function joins the caller's transaction; none commits.

An entry says what happened to `available` (its `points`) and to `held`, so that the account is the fold of its
entries. Money moves by one conditional UPDATE and its row count; then the entry copies its number and balance from
the account row, which this transaction has locked. The account row is the hottest lock: it is taken last.
"""

from typing import Any

from sqlalchemy import BindParameter, Update, bindparam, insert, select, update

from app.database import DuplicateRow, Session, Sessions, insert_if_absent, repeat_on_conflict, utc_now
from app.errors import GatewayError, InsufficientPoints, InvalidParameter
from app.tables import points_accounts as accounts
from app.tables import points_ledger as ledger

MOST_POINTS = 2**53  # JavaScript reads whole numbers exactly up to here
LONGEST_REF = 128


class BooksDisagree(GatewayError):
    """An account does not hold what its open tasks say it holds. The transaction is rolled back, nothing moves."""


async def deduct(session: Session, *, user_id: int, task_id: int, cost: int, remark: str) -> None:
    """Takes `cost` points for a task that is being stored. InsufficientPoints takes nothing.

    From here to the commit the user's account row is locked: their submits pass one after the other.
    """
    taken = await session.execute(_TAKE, {"user": user_id, "cost": cost})
    if not taken.rowcount:
        raise InsufficientPoints(await balance_of(session, user_id), cost)
    await _write(session, user_id, "deduct", task_id=task_id, phase="open", points=-cost, held=cost, remark=remark)


async def settle(session: Session, *, user_id: int, task_id: int, cost: int) -> None:
    """The task completed: what was held is spent. 0 points move."""
    await _close(session, _SPEND, user_id, cost)
    await _write(session, user_id, "settle", task_id=task_id, phase="close", points=0, held=-cost)


async def refund(session: Session, *, user_id: int, task_id: int, cost: int, remark: str) -> None:
    """The task failed: what was held is available again."""
    await _close(session, _GIVE_BACK, user_id, cost)
    await _write(session, user_id, "refund", task_id=task_id, phase="close", points=cost, held=-cost, remark=remark)


async def _close(session: Session, statement: Update, user_id: int, cost: int) -> None:
    moved = await session.execute(statement, {"user": user_id, "cost": cost})
    if not moved.rowcount:
        raise BooksDisagree(f"user {user_id} does not hold {cost} points")


async def balance_of(session: Session, user_id: int) -> int:
    """Available points; 0 for a user who never had any."""
    return int(await session.scalar(_BALANCE, {"user": user_id}) or 0)


@repeat_on_conflict
async def grant(sessions: Sessions, *, user_id: int, points: int, ref: str, remark: str = "") -> tuple[bool, int]:
    """Tops a user up once per `ref`: (applied, balance). A known ref changes nothing and answers applied False."""
    if not 0 < points <= MOST_POINTS:
        raise InvalidParameter("points", "须为正整数")
    if not ref or ref != ref.strip() or len(ref) > LONGEST_REF:
        raise InvalidParameter("ref", f"不能为空、首尾不能有空格且最多 {LONGEST_REF} 个字符")
    try:
        async with sessions.begin() as session:
            absent = insert_if_absent(session.dialect.name, accounts, "user_id")
            await session.execute(absent.values(user_id=user_id, updated_at=utc_now()))
            added = await session.execute(_ADD, {"user": user_id, "cost": points})
            if not added.rowcount:
                raise InvalidParameter("points", "超出账户上限")
            await _write(session, user_id, "grant", points=points, held=0, ref=ref, remark=remark)
            return True, await balance_of(session, user_id)
    except DuplicateRow as error:
        if "ref" not in error.text:
            raise
    async with sessions.read() as session:
        return False, await balance_of(session, user_id)


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
_ADD = (
    update(accounts)
    .where(_mine, accounts.c.granted <= MOST_POINTS - _cost)
    .values(available=accounts.c.available + _cost, granted=accounts.c.granted + _cost, **_next)
)
_BALANCE = select(accounts.c.available).where(_mine)
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
