"""The report of usage as callers and admins see it: sums of tasks in groups, and over all of them."""

from typing import Any

from pydantic import Field

from app.api.schemas import Schema
from app.errors import InvalidParameter
from app.reports.period import Days
from app.reports.usage import DIMENSIONS, Dimension, Usage, UsageReport, UsageRow


class UsageResponse(Schema):
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


class UsageReportResponse(Schema):
    """The groups in the order of `by`, and the sums over all of them. `from` and `to` are local days."""

    from_: str = Field(alias="from")
    to: str
    by: list[Dimension]
    rows: list[UsageRowResponse]
    totals: UsageResponse


def parse_dimensions(by: str, *, at_most: int, number: str) -> list[Dimension]:
    """The dimensions in their fixed order. `number` says in the error how many there may be."""
    named = by.split(",")
    known = [one for one in DIMENSIONS if one in named]
    if len(known) != len(named) or not 0 < len(named) <= at_most:
        raise InvalidParameter("by", f"须为 {', '.join(DIMENSIONS)} 中的{number}，用逗号分隔")
    return known


def view_usage(report: UsageReport, days: Days, dimensions: list[Dimension]) -> UsageReportResponse:
    rows = [UsageRowResponse(**names(row), **sums(row.usage)) for row in report.rows]
    named = {"from": str(days.first), "to": str(days.last), "by": dimensions, "rows": rows}
    return UsageReportResponse.model_validate(named | {"totals": UsageResponse(**sums(report.totals))})


def sums(one: Usage) -> dict[str, Any]:
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


def names(row: UsageRow) -> dict[str, Any]:
    return {
        "day": row.day,
        "modelName": row.model_name,
        "keyId": row.key_id,
        "keyName": row.key_name,
        "keyPrefix": row.key_prefix,
        "endUser": row.end_user,
    }
