"""`/admin/models`: models and prices, a quote of a change before it is made, and who changed which price."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Path
from pydantic import ConfigDict, Field, JsonValue, WithJsonSchema

from app.admin import models as admin_models
from app.admin.models import list_price_history, quote_model
from app.api.access.callers import RequestContext
from app.api.routes.admin.actions import NO_NUL, AdminAccess, PageNumber, PageSize, Reason, Ref, acting_admin
from app.api.routes.tasks import IMAGE_URL
from app.api.routing import DirectRoute
from app.api.schemas import Envelope, Page, Schema, StrictBody, paged
from app.catalog.model_diff import find_diff
from app.catalog.models import MAX_NAME_LENGTH, Model, read_models
from app.catalog.price_rules import MAX_POINTS, MAX_RULES
from app.datetimes import format_local
from app.errors import InvalidParameter
from app.tasks.validation import Submission

router = APIRouter(prefix="/admin/models", route_class=DirectRoute, tags=["管理"])

PRINTABLE = r"^[ -.0-~]*$"  # ASCII without a slash, because the name is a part of paths
MAX_TEXT_LENGTH = 255
MAX_SORT = 2**31 - 1
MAX_PARAMS = 100
ModelName = Annotated[str, Path(min_length=1, max_length=MAX_NAME_LENGTH)]
Params = Annotated[dict[str, JsonValue], Field(max_length=MAX_PARAMS)]
COLUMNS = {
    "description": "description",
    "points_cost": "pointsCost",
    "task_type": "taskType",
    "action": "action",
    "params": "params",
    "defaults": "defaults",
    "price_rules": "priceRules",
    "sort": "sort",
    "enabled": "enabled",
}
"""The names of the table's columns and of the fields here."""


class ModelColumns(StrictBody):
    """Columns of a model. A field that is null or missing stays as it is."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"pointsCost": 35}]})

    description: Annotated[str | None, Field(max_length=MAX_TEXT_LENGTH, pattern=NO_NUL)] = None
    pointsCost: Annotated[int | None, Field(ge=0, le=MAX_POINTS)] = None
    taskType: Annotated[str | None, Field(max_length=32, pattern=NO_NUL, examples=["text_to_image"])] = None
    action: Annotated[str | None, Field(max_length=64, pattern=NO_NUL, description="SEE2AI 的 action")] = None
    params: Annotated[Params | None, Field(description="固定的参数，用户不能修改")] = None
    defaults: Annotated[Params | None, Field(description="默认的参数，用户可以修改")] = None
    priceRules: Annotated[
        list[dict[str, JsonValue]] | None, Field(max_length=MAX_RULES, description="价格规则；空数组为清除")
    ] = None
    sort: Annotated[int | None, Field(ge=-MAX_SORT, le=MAX_SORT)] = None
    enabled: bool | None = None

    def columns(self) -> dict[str, Any]:
        return {column: getattr(self, field) for column, field in COLUMNS.items()}


class ModelChange(ModelColumns):
    """The change, and why."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"pointsCost": 35, "reason": "成本上涨"}]})

    reason: Reason = ""
    ref: Ref | None = None


class NewModelBody(ModelChange):
    """A new model. `pointsCost`, `taskType` and `action` are required."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "modelName": "my_text_1x1",
                    "pointsCost": 30,
                    "taskType": "text_to_image",
                    "action": "see2ai_image_generation_fast_v1",
                }
            ]
        }
    )

    modelName: Annotated[str, Field(min_length=1, max_length=MAX_NAME_LENGTH, pattern=PRINTABLE)]


class DisableBody(StrictBody):
    """Why the model takes no new tasks."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"reason": "上游停用"}]})

    reason: Reason = ""
    ref: Ref | None = None


class QuoteBody(StrictBody):
    """A task as a caller would submit it, and the change whose price is to be known."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"prompt": "猫", "change": {"pointsCost": 35}}]})

    prompt: Annotated[str, Field(max_length=20_000, pattern=NO_NUL)] = ""
    imageUrl: Annotated[Any, WithJsonSchema(IMAGE_URL)] = None
    params: Params = {}  # noqa: RUF012
    change: ModelColumns = ModelColumns()


class AdminModelResponse(Schema):
    """A row of `points_config`. `problem` says why it cannot be sold; then the other fields may be null."""

    modelName: str
    description: str | None = None
    pointsCost: int | None = None
    taskType: str | None = None
    action: str | None = None
    params: dict[str, Any] | None = None
    defaults: dict[str, Any] | None = None
    priceRules: list[dict[str, Any]] | None = None
    sort: int | None = None
    enabled: bool | None = None
    problem: str | None = None


class ModelActResponse(Schema):
    """`applied` is false if an earlier request with this `ref` did it."""

    modelName: str
    applied: bool


class ModelQuoteResponse(Schema):
    """The points for the task today and after the change. `pointsCost` is null where the model cannot be sold today."""

    modelName: str
    pointsCost: int | None
    changedPointsCost: int


class ColumnChange(Schema):
    """One column of one change. `from` is null for a new model."""

    column: str = Field(examples=["points_cost"])
    from_: Any = Field(alias="from")
    to: Any


class HistoryResponse(Schema):
    """One act on a model. `adminId` is null for the command line."""

    adminId: int | None
    adminName: str | None
    action: str = Field(description="model.create, model.set, model.disable")
    changes: list[ColumnChange]
    reason: str
    createTime: str


class ModelDiffResponse(Schema):
    """The differences between the rows and what this release seeds. `changed` and `invalid` name the model."""

    equal: bool
    added: list[str]
    missing: list[str]
    changed: list[dict[str, Any]]
    invalid: list[dict[str, str]]


@router.get("", summary="所有模型与价格，包括已停用的")
async def models(context: AdminAccess) -> Envelope[list[AdminModelResponse]]:
    found, invalid = await read_models(context.runtime.database)
    broken = [AdminModelResponse(modelName=name, problem=reason) for name, reason in invalid.items()]
    return Envelope(data=[*(_model(model) for model in found), *broken])


@router.post("", summary="添加模型")
async def create(body: NewModelBody, context: AdminAccess) -> Envelope[ModelActResponse]:
    database, admin = context.runtime.database, acting_admin(context)
    with _field_names():
        result = await admin_models.create_model(
            database, admin, body.modelName, body.columns(), reason=body.reason, ref=body.ref
        )
    return Envelope(data=ModelActResponse(modelName=body.modelName, applied=result.applied))


@router.get("/diff", summary="与本版本发布的模型和价格的差异")
async def diff(context: AdminAccess) -> Envelope[ModelDiffResponse]:
    found = await find_diff(context.runtime.database)
    return Envelope(
        data=ModelDiffResponse(
            equal=found.is_empty,
            added=found.added,
            missing=found.missing,
            changed=found.changed,
            invalid=found.invalid,
        )
    )


@router.post("/{model_name}", summary="修改模型或价格，已提交的任务不受影响")
async def change(model_name: ModelName, body: ModelChange, context: AdminAccess) -> Envelope[ModelActResponse]:
    database, admin = context.runtime.database, acting_admin(context)
    with _field_names():
        result = await admin_models.set_model(
            database, admin, model_name, body.columns(), reason=body.reason, ref=body.ref
        )
    return Envelope(data=ModelActResponse(modelName=model_name, applied=result.applied))


@router.post("/{model_name}/disable", summary="停用模型，已提交的任务照常完成")
async def disable(model_name: ModelName, body: DisableBody, context: AdminAccess) -> Envelope[ModelActResponse]:
    result = await admin_models.disable_model(
        context.runtime.database, acting_admin(context), model_name, reason=body.reason, ref=body.ref
    )
    return Envelope(data=ModelActResponse(modelName=model_name, applied=result.applied))


@router.post("/{model_name}/quote", summary="试算修改后的价格，不保存任何内容")
async def quote(model_name: ModelName, body: QuoteBody, context: AdminAccess) -> Envelope[ModelQuoteResponse]:
    submission = Submission(model_name, body.prompt, body.imageUrl, body.params)
    with _field_names():
        now, changed = await quote_model(context.runtime, submission, body.change.columns())
    return Envelope(data=ModelQuoteResponse(modelName=model_name, pointsCost=now, changedPointsCost=changed))


@router.get("/{model_name}/history", summary="模型的修改记录，最新的在前")
async def history(
    model_name: ModelName, context: AdminAccess, page: PageNumber = 1, size: PageSize = 10
) -> Envelope[Page[HistoryResponse]]:
    rows, total = await _history(context, model_name, page, size)
    return paged(rows, total, page, size)


async def _history(context: RequestContext, name: str, page: int, size: int) -> tuple[list[HistoryResponse], int]:
    database, zone = context.runtime.database, context.runtime.settings.zone
    rows, total = await list_price_history(database, context.user_id, name, page=page, size=size)
    return [
        HistoryResponse(
            adminId=row["admin_id"],
            adminName=row["admin_name"],
            action=row["action"],
            changes=[ColumnChange(**one) for one in row["changes"]],
            reason=row["reason"],
            createTime=str(format_local(row["created_at"], zone)),
        )
        for row in rows
    ], total


def _model(model: Model) -> AdminModelResponse:
    fields = {field: getattr(model, column) for column, field in COLUMNS.items()}
    return AdminModelResponse(modelName=model.model_name, **fields)


@contextmanager
def _field_names() -> Iterator[None]:
    """An error names the field that the caller wrote, and not the column."""
    try:
        yield
    except InvalidParameter as error:
        column, dot, rest = error.field.partition(".")
        field = {"model_name": "modelName", **COLUMNS}.get(column)
        if field is None or field == column:
            raise
        problem = error.message.removeprefix(f"{InvalidParameter.text}: {error.field} ")
        raise InvalidParameter(field + dot + rest, problem) from error
