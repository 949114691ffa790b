"""`/admin/...`: requests of administrators. Every route requires the scope `admin`."""

from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from app.accounts.users import user_exists
from app.api.access.callers import Access, RequestContext
from app.api.routing import DirectRoute
from app.api.schemas import Envelope, GrantResponse
from app.datetimes import parse_datetime
from app.errors import NotFound
from app.points import ledger

router = APIRouter(prefix="/admin", route_class=DirectRoute, tags=["管理"])

NO_NUL = r"^[^\x00]*$"


class GrantBody(BaseModel):
    """A top-up. It moves money, so types are strict and unknown fields are refused."""

    model_config = ConfigDict(strict=True, extra="forbid")

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


@router.post("/points/grants", summary="充值积分，同一 ref 只生效一次")
async def grant(
    body: GrantBody, context: Annotated[RequestContext, Depends(Access(scope="admin", limit="admin"))]
) -> Envelope[GrantResponse]:
    database = context.runtime.database
    expires = parse_datetime("expires", body.expires, context.runtime.settings.zone)
    if not await user_exists(database, body.userId):
        raise NotFound("用户不存在")
    applied, balance = await ledger.grant(
        database, user_id=body.userId, points=body.points, ref=body.ref, remark=body.remark, expires=expires
    )
    return Envelope(data=GrantResponse(userId=body.userId, balance=balance, applied=applied))
