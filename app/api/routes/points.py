"""`/user/points/...`: the balance, the ledger's records, and redeem codes."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Response
from pydantic import ConfigDict, Field

from app.api.access.callers import Access, RequestContext
from app.api.csv_answers import CSV_CONTENT, csv_stream
from app.api.routing import DirectRoute
from app.api.schemas import BalanceResponse, Envelope, Page, RecordResponse, RedeemResponse, StrictBody, paged
from app.datetimes import format_local
from app.errors import InvalidParameter
from app.points.balance import get_balance, list_records
from app.points.redeem_codes import MAX_CODE_LENGTH, redeem_code
from app.reports.period import parse_end, parse_start
from app.reports.statement import MAX_DAYS, Statement, open_statement, statement_csv

router = APIRouter(prefix="/user/points", route_class=DirectRoute, tags=["积分"])

DEFAULT_DAYS = 31
ReadAccess = Annotated[RequestContext, Depends(Access(scope="points:read", limit="read"))]
Kind = Literal["grant", "deduct", "settle", "refund", "expire", "adjust"]


@router.get("/consumption/balance", summary="查询积分余额")
async def balance(context: ReadAccess) -> Envelope[BalanceResponse]:
    found = await get_balance(context.runtime.database, context.user_id)
    expires = format_local(found.expires, context.runtime.settings.zone)
    return Envelope(
        data=BalanceResponse(userId=context.user_id, balance=found.available, expireTime=expires, held=found.held)
    )


@router.get(
    "/consumption/records",
    summary="积分明细，最新的在前；或对账单（CSV）",
    response_model=Envelope[Page[RecordResponse]],
    responses=CSV_CONTENT,
)
async def records(
    context: ReadAccess,
    page: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
    size: Annotated[int, Query(ge=1, le=100)] = 10,
    kind: Annotated[Kind | Literal[""] | None, Query()] = None,
    task_no: Annotated[str | None, Query(alias="taskNo", max_length=40)] = None,
    first: Annotated[str | None, Query(alias="from", max_length=40, description="起始日期或时间")] = None,
    last: Annotated[str | None, Query(alias="to", max_length=40, description="截止日期或时间，含当天、当秒")] = None,
    format_: Annotated[Literal["json", "csv"], Query(alias="format", description="csv: 整段时间的对账单")] = "json",
) -> Response | Envelope[Page[RecordResponse]]:
    zone = context.runtime.settings.zone
    start, end = parse_start("from", first, zone), parse_end("to", last, zone)
    if start is not None and end is not None and end <= start:
        raise InvalidParameter("from", "不能晚于 to")
    database, user_id, kind, task_no = context.runtime.database, context.user_id, kind or None, task_no or None
    if format_ == "csv":
        start = start or _default_start(end)
        _check_length(start, end)
        return _csv(context, await open_statement(database, user_id, start, end, kind=kind, task_no=task_no))
    rows, total = await list_records(
        database, user_id, kind=kind, task_no=task_no, page=page, size=size, start=start, end=end
    )
    responses = [
        RecordResponse(
            id=row["id"],
            kind=row["kind"],
            points=row["points"],
            balanceAfter=row["balance_after"],
            taskNo=row["task_no"],
            remark=row["remark"],
            createTime=str(format_local(row["created_at"], context.runtime.settings.zone)),
        )
        for row in rows
    ]
    return paged(responses, total, page, size)


def _default_start(end: datetime | None) -> datetime:
    return (end or datetime.now(UTC)) - timedelta(days=DEFAULT_DAYS)


def _check_length(start: datetime, end: datetime | None) -> None:
    if (end or datetime.now(UTC)) - start > timedelta(days=MAX_DAYS, hours=1):  # an hour more where summer time ends
        raise InvalidParameter("from", f"与 to 之间最多 {MAX_DAYS} 天")


def _csv(context: RequestContext, statement: Statement) -> Response:
    zone = context.runtime.settings.zone
    days = [f"{moment.astimezone(zone):%Y%m%d}" for moment in (statement.start, statement.end)]
    return csv_stream(f"statement-{'-'.join(days)}", statement_csv(context.runtime.database, statement, zone))


class RedeemBody(StrictBody):
    """A redeem code. It moves money, so types are strict and unknown fields are refused."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"code": "ABCD-EFGH-JKLM-NPQR"}]})

    code: Annotated[str, Field(min_length=1, max_length=MAX_CODE_LENGTH, description="不区分大小写，分隔符可省略")]


@router.post("/redeem", summary="使用兑换码")
async def redeem(
    body: RedeemBody, context: Annotated[RequestContext, Depends(Access(scope="points", limit="redeem"))]
) -> Envelope[RedeemResponse]:
    database = context.runtime.database
    points = await redeem_code(database, context.user_id, body.code)
    found = await get_balance(database, context.user_id)
    expires = format_local(found.expires, context.runtime.settings.zone)
    return Envelope(data=RedeemResponse(points=points, balance=found.available, expireTime=expires))
