"""`/user/points/...`: the balance."""

from fastapi import APIRouter

from app.api.deps import LimitsDep, PointsCaller, RuntimeDep
from app.api.wire import BalanceData, Envelope
from app.points.statement import get_balance

router = APIRouter(prefix="/user/points", tags=["积分"])


@router.get("/consumption/balance", summary="查询积分余额")
async def balance(caller: PointsCaller, runtime: RuntimeDep, limits: LimitsDep) -> Envelope[BalanceData]:
    await limits.check("read", caller.user_id, runtime.settings.read_rate_per_minute)
    found = await get_balance(runtime.sessions, caller.user_id)
    return Envelope(data=BalanceData(userId=caller.user_id, balance=found.available, expireTime=None, held=found.held))
