"""What admins changed: one row for each act, written in the transaction of the change. Rows are never changed.

An act with a reference is done once. Who repeats it reads the result of the first time.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Row, bindparam, insert, select

from app.database import Connection, Database, UniqueViolation, retry_on_conflict, utc_now
from app.errors import ActionConflict, GatewayError, InvalidParameter
from app.tables import admin_actions

MAX_REF_LENGTH = 128
MAX_REASON_LENGTH = 255


@dataclass(frozen=True, slots=True)
class Admin:
    """Who acts: an admin who calls the API, or the command line, whose `user_id` is None."""

    user_id: int | None = None
    request_id: str = ""


COMMAND_LINE = Admin()


@dataclass(frozen=True, slots=True)
class Action:
    """What is to be done: `name` such as `user.ban`, on the target of `target_type` with the id or name `target`.

    `values` are what the admin asks for, such as the points of an adjustment. They are a part of `after`.
    """

    name: str
    target_type: str
    target: str
    values: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    ref: str | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """What a change found and what it left behind, as JSON values without secrets."""

    before: dict[str, Any] | None
    after: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ActionResult:
    """`applied` is False if an earlier request with this reference did it. `after` is what that one left behind."""

    applied: bool
    after: dict[str, Any]


async def perform(
    database: Database, admin: Admin, action: Action, change: Callable[[Connection], Awaitable[Change]]
) -> ActionResult:
    """Makes the change and writes the row of it, in one transaction. `change` may run again after a conflict.

    Raises ActionConflict if the reference was used for another act, and what `change` raises.
    """
    if action.ref is not None and not _is_valid_ref(action.ref):
        raise InvalidParameter("ref", f"不能为空、首尾不能有空格且最多 {MAX_REF_LENGTH} 个字符")
    if len(action.reason) > MAX_REASON_LENGTH:
        raise InvalidParameter("reason", f"最多 {MAX_REASON_LENGTH} 个字符")
    try:
        return await _perform(database, admin, action, change)
    except (UniqueViolation, GatewayError):
        # Another request with this reference may have been a moment faster, and have used up what `change` needs.
        known = await _find(database, action.ref)
        if known is None:
            raise
        return _repeated(action, known)


@retry_on_conflict
async def _perform(
    database: Database, admin: Admin, action: Action, change: Callable[[Connection], Awaitable[Change]]
) -> ActionResult:
    async with database.begin() as connection:
        known = await _read(connection, action.ref)
        if known is not None:
            return _repeated(action, known)
        made = await change(connection)
        after = action.values | made.after
        await record(connection, admin, action, before=made.before, after=after)
    return ActionResult(applied=True, after=after)


async def record(
    connection: Connection,
    admin: Admin,
    action: Action,
    *,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> None:
    """Writes the row of an act in the caller's transaction. Raises UniqueViolation for a known reference."""
    values = {
        "admin_id": admin.user_id,
        "action": action.name,
        "target_type": action.target_type,
        "target": action.target,
        "before": before,
        "after": after,
        "reason": action.reason,
        "ref": action.ref,
        "request_id": admin.request_id,
        "created_at": utc_now(),
    }
    await connection.execute(insert(admin_actions).values(**values))


def _repeated(action: Action, known: Row[Any]) -> ActionResult:
    after: dict[str, Any] = known.after or {}
    is_same = (known.action, known.target_type, known.target) == (action.name, action.target_type, action.target)
    if not is_same or any(after.get(name) != value for name, value in action.values.items()):
        raise ActionConflict
    return ActionResult(applied=False, after=after)


async def _find(database: Database, ref: str | None) -> Row[Any] | None:
    if ref is None:
        return None
    async with database.read() as connection:
        return await _read(connection, ref)


async def _read(connection: Connection, ref: str | None) -> Row[Any] | None:
    return None if ref is None else (await connection.execute(_BY_REF, {"ref": ref})).one_or_none()


def _is_valid_ref(ref: str) -> bool:
    return 0 < len(ref) <= MAX_REF_LENGTH and ref == ref.strip()


_BY_REF = select(admin_actions).where(admin_actions.c.ref == bindparam("ref"))
