"""`/admin/points`: top-ups, the search of the ledger, redeem codes, and the audit of the books."""

from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from fastapi import APIRouter, Query, Response
from pydantic import ConfigDict, Field

from app.admin import points as admin_points
from app.admin.points import EntryFilters, export_codes, search_ledger
from app.api.csv_answers import CSV_CONTENT, csv_answer
from app.api.routes.admin.actions import (
    MAX_ID,
    NO_NUL,
    AdminAccess,
    Moment,
    PageNumber,
    PageSize,
    Reason,
    Ref,
    acting_admin,
)
from app.api.routing import DirectRoute
from app.api.schemas import Envelope, GrantResponse, Page, Schema, StrictBody, paged
from app.datetimes import format_local, parse_datetime
from app.jobs.audit_now import get_audit_state, run_audit_now
from app.points import ledger
from app.points.limits import MAX_CODES_PER_BATCH, MAX_LOT_DAYS
from app.points.redeem_codes import MAX_BATCH_LENGTH, list_batches
from app.reports.csv_text import Cell, csv_lines
from app.tasks.queries import MAX_TASK_NO_LENGTH

router = APIRouter(prefix="/admin", route_class=DirectRoute, tags=["管理"])

Kind = Literal["grant", "deduct", "settle", "refund", "expire", "adjust"]
Batch = Annotated[str, Field(min_length=1, max_length=MAX_BATCH_LENGTH, pattern=NO_NUL, description="批次名")]


class GrantBody(StrictBody):
    """A top-up. It moves money, so types are strict and unknown fields are refused."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"userId": 1, "points": 1000, "ref": "order-20261128-001"}]}
    )

    userId: Annotated[int, Field(ge=1, le=2**63 - 1)]
    points: Annotated[int, Field(ge=1, le=ledger.MAX_POINTS)]
    ref: Annotated[
        str,
        Field(
            min_length=1,
            max_length=ledger.MAX_REF_LENGTH,
            pattern=NO_NUL,
            description="充值的唯一编号，同一编号只生效一次",
        ),
    ]
    expires: Annotated[str | None, Field(max_length=40, description="ISO 时间，到期后积分失效；不填则永久有效")] = None
    remark: Annotated[str, Field(max_length=ledger.MAX_REMARK_LENGTH, pattern=NO_NUL)] = ""


class CodesBody(StrictBody):
    """A batch of redeem codes."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"count": 100, "points": 1000, "batch": "spring-2026"}]})

    count: Annotated[int, Field(ge=1, le=MAX_CODES_PER_BATCH)]
    points: Annotated[int, Field(ge=1, le=ledger.MAX_POINTS, description="每个兑换码的积分")]
    batch: Batch
    expires: Annotated[str | None, Field(max_length=40, description="ISO 时间，此后不能再兑换")] = None
    lotDays: Annotated[int | None, Field(ge=1, le=MAX_LOT_DAYS, description="兑换后积分的有效天数；不填则永久有效")] = (
        None
    )
    reason: Reason = ""
    ref: Ref | None = None


class VoidBody(StrictBody):
    """The batch whose unredeemed codes become void."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"batch": "spring-2026", "reason": "印刷错误"}]})

    batch: Batch
    reason: Reason = ""
    ref: Ref | None = None


class EntryResponse(Schema):
    """One ledger entry of a user."""

    id: int
    userId: int
    username: str | None
    kind: str = Field(description="grant, deduct, settle, refund, expire, adjust")
    points: int = Field(description="余额的变化，带正负号")
    held: int = Field(description="占用积分的变化，带正负号")
    balanceAfter: int
    taskNo: str | None
    ref: str | None
    remark: str
    createTime: str


class CodesResponse(Schema):
    """The new codes. They are shown only now: a repetition of `ref` answers `applied` false and no codes."""

    batch: str
    count: int
    codes: list[str]
    applied: bool


class BatchResponse(Schema):
    """A batch of redeem codes, with the number of codes in each state."""

    batch: str
    total: int
    unused: int
    redeemed: int
    expired: int
    void: int
    minPoints: int = Field(description="每个兑换码的积分，各码不同时为最小值")
    maxPoints: int
    expireTime: str | None
    createTime: str


class VoidResponse(Schema):
    """How many codes became void. `applied` is false if an earlier request with this `ref` did it."""

    batch: str
    voided: int
    applied: bool


class AuditResponse(Schema):
    """The newest completed audit: when it ended and how many violations it found. Both are null before the first."""

    completedTime: str | None
    violations: int | None
    running: bool


class ViolationResponse(Schema):
    """A row that violates an invariant."""

    invariant: str = Field(examples=["I1"])
    meaning: str
    row: dict[str, Any]


class AuditRunResponse(Schema):
    """`ok` says that every invariant holds."""

    ok: bool
    violations: list[ViolationResponse]


@router.post("/points/grants", summary="充值积分，同一 ref 只生效一次")
async def grant(body: GrantBody, context: AdminAccess) -> Envelope[GrantResponse]:
    applied, balance = await admin_points.grant(
        context.runtime.database,
        acting_admin(context),
        user_id=body.userId,
        points=body.points,
        ref=body.ref,
        remark=body.remark,
        expires=parse_datetime("expires", body.expires, context.runtime.settings.zone),
    )
    return Envelope(data=GrantResponse(userId=body.userId, balance=balance, applied=applied))


@router.get("/points/ledger", summary="查询所有用户的积分明细，最新的在前")
async def entries(
    context: AdminAccess,
    page: PageNumber = 1,
    size: PageSize = 10,
    user_id: Annotated[int | None, Query(alias="userId", ge=1, le=MAX_ID)] = None,
    kind: Annotated[Kind | Literal[""] | None, Query()] = None,
    ref: Annotated[str | None, Query(max_length=ledger.MAX_REF_LENGTH)] = None,
    task_no: Annotated[str | None, Query(alias="taskNo", max_length=MAX_TASK_NO_LENGTH)] = None,
    start_time: Annotated[Moment, Query(alias="startTime")] = None,
    end_time: Annotated[Moment, Query(alias="endTime")] = None,
) -> Envelope[Page[EntryResponse]]:
    zone = context.runtime.settings.zone
    filters = EntryFilters(
        user_id=user_id,
        kind=kind or None,
        ref=ref or None,
        task_no=task_no or None,
        start=parse_datetime("startTime", start_time or None, zone),
        end=parse_datetime("endTime", end_time or None, zone),
    )
    rows, total = await search_ledger(context.runtime.database, context.user_id, filters, page=page, size=size)
    found = [entry_view(row, zone) for row in rows]
    return paged(found, total, page, size)


@router.post("/points/codes", summary="生成一批兑换码，兑换码仅此时返回")
async def create_codes(body: CodesBody, context: AdminAccess) -> Envelope[CodesResponse]:
    result, codes = await admin_points.create_codes(
        context.runtime.database,
        acting_admin(context),
        count=body.count,
        points=body.points,
        batch=body.batch,
        expires=parse_datetime("expires", body.expires, context.runtime.settings.zone),
        lot_days=body.lotDays,
        reason=body.reason,
        ref=body.ref,
    )
    return Envelope(data=CodesResponse(batch=body.batch, count=body.count, codes=codes, applied=result.applied))


@router.get("/points/codes/batches", summary="兑换码批次，最新的在前")
async def batches(context: AdminAccess, page: PageNumber = 1, size: PageSize = 10) -> Envelope[Page[BatchResponse]]:
    rows, total = await list_batches(context.runtime.database, page=page, size=size)
    zone = context.runtime.settings.zone
    found = [
        BatchResponse(
            **{name: row[name] for name in ("batch", "total", "unused", "redeemed", "expired", "void")},
            minPoints=row["min_points"],
            maxPoints=row["max_points"],
            expireTime=format_local(row["expires_at"], zone),
            createTime=str(format_local(row["created_at"], zone)),
        )
        for row in rows
    ]
    return paged(found, total, page, size)


@router.get(
    "/points/codes/export",
    summary="导出一个批次的兑换码状态（CSV，只含每个兑换码的前五位）",
    response_class=Response,
    responses=CSV_CONTENT,
)
async def export(
    context: AdminAccess, batch: Annotated[str, Query(min_length=1, max_length=MAX_BATCH_LENGTH)]
) -> Response:
    rows, zone = await export_codes(context.runtime.database, batch), context.runtime.settings.zone
    lines: list[list[Cell]] = [
        ["prefix", "batch", "points", "status", "expireTime", "lotDays", "redeemedBy", "redeemedTime"]
    ]
    for row in rows:
        expires, redeemed = format_local(row["expires_at"], zone), format_local(row["redeemed_at"], zone)
        state = (row["status"], expires, row["lot_days"], row["redeemed_by"], redeemed)
        lines.append([row["prefix"], row["batch"], row["points"], *state])
    return csv_answer("codes", csv_lines(lines))


@router.post("/points/codes/void", summary="作废一个批次中未使用的兑换码")
async def void_codes(body: VoidBody, context: AdminAccess) -> Envelope[VoidResponse]:
    result = await admin_points.void_codes(
        context.runtime.database, acting_admin(context), body.batch, reason=body.reason, ref=body.ref
    )
    voided = result.after["voided"]
    return Envelope(data=VoidResponse(batch=body.batch, voided=voided, applied=result.applied))


@router.get("/points/audit", summary="最近一次账目审计的结果")
async def audit_state(context: AdminAccess) -> Envelope[AuditResponse]:
    state = await get_audit_state(context.runtime.database)
    ended = format_local(state.completed_at, context.runtime.settings.zone)
    return Envelope(data=AuditResponse(completedTime=ended, violations=state.violations, running=state.is_running))


@router.post("/points/audit", summary="立即审计账目，同一时间只运行一次")
async def run_audit(context: AdminAccess) -> Envelope[AuditRunResponse]:
    violations = await run_audit_now(context.runtime.database, context.runtime.settings.audit_every_seconds)
    rows = [ViolationResponse(invariant=one.invariant, meaning=one.meaning, row=one.row) for one in violations]
    return Envelope(data=AuditRunResponse(ok=not rows, violations=rows))


def entry_view(row: dict[str, Any], zone: ZoneInfo) -> EntryResponse:
    return EntryResponse(
        id=row["id"],
        userId=row["user_id"],
        username=row["username"],
        kind=row["kind"],
        points=row["points"],
        held=row["held"],
        balanceAfter=row["balance_after"],
        taskNo=row["task_no"],
        ref=row["ref"],
        remark=row["remark"],
        createTime=str(format_local(row["created_at"], zone)),
    )
