"""`/admin/users`: find users, create and ban them, change their role, and correct their points."""

from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from fastapi import APIRouter, Path, Query
from pydantic import ConfigDict, Field

from app.accounts.users import MAX_NAME_LENGTH, user_exists
from app.admin import users as admin_users
from app.admin.points import EntryFilters, search_ledger
from app.admin.users import UserFilters, get_user, list_users
from app.api.access.callers import RequestContext
from app.api.routes.admin.actions import MAX_ID, NO_NUL, AdminAccess, PageNumber, PageSize, Reason, Ref, acting_admin
from app.api.routes.admin.points import EntryResponse, Kind, entry_view
from app.api.routing import DirectRoute
from app.api.schemas import Envelope, Page, Schema, StrictBody, paged
from app.datetimes import format_local
from app.errors import NotFound
from app.points.balance import get_balance
from app.points.ledger import MAX_POINTS
from app.tasks.queries import Filters, list_tasks
from app.tasks.view import TaskView, view_task

router = APIRouter(prefix="/admin/users", route_class=DirectRoute, tags=["管理"])

UserId = Annotated[int, Path(ge=1, le=MAX_ID)]
Role = Literal["user", "admin"]
Status = Literal["active", "banned"]
TaskStatus = Literal["created", "queued", "processing", "completed", "failed"]


class NewUserBody(StrictBody):
    """A new user. Without `userId` the gateway chooses the id."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"username": "xiaoming", "points": 1000, "ref": "crm-4711"}]}
    )

    username: Annotated[str | None, Field(min_length=1, max_length=MAX_NAME_LENGTH, pattern=NO_NUL)] = None
    userId: Annotated[int | None, Field(ge=1, le=MAX_ID, description="导入用户时指定")] = None
    role: Role = "user"
    points: Annotated[int, Field(ge=0, le=MAX_POINTS, description="初始积分，永久有效")] = 0
    reason: Reason = ""
    ref: Ref | None = None


class ReasonBody(StrictBody):
    """Why it is done, and a reference so that a repetition does nothing more."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"reason": "用户申诉", "ref": "ticket-4711"}]})

    reason: Reason = ""
    ref: Ref | None = None


class RoleBody(ReasonBody):
    """The new role."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"role": "admin", "reason": "新同事"}]})

    role: Role


class AdjustBody(StrictBody):
    """A correction of a user's points. It needs a reason and a reference."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"points": -30, "reason": "重复充值", "ref": "ticket-4712"}]}
    )

    points: Annotated[int, Field(ge=-MAX_POINTS, le=MAX_POINTS, description="正数增加，负数扣减，不能为 0")]
    reason: Annotated[Reason, Field(min_length=1)]
    ref: Ref


class UserSummary(Schema):
    """A user with the points that can be spent (`balance`) and those that running tasks hold."""

    userId: int
    username: str | None
    role: str = Field(description="user, admin")
    status: str = Field(description="active, banned")
    balance: int
    held: int
    createTime: str


class KeyResponse(Schema):
    """An API key without its secret."""

    id: int
    prefix: str
    name: str
    scopes: list[str]
    createTime: str
    lastUsedTime: str | None
    expireTime: str | None
    revokedTime: str | None


class TaskCounts(Schema):
    """How many tasks run, and how many have ended."""

    running: int
    completed: int
    failed: int


class UserResponse(UserSummary):
    """Everything about a user's account. `granted` is all that the user ever got."""

    expireTime: str | None = Field(description="最近一笔到期的积分何时到期")
    granted: int
    spent: int
    expired: int
    hasPassword: bool
    hasSecondFactor: bool
    tasks: TaskCounts
    keyCount: int
    keys: list[KeyResponse] = Field(description="最新的 100 个")


class NewUserResponse(Schema):
    """The user's id. `applied` is false if an earlier request with this `ref` created the user."""

    userId: int
    applied: bool


class UserStatusResponse(Schema):
    """The state that the act left behind. `applied` is false if an earlier request with this `ref` did it."""

    userId: int
    status: str | None = None
    role: str | None = None
    applied: bool


class AdjustResponse(Schema):
    """The correction and the balance now. `applied` is false if an earlier request with this `ref` did it."""

    userId: int
    points: int
    balance: int
    applied: bool


@router.get("", summary="查找用户，最新的在前")
async def users(
    context: AdminAccess,
    page: PageNumber = 1,
    size: PageSize = 10,
    user_id: Annotated[int | None, Query(alias="userId", ge=1, le=MAX_ID)] = None,
    username: Annotated[str | None, Query(max_length=MAX_NAME_LENGTH, description="用户名的开头")] = None,
    status: Annotated[Status | Literal[""] | None, Query()] = None,
    role: Annotated[Role | Literal[""] | None, Query()] = None,
) -> Envelope[Page[UserSummary]]:
    filters = UserFilters(user_id=user_id, name=username or None, status=status or None, role=role or None)
    rows, total = await list_users(context.runtime.database, context.user_id, filters, page=page, size=size)
    zone = context.runtime.settings.zone
    records = [UserSummary(**_summary(row, zone)) for row in rows]
    return paged(records, total, page, size)


@router.post("", summary="创建用户")
async def create(body: NewUserBody, context: AdminAccess) -> Envelope[NewUserResponse]:
    result = await admin_users.create_user(
        context.runtime.database,
        acting_admin(context),
        user_id=body.userId,
        username=body.username,
        role=body.role,
        points=body.points,
        reason=body.reason,
        ref=body.ref,
    )
    return Envelope(data=NewUserResponse(userId=int(result.target), applied=result.applied))


@router.get("/{user_id}", summary="查询用户：账户、密钥、任务数")
async def user(user_id: UserId, context: AdminAccess) -> Envelope[UserResponse]:
    row, zone = await get_user(context.runtime.database, user_id), context.runtime.settings.zone
    return Envelope(
        data=UserResponse(
            **_summary(row, zone),
            expireTime=format_local(row["expires"], zone),
            granted=row["granted"],
            spent=row["spent"],
            expired=row["expired"],
            hasPassword=bool(row["has_password"]),
            hasSecondFactor=bool(row["has_totp"]),
            tasks=TaskCounts(**row["tasks"]),
            keyCount=row["key_count"],
            keys=[_key(key, zone) for key in row["keys"]],
        )
    )


@router.get("/{user_id}/records", summary="用户的积分明细，最新的在前")
async def records(
    user_id: UserId,
    context: AdminAccess,
    page: PageNumber = 1,
    size: PageSize = 10,
    kind: Annotated[Kind | Literal[""] | None, Query()] = None,
) -> Envelope[Page[EntryResponse]]:
    database, zone = context.runtime.database, context.runtime.settings.zone
    await _require_user(context, user_id)
    filters = EntryFilters(user_id=user_id, kind=kind or None)
    rows, total = await search_ledger(database, context.user_id, filters, page=page, size=size)
    entries = [entry_view(row, zone) for row in rows]
    return paged(entries, total, page, size)


@router.get("/{user_id}/tasks", summary="用户的任务，最新的在前")
async def tasks(
    user_id: UserId,
    context: AdminAccess,
    page: PageNumber = 1,
    size: PageSize = 10,
    status: Annotated[TaskStatus | Literal[""] | None, Query()] = None,
) -> Envelope[Page[TaskView]]:
    await _require_user(context, user_id)
    filters = Filters(status=status or None)
    rows, total = await list_tasks(context.runtime.database, user_id, filters, page=page, size=size)
    views = [view_task(context.runtime, row) for row in rows]
    return paged(views, total, page, size)


@router.post("/{user_id}/ban", summary="封禁用户，其登录、密钥和推送连接立即失效")
async def ban(user_id: UserId, body: ReasonBody, context: AdminAccess) -> Envelope[UserStatusResponse]:
    return await _set_status(user_id, "banned", body, context)


@router.post("/{user_id}/unban", summary="解封用户，用户须重新登录")
async def unban(user_id: UserId, body: ReasonBody, context: AdminAccess) -> Envelope[UserStatusResponse]:
    return await _set_status(user_id, "active", body, context)


async def _set_status(
    user_id: int, status: Status, body: ReasonBody, context: RequestContext
) -> Envelope[UserStatusResponse]:
    runtime = context.runtime
    result = await admin_users.set_status(
        runtime.database, acting_admin(context), user_id, status, reason=body.reason, ref=body.ref
    )
    runtime.pubsub.recheck(user_id)
    return Envelope(data=UserStatusResponse(userId=user_id, status=status, applied=result.applied))


@router.post("/{user_id}/role", summary="设为管理员或普通用户")
async def set_role(user_id: UserId, body: RoleBody, context: AdminAccess) -> Envelope[UserStatusResponse]:
    result = await admin_users.set_role(
        context.runtime.database, acting_admin(context), user_id, body.role, reason=body.reason, ref=body.ref
    )
    return Envelope(data=UserStatusResponse(userId=user_id, role=body.role, applied=result.applied))


@router.post("/{user_id}/adjust", summary="调整积分，同一 ref 只生效一次")
async def adjust(user_id: UserId, body: AdjustBody, context: AdminAccess) -> Envelope[AdjustResponse]:
    database = context.runtime.database
    result = await admin_users.adjust(
        database, acting_admin(context), user_id, body.points, reason=body.reason, ref=body.ref
    )
    balance = (await get_balance(database, user_id)).available
    return Envelope(data=AdjustResponse(userId=user_id, points=body.points, balance=balance, applied=result.applied))


async def _require_user(context: RequestContext, user_id: int) -> None:
    if not await user_exists(context.runtime.database, user_id):
        raise NotFound("用户不存在")


def _summary(row: dict[str, Any], zone: ZoneInfo) -> dict[str, Any]:
    return {
        "userId": row["id"],
        "username": row["username"],
        "role": row["role"],
        "status": row["status"],
        "balance": row["available"],
        "held": row["held"],
        "createTime": str(format_local(row["created_at"], zone)),
    }


def _key(row: dict[str, Any], zone: ZoneInfo) -> KeyResponse:
    return KeyResponse(
        id=row["id"],
        prefix=row["prefix"],
        name=row["name"],
        scopes=row["scopes"],
        createTime=str(format_local(row["created_at"], zone)),
        lastUsedTime=format_local(row["last_used_at"], zone),
        expireTime=format_local(row["expires_at"], zone),
        revokedTime=format_local(row["revoked_at"], zone),
    )
