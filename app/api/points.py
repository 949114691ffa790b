"""`/user/points/...`: the balance."""

from fastapi import APIRouter

from app.api.deps import PointsDesk
from app.api.wire import BalanceData, Envelope
from app.points.statement import get_balance

router = APIRouter(prefix="/user/points", tags=["积分"])


@router.get("/consumption/balance", summary="查询积分余额")
async def balance(desk: PointsDesk) -> Envelope[BalanceData]:
    found = await get_balance(desk.runtime.sessions, desk.user_id)
    return Envelope(data=BalanceData(userId=desk.user_id, balance=found.available, expireTime=None, held=found.held))
