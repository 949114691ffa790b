"""`/user/points/...`: the balance, the records it is made of, and codes for more."""

import math
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from app.api.access import PointsDesk, RedeemDesk
from app.api.schemas import BalanceResponse, Envelope, Page, RecordResponse, RedeemResponse
from app.datetimes import format_local
from app.points.balance import get_balance, list_records
from app.points.redeem_codes import redeem_code

router = APIRouter(prefix="/user/points", tags=["积分"])

Kind = Literal["grant", "deduct", "settle", "refund", "expire", "adjust"]


@router.get("/consumption/balance", summary="查询积分余额")
async def balance(context: PointsDesk) -> Envelope[BalanceResponse]:
    found = await get_balance(context.runtime.database, context.user_id)
    expires = format_local(found.expires, context.runtime.settings.zone)
    return Envelope(
        data=BalanceResponse(userId=context.user_id, balance=found.available, expireTime=expires, held=found.held)
    )


@router.get("/consumption/records", summary="积分明细，最新的在前")
async def records(
    context: PointsDesk,
    page: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
    size: Annotated[int, Query(ge=1, le=100)] = 10,
    kind: Annotated[Kind | Literal[""] | None, Query()] = None,
    task_no: Annotated[str | None, Query(alias="taskNo", max_length=40)] = None,
) -> Envelope[Page[RecordResponse]]:
    rows, total = await list_records(
        context.runtime.database, context.user_id, kind=kind or None, task_no=task_no or None, page=page, size=size
    )
    told = [
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
    return Envelope(data=Page(records=told, total=total, page=page, size=size, pages=math.ceil(total / size)))


class RedeemBody(BaseModel):
    """Money: no field is guessed and none is ignored."""

    model_config = ConfigDict(strict=True, extra="forbid")

    code: Annotated[str, Field(min_length=1, max_length=100, description="不区分大小写，分隔符可省略")]


@router.post("/redeem", summary="使用兑换码")
async def redeem(body: RedeemBody, context: RedeemDesk) -> Envelope[RedeemResponse]:
    database = context.runtime.database
    points = await redeem_code(database, context.user_id, body.code)
    found = await get_balance(database, context.user_id)
    expires = format_local(found.expires, context.runtime.settings.zone)
    return Envelope(data=RedeemResponse(points=points, balance=found.available, expireTime=expires))
