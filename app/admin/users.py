"""What admins do with users: find, create, ban and unban them, change their role, and correct their points.

One admin always stays active.
"""

import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, bindparam, case, func, select, update

from app.accounts.log_in.usernames import username_key
from app.accounts.users import MAX_DRAWS, check_new_user, insert_user, raise_taken, write_status
from app.admin.actions import Action, ActionResult, Admin, Change, perform
from app.database import Connection, Database, PageQuery, TransactionConflict, UniqueViolation
from app.errors import ActionConflict, InvalidParameter, NotFound, Unavailable
from app.points import ledger
from app.points.lots import next_expiry, spendable_points
from app.tables import api_keys, points_accounts, tasks, users

MAX_KEYS_SHOWN = 100
LAST_CHARACTER = "\U0010ffff"


# ------------------------------------------------------------------ find and read


@dataclass(frozen=True, slots=True)
class UserFilters:
    """Filters of the list; None means any. `name` is the start of the username, in any case."""

    user_id: int | None = None
    name: str | None = None
    status: str | None = None
    role: str | None = None


async def list_users(
    database: Database, reader_id: int, filters: UserFilters, *, page: int, size: int
) -> tuple[list[dict[str, Any]], int]:
    """One page of users with their points, the newest ids first, and the number of all matching ones."""
    names = frozenset(name for name in _CONDITIONS if getattr(filters, name) is not None)
    values = {f"by_{name}": getattr(filters, name) for name in names}
    if filters.name is not None:
        values["by_name"] = username_key(filters.name)
        values["by_name_end"] = values["by_name"] + LAST_CHARACTER
    async with database.read_list(reader_id) as connection:
        return await _page_query(names).read(connection, values, page=page, size=size)


async def get_user(database: Database, user_id: int) -> dict[str, Any]:
    """The user with points, numbers of tasks, and the newest keys without secrets. Raises NotFound."""
    async with database.read() as connection:
        row = (await connection.execute(_USER, {"user": user_id})).one_or_none()
        if row is None:
            raise NotFound("用户不存在")
        counts = (await connection.execute(_TASK_COUNTS, {"user": user_id})).one()
        keys = (await connection.execute(_KEYS, {"user": user_id})).all()
        key_count = await connection.scalar(_KEY_COUNT, {"user": user_id})
    return dict(row._mapping) | {
        "tasks": {name: int(count or 0) for name, count in counts._mapping.items()},
        "keys": [dict(key._mapping) for key in keys],
        "key_count": int(key_count or 0),
    }


# ------------------------------------------------------------------ changes


async def create_user(
    database: Database,
    admin: Admin,
    *,
    user_id: int | None = None,
    username: str | None = None,
    role: str = "user",
    points: int = 0,
    reason: str = "",
    ref: str | None = None,
) -> ActionResult:
    """Creates a user with initial points; `target` of the result is the id. Raises InvalidParameter."""
    check_new_user(user_id, username)
    values = {"requestedId": user_id, "username": username, "role": role, "points": points}
    action = Action("user.create", "user", "", values, reason, ref)

    async def change(connection: Connection, draw: int) -> Change:
        new_id = await insert_user(connection, user_id, draw, username=username, role=role)
        if points:
            ref_of_start = f"users-create:{new_id}"
            await ledger.grant_in_transaction(
                connection, user_id=new_id, points=points, ref=ref_of_start, remark="开户赠送"
            )
        return Change(None, {"status": "active"}, target=str(new_id))

    for draw in range(MAX_DRAWS):
        try:
            return await perform(database, admin, action, functools.partial(change, draw=draw))
        except UniqueViolation as error:
            raise_taken(error, user_id)
    raise Unavailable


async def set_status(
    database: Database, admin: Admin, user_id: int, status: str, *, reason: str = "", ref: str | None = None
) -> ActionResult:
    """Bans the user (`banned`) or lets them in again (`active`). A ban ends all tokens and refuses all keys at once.

    Raises NotFound, and ActionConflict for the admin's own account or the last active admin.
    """

    async def change(connection: Connection) -> Change:
        user = await _lock_user(connection, admin, user_id, keeps_admin=status == "active")
        await write_status(connection, user_id, status)
        return Change({"status": user.status}, {"status": status})

    name = "user.ban" if status == "banned" else "user.unban"
    return await _perform(database, admin, Action(name, "user", str(user_id), {}, reason, ref), change)


async def set_role(
    database: Database, admin: Admin, user_id: int, role: str, *, reason: str = "", ref: str | None = None
) -> ActionResult:
    """Makes the user an admin or takes the role away. Raises like `set_status`."""

    async def change(connection: Connection) -> Change:
        user = await _lock_user(connection, admin, user_id, keeps_admin=role == "admin")
        await connection.execute(update(users).where(users.c.id == user_id).values(role=role))
        return Change({"role": user.role}, {})

    action = Action("user.role", "user", str(user_id), {"role": role}, reason, ref)
    return await _perform(database, admin, action, change)


async def adjust(database: Database, admin: Admin, user_id: int, points: int, *, reason: str, ref: str) -> ActionResult:
    """Corrects the user's points, once for each `ref`. `after` has `points` and `balance`.

    Raises NotFound, InsufficientPoints if the user has fewer points than are taken, and ActionConflict if `ref` was
    used for something else, also for a top-up.
    """
    if not reason.strip():
        raise InvalidParameter("reason", "不能为空")

    async def change(connection: Connection) -> Change:
        if await connection.scalar(_ROLE, {"user": user_id}) is None:
            raise NotFound("用户不存在")
        await ledger.adjust(connection, user_id=user_id, points=points, ref=ref, remark=reason)
        balance = await ledger.balance_of(connection, user_id)
        return Change({"balance": balance - points}, {"balance": balance})

    action = Action("user.adjust", "user", str(user_id), {"points": points}, reason, ref)
    return await _perform(database, admin, action, change)


async def _perform(
    database: Database, admin: Admin, action: Action, change: Callable[[Connection], Awaitable[Change]]
) -> ActionResult:
    try:
        return await perform(database, admin, action, change)
    except UniqueViolation as error:  # the ledger has the reference, from a top-up
        raise ActionConflict from error


async def _lock_user(connection: Connection, admin: Admin, user_id: int, *, keeps_admin: bool) -> Row[*tuple[Any, ...]]:
    """Locks the user's row. Without `keeps_admin`, an admin other than this user must remain active.

    Then it locks all active admins, in the order of the ids. So of two admins who ban each other, the second one waits
    for the first and finds itself banned.
    """
    if user_id == admin.user_id and not keeps_admin:
        raise ActionConflict("不能封禁自己，也不能取消自己的管理员身份")
    ids = {user_id}
    removes_admin = not keeps_admin and await connection.scalar(_ROLE, {"user": user_id}) == "admin"
    if removes_admin:
        ids |= set(await connection.scalars(_ACTIVE_ADMINS))
    locked = {row.id: row for row in await connection.execute(_LOCK, {"ids": sorted(ids)})}
    if user_id not in locked:
        raise NotFound("用户不存在")
    admins = {row.id for row in locked.values() if row.role == "admin" and row.status == "active"}
    if removes_admin and admins == {user_id}:
        raise ActionConflict("至少须保留一名可用的管理员，请先添加另一名")
    if not keeps_admin and not removes_admin and admins:
        raise TransactionConflict  # the user has become an admin since the role was read
    return locked[user_id]


# ------------------------------------------------------------------ statements

_user = users.c.id == bindparam("user")
_CONDITIONS: dict[str, ColumnElement[bool]] = {
    "user_id": users.c.id == bindparam("by_user_id"),
    # A range uses the index on every database. LIKE does not on SQLite.
    "name": (users.c.username_key >= bindparam("by_name")) & (users.c.username_key < bindparam("by_name_end")),
    "status": users.c.status == bindparam("by_status"),
    "role": users.c.role == bindparam("by_role"),
}
_POINTS = (
    func.coalesce(spendable_points(), 0).label("available"),
    func.coalesce(points_accounts.c.held, 0).label("held"),
)
_COLUMNS = (users.c.id, users.c.username, users.c.role, users.c.status, users.c.created_at, *_POINTS)
_WITH_ACCOUNT = users.outerjoin(points_accounts, points_accounts.c.user_id == users.c.id)


@functools.cache
def _page_query(names: frozenset[str]) -> PageQuery:
    matching = select(users.c.id).where(*(_CONDITIONS[name] for name in sorted(names)))
    shown = select(*_COLUMNS).select_from(_WITH_ACCOUNT)
    return PageQuery(shown, users.c.id, matching=matching, order=(users.c.id.desc(),))


_USER = (
    select(
        *_COLUMNS,
        users.c.password_hash.is_not(None).label("has_password"),
        users.c.totp_secret.is_not(None).label("has_totp"),
        next_expiry().label("expires"),
        *(func.coalesce(points_accounts.c[name], 0).label(name) for name in ("granted", "spent", "expired")),
    )
    .select_from(_WITH_ACCOUNT)
    .where(_user)
)
# From one index alone, however many tasks the user has.
_TASK_COUNTS = select(
    func.sum(case((tasks.c.completed_at.is_(None), 1), else_=0)).label("running"),
    func.sum(case((tasks.c.completed_at.is_not(None) & tasks.c.error_code.is_(None), 1), else_=0)).label("completed"),
    func.sum(case((tasks.c.completed_at.is_not(None) & tasks.c.error_code.is_not(None), 1), else_=0)).label("failed"),
).where(tasks.c.user_id == bindparam("user"))
_KEYS = (
    select(
        api_keys.c.id,
        api_keys.c.prefix,
        api_keys.c.name,
        api_keys.c.scopes,
        api_keys.c.expires_at,
        api_keys.c.last_used_at,
        api_keys.c.revoked_at,
        api_keys.c.created_at,
    )
    .where(api_keys.c.user_id == bindparam("user"))
    .order_by(api_keys.c.id.desc())
    .limit(MAX_KEYS_SHOWN)
)
_KEY_COUNT = select(func.count()).select_from(api_keys).where(api_keys.c.user_id == bindparam("user"))
_ROLE = select(users.c.role).where(_user)
_ACTIVE_ADMINS = select(users.c.id).where(users.c.role == "admin", users.c.status == "active")
_LOCK = (
    select(users.c.id, users.c.role, users.c.status)
    .where(users.c.id.in_(bindparam("ids", expanding=True)))
    .order_by(users.c.id)
    .with_for_update()
)
