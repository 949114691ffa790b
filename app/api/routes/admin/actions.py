"""`/admin/actions`: what admins changed; and the fields that the bodies of all changes share."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from pydantic import Field

from app.admin.actions import MAX_REASON_LENGTH, MAX_REF_LENGTH, ActionFilters, Admin, list_actions
from app.api.access.callers import Access, RequestContext
from app.api.routing import DirectRoute
from app.api.schemas import Envelope, Page, Schema, paged
from app.datetimes import format_local, parse_datetime

router = APIRouter(prefix="/admin", route_class=DirectRoute, tags=["管理"])

NO_NUL = r"^[^\x00]*$"
MAX_ID = 2**63 - 1
AdminAccess = Annotated[RequestContext, Depends(Access(scope="admin", limit="admin"))]
PageNumber = Annotated[int, Query(ge=1, le=1_000_000)]
PageSize = Annotated[int, Query(ge=1, le=100)]
Moment = Annotated[str | None, Query(max_length=40, description="ISO 时间")]
Ref = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_REF_LENGTH,
        pattern=NO_NUL,
        description="操作的唯一编号，同一编号只执行一次，重复请求返回第一次的结果",
    ),
]
Reason = Annotated[str, Field(max_length=MAX_REASON_LENGTH, pattern=NO_NUL, description="原因，写入操作记录")]


def acting_admin(context: RequestContext) -> Admin:
    return Admin(context.user_id, context.request_id)


class ActionResponse(Schema):
    """One act. `adminId` is null for the command line. `before` and `after` hold no secrets."""

    id: int
    adminId: int | None
    adminName: str | None
    action: str = Field(examples=["user.ban"])
    targetType: str = Field(examples=["user"])
    target: str = Field(description="用户 ID、模型名、批次名等")
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    reason: str
    ref: str | None
    requestId: str
    createTime: str


@router.get("/actions", summary="管理员操作记录，最新的在前")
async def actions(
    context: AdminAccess,
    page: PageNumber = 1,
    size: PageSize = 10,
    admin_id: Annotated[int | None, Query(alias="adminId", ge=0, le=MAX_ID, description="0 为命令行")] = None,
    action: Annotated[str | None, Query(max_length=64)] = None,
    target_type: Annotated[str | None, Query(alias="targetType", max_length=32)] = None,
    target: Annotated[str | None, Query(max_length=128)] = None,
    ref: Annotated[str | None, Query(max_length=MAX_REF_LENGTH)] = None,
    start_time: Annotated[Moment, Query(alias="startTime")] = None,
    end_time: Annotated[Moment, Query(alias="endTime")] = None,
) -> Envelope[Page[ActionResponse]]:
    zone = context.runtime.settings.zone
    filters = ActionFilters(
        admin_id=admin_id,
        action=action or None,
        target_type=target_type or None,
        target=target or None,
        ref=ref or None,
        start=parse_datetime("startTime", start_time or None, zone),
        end=parse_datetime("endTime", end_time or None, zone),
    )
    rows, total = await list_actions(context.runtime.database, context.user_id, filters, page=page, size=size)
    records = [
        ActionResponse(
            id=row["id"],
            adminId=row["admin_id"],
            adminName=row["admin_name"],
            action=row["action"],
            targetType=row["target_type"],
            target=row["target"],
            before=row["before"],
            after=row["after"],
            reason=row["reason"],
            ref=row["ref"],
            requestId=row["request_id"],
            createTime=str(format_local(row["created_at"], zone)),
        )
        for row in rows
    ]
    return paged(records, total, page, size)
