"""`/admin/statistics` and `/admin/overview`: what all users do, by day, model and key, and what happens today."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field

from app.admin.reports import PLACES
from app.api.routes.admin.actions import AdminAccess
from app.api.routing import DirectRoute
from app.api.schemas import Envelope, Schema
from app.api.usage_view import UsageReportResponse, parse_dimensions, view_usage
from app.datetimes import format_local
from app.reports.period import parse_days
from app.reports.statistics import overview, usage_of_all
from app.reports.usage import DIMENSIONS, MAX_DAYS

router = APIRouter(prefix="/admin", route_class=DirectRoute, tags=["管理"])

DEFAULT_DAYS = 7
DEFAULT_BY = "day,model,key"


class RunningStep(Schema):
    """The tasks that run now on one step."""

    step: str
    tasks: int
    oldestTime: str


class OverviewView(Schema):
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
) -> Envelope[UsageReportResponse]:
    runtime = context.runtime
    dimensions = parse_dimensions(by, at_most=len(DIMENSIONS), number="几个")
    zone = runtime.settings.zone
    days = parse_days(first or None, last or None, zone, default_days=DEFAULT_DAYS, max_days=MAX_DAYS)
    with PLACES.take():
        report = await usage_of_all(runtime.database, days, dimensions)
    return Envelope(data=view_usage(report, days, dimensions))


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
