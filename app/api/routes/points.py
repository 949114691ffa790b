"""`/user/points/...`: the balance, the ledger's records, and redeem codes."""

import math
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field

from app.api.access.callers import Access, RequestContext
from app.api.routing import DirectRoute
from app.api.schemas import BalanceResponse, Envelope, Page, RecordResponse, RedeemResponse
from app.datetimes import format_local
from app.points.balance import get_balance, list_records
from app.points.redeem_codes import MAX_CODE_LENGTH, redeem_code

router = APIRouter(prefix="/user/points", route_class=DirectRoute, tags=["积分"])

ReadAccess = Annotated[RequestContext, Depends(Access(scope="points", limit="read"))]
Kind = Literal["grant", "deduct", "settle", "refund", "expire", "adjust"]


@router.get("/consumption/balance", summary="查询积分余额")
async def balance(context: ReadAccess) -> Envelope[BalanceResponse]:
    found = await get_balance(context.runtime.database, context.user_id)
    expires = format_local(found.expires, context.runtime.settings.zone)
    return Envelope(
        data=BalanceResponse(userId=context.user_id, balance=found.available, expireTime=expires, held=found.held)
    )


@router.get("/consumption/records", summary="积分明细，最新的在前")
async def records(
    context: ReadAccess,
    page: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
    size: Annotated[int, Query(ge=1, le=100)] = 10,
    kind: Annotated[Kind | Literal[""] | None, Query()] = None,
    task_no: Annotated[str | None, Query(alias="taskNo", max_length=40)] = None,
) -> Envelope[Page[RecordResponse]]:
    rows, total = await list_records(
        context.runtime.database, context.user_id, kind=kind or None, task_no=task_no or None, page=page, size=size
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
    return Envelope(data=Page(records=responses, total=total, page=page, size=size, pages=math.ceil(total / size)))


class RedeemBody(BaseModel):
    """A redeem code. It moves money, so types are strict and unknown fields are refused."""

    model_config = ConfigDict(strict=True, extra="forbid")

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
