"""`/user/usage` and `/user/ai/tasks/{task_no}/points`: what the caller's tasks cost, in sums and one by one."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, Field

from app.api.access.callers import Access, RequestContext
from app.api.csv_answers import CSV_CONTENT, csv_answer
from app.api.routing import DirectRoute
from app.api.schemas import Envelope
from app.datetimes import format_local
from app.errors import InvalidParameter
from app.reports.csv_text import Cell, csv_lines
from app.reports.period import Days, parse_days
from app.reports.task_points import get_task_points
from app.reports.usage import DIMENSIONS, MAX_DAYS, Dimension, Usage, UsageReport, UsageRow, usage_of_user

router = APIRouter(route_class=DirectRoute, tags=["积分"])

ReadAccess = Annotated[RequestContext, Depends(Access(scope="points:read", limit="read"))]
MAX_DIMENSIONS = 2
DEFAULT_DAYS = 30


class UsageResponse(BaseModel):
    """Sums of tasks that were submitted in the period."""

    tasks: int
    completed: int
    failed: int
    running: int
    pointsCharged: int = Field(description="提交时扣除的积分")
    pointsRefunded: int = Field(description="其中因失败退还的积分")
    pointsNet: int = Field(description="扣除减去退还，含进行中的任务")
    secondsP50: float | None = Field(description="完成的任务从提交到完成的秒数，中位数")
    secondsP95: float | None


class UsageRowResponse(UsageResponse):
    """One group. A field by which the report is not grouped is null."""

    day: str | None
    modelName: str | None
    keyId: int | None = Field(description="提交所用的 API Key；按 key 分组时，null 表示用 JWT 提交")
    keyName: str | None
    keyPrefix: str | None
    endUser: str | None = Field(description="提交时的 endUser；按 endUser 分组时，null 表示没有填写")


class UsageReportResponse(BaseModel):
    """The groups in the order of `by`, and the sums over all of them. `from` and `to` are local days."""

    from_: str = Field(alias="from")
    to: str
    by: list[Dimension]
    rows: list[UsageRowResponse]
    totals: UsageResponse


@router.get(
    "/user/usage",
    summary="用量统计，按日期、模型、密钥或终端用户",
    response_model=Envelope[UsageReportResponse],
    responses=CSV_CONTENT,
)
async def usage(
    context: ReadAccess,
    first: Annotated[str | None, Query(alias="from", max_length=10, description="起始日期，例如 2026-11-01")] = None,
    last: Annotated[str | None, Query(alias="to", max_length=10, description="截止日期，含当天；默认今天")] = None,
    by: Annotated[str, Query(max_length=40, description="day, model, key, endUser 中的一个或两个，用逗号分隔")] = "day",
    format_: Annotated[Literal["json", "csv"], Query(alias="format")] = "json",
) -> Response | Envelope[UsageReportResponse]:
    runtime = context.runtime
    dimensions = _dimensions(by)
    zone = runtime.settings.zone
    days = parse_days(first or None, last or None, zone, default_days=DEFAULT_DAYS, max_days=MAX_DAYS)
    report = await usage_of_user(runtime.database, context.user_id, days, dimensions)
    if format_ == "csv":
        return _csv(report, days, dimensions)
    rows = [UsageRowResponse(**_names(row), **_sums(row.usage)) for row in report.rows]
    named = {"from": str(days.first), "to": str(days.last), "by": dimensions, "rows": rows}
    return Envelope(data=UsageReportResponse.model_validate(named | {"totals": UsageResponse(**_sums(report.totals))}))


def _dimensions(by: str) -> list[Dimension]:
    named = by.split(",")
    known = [one for one in DIMENSIONS if one in named]
    if len(known) != len(named) or not 0 < len(named) <= MAX_DIMENSIONS:
        raise InvalidParameter("by", f"须为 {', '.join(DIMENSIONS)} 中的一个或两个，用逗号分隔")
    return known


def _sums(one: Usage) -> dict[str, Any]:
    return {
        "tasks": one.tasks,
        "completed": one.completed,
        "failed": one.failed,
        "running": one.running,
        "pointsCharged": one.charged,
        "pointsRefunded": one.refunded,
        "pointsNet": one.net,
        "secondsP50": one.p50_seconds,
        "secondsP95": one.p95_seconds,
    }


def _names(row: UsageRow) -> dict[str, Any]:
    return {
        "day": row.day,
        "modelName": row.model_name,
        "keyId": row.key_id,
        "keyName": row.key_name,
        "keyPrefix": row.key_prefix,
        "endUser": row.end_user,
    }


COLUMNS: dict[Dimension, tuple[str, ...]] = {
    "day": ("day",),
    "model": ("modelName",),
    "key": ("keyId", "keyName", "keyPrefix"),
    "endUser": ("endUser",),
}


def _csv(report: UsageReport, days: Days, dimensions: list[Dimension]) -> Response:
    """One line for each group, and a last one with the totals."""
    columns = [name for one in dimensions for name in COLUMNS[one]]
    lines: list[list[Cell]] = [[*columns, *_sums(report.totals)]]
    lines += [[*(_names(row)[name] for name in columns), *_sums(row.usage).values()] for row in report.rows]
    lines.append(["total", *[None] * (len(columns) - 1), *_sums(report.totals).values()])
    return csv_answer(f"usage-{days.first}-{days.last}", csv_lines(lines))


class PointsEntryResponse(BaseModel):
    """One ledger entry of the task. `points` changes the balance, `held` what running tasks hold."""

    id: int
    seq: int = Field(description="账户内的流水号，从 1 开始连续")
    kind: str = Field(description="deduct, settle, refund")
    points: int = Field(description="余额的变化，带正负号")
    held: int = Field(description="占用积分的变化，带正负号")
    balanceAfter: int
    remark: str
    createTime: str


class PointsLotResponse(BaseModel):
    """Expiring points that the task used. A refund returns them there, or to new ones if these have expired."""

    lotId: int
    points: int
    expireTime: str


class TaskPointsResponse(BaseModel):
    """The path of a task's points, oldest entry first."""

    taskNo: str
    status: str = Field(description="created, queued, processing, completed, failed")
    pointsCost: int
    state: str = Field(description="free（不收费）, held（占用中）, settled（已消耗）, refunded（已退还）")
    entries: list[PointsEntryResponse]
    lots: list[PointsLotResponse]


@router.get("/user/ai/tasks/{task_no}/points", summary="任务的积分去向，逐条流水")
async def task_points(task_no: str, context: ReadAccess) -> Envelope[TaskPointsResponse]:
    """Also of a deleted task: the ledger keeps its numbers."""
    zone = context.runtime.settings.zone
    found = await get_task_points(context.runtime.database, context.user_id, task_no)
    entries = [
        PointsEntryResponse(
            id=row.id,
            seq=row.seq,
            kind=row.kind,
            points=row.points,
            held=row.held,
            balanceAfter=row.balance_after,
            remark=row.remark,
            createTime=str(format_local(row.created_at, zone)),
        )
        for row in found.entries
    ]
    lots = [
        PointsLotResponse(lotId=row.lot_id, points=row.points, expireTime=str(format_local(row.expires_at, zone)))
        for row in found.lots
    ]
    return Envelope(
        data=TaskPointsResponse(
            taskNo=found.task_no,
            status=found.status,
            pointsCost=found.points_cost,
            state=found.state,
            entries=entries,
            lots=lots,
        )
    )
