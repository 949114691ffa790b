"""What admins changed: one row for each act, written in the transaction of the change. Rows are never changed.

An act with a reference is done once. Who repeats it reads the result of the first time.
"""

import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, bindparam, func, insert, select

from app.database import Connection, Database, PageQuery, UniqueViolation, retry_on_conflict, utc_now
from app.errors import ActionConflict, GatewayError, InvalidParameter
from app.tables import admin_actions, users

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

    `target` is empty for something new, whose id the change draws. `values` are what the admin requests, as JSON
    values: all of them, also those that are None. A repetition must have the same. They are a part of `after`.
    """

    name: str
    target_type: str
    target: str
    values: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    ref: str | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """What a change found and what it left behind, as JSON values without secrets. `target` names something new."""

    before: dict[str, Any] | None
    after: dict[str, Any]
    target: str | None = None


@dataclass(frozen=True, slots=True)
class ActionResult:
    """`applied` is False if an earlier request with this reference did it. `after` is what that one left behind."""

    applied: bool
    after: dict[str, Any]
    target: str


async def perform(
    database: Database, admin: Admin, action: Action, change: Callable[[Connection], Awaitable[Change]]
) -> ActionResult:
    """Makes the change and writes the row of it, in one transaction. `change` may run again after a conflict.

    Raises ActionConflict if the reference was used for another act, and what `change` raises.
    """
    check_texts(action)
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
        done = action if made.target is None else replace(action, target=made.target)
        after = made.after | action.values  # what was requested is stored as it was, because a repetition is compared
        await record(connection, admin, done, before=made.before, after=after)
    return ActionResult(applied=True, after=after, target=done.target)


def check_texts(action: Action) -> None:
    """Raises InvalidParameter for a reference or a reason that cannot be stored."""
    if action.ref is not None and not _is_valid_ref(action.ref):
        raise InvalidParameter("ref", f"不能为空、首尾不能有空格且最多 {MAX_REF_LENGTH} 个字符")
    if len(action.reason) > MAX_REASON_LENGTH:
        raise InvalidParameter("reason", f"最多 {MAX_REASON_LENGTH} 个字符")


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
    is_same = (known.action, known.target_type) == (action.name, action.target_type)
    is_same = is_same and action.target in {"", known.target}
    if not is_same or any(after.get(name) != value for name, value in action.values.items()):
        raise ActionConflict
    return ActionResult(applied=False, after=after, target=known.target)


async def _find(database: Database, ref: str | None) -> Row[Any] | None:
    if ref is None:
        return None
    async with database.read() as connection:
        return await _read(connection, ref)


async def find_repeated(database: Database, action: Action) -> ActionResult | None:
    """The result of an earlier request with the reference of `action`; None if there is none. Raises ActionConflict.

    For an act that fetches something before its transaction: a repeat, or a wrong reference, fetches nothing.
    """
    if action.ref is not None and not _is_valid_ref(action.ref):
        raise InvalidParameter("ref", f"不能为空、首尾不能有空格且最多 {MAX_REF_LENGTH} 个字符")
    known = await _find(database, action.ref)
    return None if known is None else _repeated(action, known)


async def _read(connection: Connection, ref: str | None) -> Row[Any] | None:
    return None if ref is None else (await connection.execute(_BY_REF, {"ref": ref})).one_or_none()


def _is_valid_ref(ref: str) -> bool:
    return 0 < len(ref) <= MAX_REF_LENGTH and ref == ref.strip() and "\0" not in ref


# ------------------------------------------------------------------ the list


@dataclass(frozen=True, slots=True)
class ActionFilters:
    """Filters of the list; None means any. `admin_id` 0 is the command line. `end` includes its whole second."""

    admin_id: int | None = None
    action: str | None = None
    target_type: str | None = None
    target: str | None = None
    ref: str | None = None
    start: datetime | None = None
    end: datetime | None = None


async def list_actions(
    database: Database, reader_id: int, filters: ActionFilters, *, page: int, size: int
) -> tuple[list[dict[str, Any]], int]:
    """One page, newest first, and the number of all matching rows up to MAX_REACH."""
    names = frozenset(name for name in _CONDITIONS if getattr(filters, name) is not None)
    values = {f"by_{name}": getattr(filters, name) for name in names}
    if filters.end:
        values["by_end"] = filters.end.replace(microsecond=999_999)
    async with database.read_list(reader_id) as connection:
        return await _page_query(names).read(connection, values, page=page, size=size)


_CONDITIONS: dict[str, ColumnElement[bool]] = {
    "admin_id": func.coalesce(admin_actions.c.admin_id, 0) == bindparam("by_admin_id"),
    "action": admin_actions.c.action == bindparam("by_action"),
    "target_type": admin_actions.c.target_type == bindparam("by_target_type"),
    "target": admin_actions.c.target == bindparam("by_target"),
    "ref": admin_actions.c.ref == bindparam("by_ref"),
    "start": admin_actions.c.created_at >= bindparam("by_start"),
    "end": admin_actions.c.created_at <= bindparam("by_end"),
}


@functools.cache
def _page_query(names: frozenset[str]) -> PageQuery:
    matching = select(admin_actions.c.id).where(*(_CONDITIONS[name] for name in sorted(names)))
    return PageQuery(_SHOWN, admin_actions.c.id, matching=matching, order=(admin_actions.c.id.desc(),))


_SHOWN = select(*admin_actions.c, users.c.username.label("admin_name")).select_from(
    admin_actions.outerjoin(users, users.c.id == admin_actions.c.admin_id)
)
_BY_REF = select(admin_actions).where(admin_actions.c.ref == bindparam("ref"))
