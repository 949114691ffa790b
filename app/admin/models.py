"""What admins do with models: create, change, disable, quote a change before it is made, and read who changed what."""

from typing import Any

from app.admin.actions import Action, ActionFilters, ActionResult, Admin, Change, list_actions, perform
from app.catalog.models import preview_model, write_disabled, write_model
from app.database import Connection, Database, UniqueViolation
from app.errors import ActionConflict, InvalidParameter, ModelNotFound
from app.files.upload_records import find_missing
from app.runtime import Runtime
from app.tasks.submit.task_row import prepare
from app.tasks.validation import Submission, find_uploads, require_uploads

CREATE, SET, DISABLE = "model.create", "model.set", "model.disable"
TARGET = "model"


async def create_model(
    database: Database, admin: Admin, name: str, columns: dict[str, Any], *, reason: str = "", ref: str | None = None
) -> ActionResult:
    """Creates a model. Raises InvalidParameter if the name is taken or a column is not valid."""

    async def change(connection: Connection) -> Change:
        before, after = await write_model(connection, name, columns)
        if before is not None:
            raise InvalidParameter("model_name", "已存在")
        return Change(None, after)

    try:
        return await perform(database, admin, Action(CREATE, TARGET, name, _requested(columns), reason, ref), change)
    except UniqueViolation as error:
        raise InvalidParameter("model_name", "已存在") from error


async def set_model(
    database: Database, admin: Admin, name: str, columns: dict[str, Any], *, reason: str = "", ref: str | None = None
) -> ActionResult:
    """Changes the columns that are not None. Submitted tasks keep their price. Raises ModelNotFound."""

    async def change(connection: Connection) -> Change:
        before, after = await write_model(connection, name, columns)
        if before is None:
            raise ModelNotFound
        return Change({column: before[column] for column in requested}, {column: after[column] for column in requested})

    requested = _requested(columns)
    if not requested:
        raise InvalidParameter("请求体", "没有要修改的内容")
    result = await perform(database, admin, Action(SET, TARGET, name, requested, reason, ref), change)
    if result.after.keys() != requested.keys():  # the first request with this reference changed more
        raise ActionConflict
    return result


async def create_or_set_model(
    database: Database, admin: Admin, name: str, columns: dict[str, Any], *, reason: str = ""
) -> ActionResult:
    """What `gateway models set` does: it changes the model, or creates it."""
    try:
        return await set_model(database, admin, name, columns, reason=reason)
    except ModelNotFound:
        return await create_model(database, admin, name, columns, reason=reason)


async def disable_model(
    database: Database, admin: Admin, name: str, *, reason: str = "", ref: str | None = None
) -> ActionResult:
    """Disables the model for new tasks, also one whose row is not valid. Raises ModelNotFound."""

    async def change(connection: Connection) -> Change:
        return Change({"enabled": await write_disabled(connection, name)}, {"enabled": False})

    return await perform(database, admin, Action(DISABLE, TARGET, name, {}, reason, ref), change)


async def quote_model(runtime: Runtime, submission: Submission, columns: dict[str, Any]) -> tuple[int | None, int]:
    """The points for a task, by the row as it is and by the row with `columns` changed. Nothing is stored.

    The first is None if there is no such model yet, or if it cannot be sold. Raises InvalidParameter for a change that
    `set_model` refuses, and for a task that a submit refuses.
    """
    async with runtime.database.read() as connection:
        changed = await preview_model(connection, submission.model_name, columns)
        prepared = prepare(runtime, submission, changed)
        if uploads := find_uploads(runtime.store, submission, prepared.action, prepared.request):
            require_uploads(uploads, await find_missing(connection, uploads))
        try:
            present = await preview_model(connection, submission.model_name, {})
            now = prepare(runtime, submission, present).points_cost
        except (InvalidParameter, ModelNotFound):
            return None, prepared.points_cost
    return now, prepared.points_cost


async def list_price_history(
    database: Database, reader_id: int, name: str, *, page: int, size: int
) -> tuple[list[dict[str, Any]], int]:
    """One page of the acts on a model, newest first, each with `changes`: column, from and to."""
    filters = ActionFilters(target_type=TARGET, target=name)
    rows, total = await list_actions(database, reader_id, filters, page=page, size=size)
    return [row | {"changes": _changes(row["before"] or {}, row["after"] or {})} for row in rows], total


def _changes(before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"column": column, "from": before.get(column), "to": value}
        for column, value in after.items()
        if column not in before or (before[column] or None) != (value or None)
    ]


def _requested(columns: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in columns.items() if value is not None}
