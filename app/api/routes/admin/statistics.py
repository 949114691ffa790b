"""`/admin/statistics` and `/admin/overview`: what all users do, by day, model and key, and what happens today."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field

from app.admin.reports import PLACES
from app.api.access.callers import Access, RequestContext
from app.api.routing import DirectRoute
from app.api.schemas import Envelope
from app.datetimes import format_local
from app.errors import InvalidParameter
from app.reports.period import parse_days
from app.reports.statistics import overview, usage_of_all
from app.reports.usage import DIMENSIONS, MAX_DAYS, Dimension, Usage, UsageRow

router = APIRouter(prefix="/admin", route_class=DirectRoute, tags=["管理"])

AdminAccess = Annotated[RequestContext, Depends(Access(scope="admin", limit="admin"))]
DEFAULT_DAYS = 7
DEFAULT_BY = "day,model,key"


class StatisticsSums(BaseModel):
    """Sums of the tasks that were submitted in the period."""

    tasks: int
    completed: int
    failed: int
    running: int
    pointsCharged: int = Field(description="提交时扣除的积分")
    pointsRefunded: int = Field(description="其中因失败退还的积分")
    pointsNet: int
    secondsP50: float | None = Field(description="完成的任务从提交到完成的秒数，中位数")
    secondsP95: float | None


class StatisticsRow(StatisticsSums):
    """One group. A field by which the statistics are not grouped is null; a key of null is a JWT."""

    day: str | None
    modelName: str | None
    keyId: int | None
    keyName: str | None
    keyPrefix: str | None
    endUser: str | None


class StatisticsView(BaseModel):
    """The groups, and the sums over all of them. `from` and `to` are local days."""

    model_config = ConfigDict(populate_by_name=True)

    first: str = Field(serialization_alias="from", validation_alias="from")
    last: str = Field(serialization_alias="to", validation_alias="to")
    by: list[Dimension]
    rows: list[StatisticsRow]
    totals: StatisticsSums


class RunningStep(BaseModel):
    """The tasks that run now on one step."""

    step: str
    tasks: int
    oldestTime: str


class OverviewView(BaseModel):
    """Today in the local zone, and what runs now. Points are positive, except those of `adjust`."""

    startTime: str
    tasksByStatus: dict[str, int] = Field(description="今天提交的任务")
    failuresByCode: dict[str, int] = Field(description="其中失败的任务，按 errorCode")
    runningByStep: list[RunningStep] = Field(description="正在进行的全部任务，包括以前提交的")
    pointsByKind: dict[str, int] = Field(description="今天的积分流水，按 kind")
    newUsers: int


@router.get("/statistics", summary="所有用户的用量统计，按日期、模型和密钥")
async def statistics(
    context: AdminAccess,
    first: Annotated[str | None, Query(alias="from", max_length=10, description="起始日期，默认最近 7 天")] = None,
    last: Annotated[str | None, Query(alias="to", max_length=10, description="截止日期，含当天；默认今天")] = None,
    by: Annotated[
        str, Query(max_length=40, description="day, model, key, endUser 中的任意几个，用逗号分隔")
    ] = DEFAULT_BY,
) -> Envelope[StatisticsView]:
    runtime, dimensions = context.runtime, _dimensions(by)
    zone = runtime.settings.zone
    days = parse_days(first or None, last or None, zone, default_days=DEFAULT_DAYS, max_days=MAX_DAYS)
    with PLACES.take():
        report = await usage_of_all(runtime.database, days, dimensions)
    return Envelope(
        data=StatisticsView(
            first=str(days.first),
            last=str(days.last),
            by=dimensions,
            rows=[_row(row) for row in report.rows],
            totals=StatisticsSums(**_sums(report.totals)),
        )
    )


@router.get("/overview", summary="今日概况")
async def today(context: AdminAccess) -> Envelope[OverviewView]:
    runtime, zone = context.runtime, context.runtime.settings.zone
    with PLACES.take():
        found = await overview(runtime.database, zone)
    return Envelope(
        data=OverviewView(
            startTime=str(format_local(found.start, zone)),
            tasksByStatus=found.tasks_by_status,
            failuresByCode=found.failures_by_code,
            runningByStep=[
                RunningStep(step=step, tasks=one.tasks, oldestTime=str(format_local(one.oldest, zone)))
                for step, one in found.running_by_step.items()
            ],
            pointsByKind=found.points_by_kind,
            newUsers=found.new_users,
        )
    )


def _dimensions(by: str) -> list[Dimension]:
    named = by.split(",")
    known = [one for one in DIMENSIONS if one in named]
    if len(known) != len(named):
        raise InvalidParameter("by", f"须为 {', '.join(DIMENSIONS)} 中的几个，用逗号分隔")
    return known


def _row(row: UsageRow) -> StatisticsRow:
    return StatisticsRow(
        day=row.day,
        modelName=row.model_name,
        keyId=row.key_id,
        keyName=row.key_name,
        keyPrefix=row.key_prefix,
        endUser=row.end_user,
        **_sums(row.usage),
    )


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
