"""`/user/usage` and `/user/ai/tasks/{task_no}/points`: what the caller's tasks cost, in sums and one by one."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Response
from pydantic import Field

from app.api.access.callers import Access, RequestContext
from app.api.csv_answers import CSV_CONTENT, csv_answer
from app.api.routing import DirectRoute
from app.api.schemas import Envelope, Schema
from app.api.usage_view import UsageReportResponse, names, parse_dimensions, sums, view_usage
from app.datetimes import format_local
from app.reports.csv_text import Cell, csv_lines
from app.reports.period import Days, parse_days
from app.reports.task_points import get_task_points
from app.reports.usage import MAX_DAYS, Dimension, UsageReport, usage_of_user

router = APIRouter(route_class=DirectRoute, tags=["积分"])

ReadAccess = Annotated[RequestContext, Depends(Access(scope="points:read", limit="read"))]
MAX_DIMENSIONS = 2
DEFAULT_DAYS = 30


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
    dimensions = parse_dimensions(by, at_most=MAX_DIMENSIONS, number="一个或两个")
    zone = runtime.settings.zone
    days = parse_days(first or None, last or None, zone, default_days=DEFAULT_DAYS, max_days=MAX_DAYS)
    report = await usage_of_user(runtime.database, context.user_id, days, dimensions)
    if format_ == "csv":
        return _csv(report, days, dimensions)
    return Envelope(data=view_usage(report, days, dimensions))


COLUMNS: dict[Dimension, tuple[str, ...]] = {
    "day": ("day",),
    "model": ("modelName",),
    "key": ("keyId", "keyName", "keyPrefix"),
    "endUser": ("endUser",),
}


def _csv(report: UsageReport, days: Days, dimensions: list[Dimension]) -> Response:
    """One line for each group, and a last one with the totals."""
    columns = [name for one in dimensions for name in COLUMNS[one]]
    lines: list[list[Cell]] = [[*columns, *sums(report.totals)]]
    lines += [[*(names(row)[name] for name in columns), *sums(row.usage).values()] for row in report.rows]
    lines.append(["total", *[None] * (len(columns) - 1), *sums(report.totals).values()])
    return csv_answer(f"usage-{days.first}-{days.last}", csv_lines(lines))


class PointsEntryResponse(Schema):
    """One ledger entry of the task. `points` changes the balance, `held` what running tasks hold."""

    id: int
    seq: int = Field(description="账户内的流水号，从 1 开始连续")
    kind: str = Field(description="deduct, settle, refund")
    points: int = Field(description="余额的变化，带正负号")
    held: int = Field(description="占用积分的变化，带正负号")
    balanceAfter: int
    remark: str
    createTime: str


class PointsLotResponse(Schema):
    """Expiring points that the task used. A refund returns them there, or to new ones if these have expired."""

    lotId: int
    points: int
    expireTime: str


class TaskPointsResponse(Schema):
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
