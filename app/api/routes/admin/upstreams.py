"""`/admin/upstreams`: our account at SEE2AI, the breakers, the waiting tasks, and the bill of a day."""

from decimal import Decimal
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import Field

from app.admin.reports import PLACES
from app.admin.upstreams.bill import ActionBill, Bill, ModelBill, daily_bill
from app.admin.upstreams.state import read_backlog, read_breakers, read_unknown_states
from app.api.routes.admin.actions import AdminAccess
from app.api.routing import DirectRoute
from app.api.schemas import Envelope, Schema
from app.datetimes import format_local
from app.reports.period import read_day, today
from app.upstreams.see2ai.account import TOKENS_PER_RMB, AccountMonitor

router = APIRouter(prefix="/admin/upstreams", route_class=DirectRoute, tags=["管理"])

ACCOUNT_SECONDS = 5.0
"""How long a request waits for SEE2AI. The answer is at most a minute old."""
RMB_PER_POINT = Decimal("0.02")


class AccountView(Schema):
    """Our account at SEE2AI, as `GET /api/v1/me` of the last minute says."""

    status: str = Field(
        description="ok, unreachable, key rejected, insufficient balance, rate limited, server error, "
        "unreadable answer, no key（未设置密钥）, no answer yet（尚无应答）"
    )
    name: str | None
    balanceTokens: float | None
    balanceRmb: float | None
    detail: str


class Breaker(Schema):
    """The circuit breaker of a provider."""

    provider: str
    state: str = Field(description="closed, open, trial（放行一个新任务试探）")
    blocksSubmits: bool
    blocksPolls: bool
    reason: str = Field(description="打开的原因，即 SEE2AI 的错误信息")
    sinceTime: str | None
    untilTime: str | None = Field(description="下一次试探的时间")


class Backlog(Schema):
    """The living tasks at one step."""

    step: str
    tasks: int
    due: int = Field(description="到期且没有被 worker 领取")
    held: int = Field(description="正由 worker 处理")
    oldestTime: str
    oldestSeconds: float


class UnknownState(Schema):
    """A word of SEE2AI that the gateway does not know: the tasks count as running."""

    state: str
    tasks: int


class UpstreamsView(Schema):
    account: AccountView
    breakers: list[Breaker]
    backlog: list[Backlog]
    unknownStates: list[UnknownState]


class ModelCost(Schema):
    """A model on the day: what we charged, and its cost at SEE2AI."""

    modelName: str
    action: str
    tasks: int
    completed: int
    failed: int
    running: int
    jobs: int = Field(description="SEE2AI 接受的任务")
    pointsSettled: int
    pointsRefunded: int
    pointsHeld: int
    incomeRmb: float
    costTokens: float | None
    costRmb: float | None
    isShare: bool = Field(description="多个模型共用一个动作，成本按任务数分摊")
    marginPercent: float | None


class ActionCost(Schema):
    """An action on the day, by SEE2AI and by our tasks."""

    action: str
    upstreamCalls: int | None
    upstreamCostTokens: float | None
    jobs: int
    unowned: int | None = Field(description="SEE2AI 计费、但没有对应任务的调用数；为任务标准化参考图也在其中")


class UnownedJob(Schema):
    action: str
    upstreamTaskId: str


class BillView(Schema):
    """The bill of a local day."""

    date: str
    isDated: bool = Field(description="false: SEE2AI 的回答没有注明日期，数字可能不止这一天")
    rmbPerPoint: float
    incomeRmb: float
    costRmb: float | None
    models: list[ModelCost]
    actions: list[ActionCost]
    unownedJobs: list[UnownedJob] = Field(description="SEE2AI 列出、但没有对应任务的作业，最多 100 个")


@router.get("", summary="上游账户余额、熔断器、各步骤积压和未知状态")
async def upstreams(context: AdminAccess, request: Request) -> Envelope[UpstreamsView]:
    runtime, zone = context.runtime, context.runtime.settings.zone
    account = await _account(request, has_key=bool(runtime.settings.see2ai_api_key))
    breakers = [
        Breaker(
            provider=one.provider,
            state=one.state,
            blocksSubmits=one.blocks_submits,
            blocksPolls=one.blocks_polls,
            reason=one.reason,
            sinceTime=format_local(one.since, zone),
            untilTime=format_local(one.until, zone),
        )
        for one in await read_breakers(runtime)
    ]
    backlog = [
        Backlog(
            step=one.step,
            tasks=one.tasks,
            due=one.due,
            held=one.held,
            oldestTime=str(format_local(one.oldest, zone)),
            oldestSeconds=round(one.oldest_seconds, 1),
        )
        for one in await read_backlog(runtime.database)
    ]
    unknown = [UnknownState(state=word, tasks=number) for word, number in await read_unknown_states(runtime.database)]
    return Envelope(data=UpstreamsView(account=account, breakers=breakers, backlog=backlog, unknownStates=unknown))


@router.get("/bill", summary="某日 SEE2AI 用量与我方扣费的对照")
async def bill(
    context: AdminAccess,
    day: Annotated[
        str, Query(alias="date", max_length=10, description="本地日期，默认今天", examples=["2026-11-28"])
    ] = "",
    rmb_per_point: Annotated[
        float, Query(alias="rmbPerPoint", ge=0, le=1000, description="每积分的售价（元）")
    ] = float(RMB_PER_POINT),
) -> Envelope[BillView]:
    runtime = context.runtime
    with PLACES.take():
        found = await daily_bill(runtime, read_day("date", day) if day else today(runtime.settings.zone))
    return Envelope(data=_bill_view(found, Decimal(str(rmb_per_point))))


async def _account(request: Request, *, has_key: bool) -> AccountView:
    monitor: AccountMonitor = request.app.state.account_monitor
    account = await monitor.get(ACCOUNT_SECONDS) if has_key else None
    if account is None:
        status = "no answer yet" if has_key else "no key"
        return AccountView(status=status, name=None, balanceTokens=None, balanceRmb=None, detail="")
    return AccountView(
        status=account.status,
        name=account.name,
        balanceTokens=_plain(account.balance_tokens),
        balanceRmb=_plain(account.balance_rmb),
        detail=account.detail,
    )


def _bill_view(bill: Bill, rmb_per_point: Decimal) -> BillView:
    costs = [one.upstream_cost_tokens for one in bill.actions]
    known = [cost for cost in costs if cost is not None]
    total = sum(known, Decimal()) / TOKENS_PER_RMB if len(known) == len(costs) else None
    models = [_model_cost(one, rmb_per_point) for one in bill.models]
    return BillView(
        date=bill.day.isoformat(),
        isDated=bill.is_dated,
        rmbPerPoint=float(rmb_per_point),
        incomeRmb=float(sum((one.points_settled for one in bill.models), 0) * rmb_per_point),
        costRmb=_plain(total),
        models=models,
        actions=[_action_cost(one) for one in bill.actions],
        unownedJobs=[UnownedJob(action=action, upstreamTaskId=job) for action, job in bill.unowned_jobs],
    )


def _model_cost(one: ModelBill, rmb_per_point: Decimal) -> ModelCost:
    margin = one.margin(rmb_per_point)
    return ModelCost(
        modelName=one.model_name,
        action=one.action,
        tasks=one.tasks,
        completed=one.completed,
        failed=one.failed,
        running=one.running,
        jobs=one.jobs,
        pointsSettled=one.points_settled,
        pointsRefunded=one.points_refunded,
        pointsHeld=one.points_held,
        incomeRmb=float(one.points_settled * rmb_per_point),
        costTokens=_plain(one.cost_tokens),
        costRmb=_plain(one.cost_rmb),
        isShare=one.is_share,
        marginPercent=None if margin is None else round(float(margin * 100), 1),
    )


def _action_cost(one: ActionBill) -> ActionCost:
    return ActionCost(
        action=one.action,
        upstreamCalls=one.upstream_calls,
        upstreamCostTokens=_plain(one.upstream_cost_tokens),
        jobs=one.jobs,
        unowned=one.unowned,
    )


def _plain(number: Decimal | None) -> float | None:
    return None if number is None else round(float(number), 4)
