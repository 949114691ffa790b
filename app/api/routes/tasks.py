"""`/user/ai/...`: models, quotes, submits, cancels, one task, and the list of tasks."""

import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, WithJsonSchema

from app.api.access.callers import Access, RequestContext
from app.api.routing import DirectRoute
from app.api.schemas import Envelope, ModelResponse, Page, QuoteResponse, SubmitResponse, paged
from app.catalog.models import aspect_ratio, list_models
from app.datetimes import parse_datetime
from app.egress import MAX_URL_LENGTH
from app.messaging.pubsub import Subscription
from app.tasks.cancel import cancel_task
from app.tasks.idempotency import FIELD, check_key
from app.tasks.queries import Filters, get_task, list_tasks
from app.tasks.submit import quote_task, submit_task
from app.tasks.validation import Submission, base_price
from app.tasks.view import TaskView, view_task
from app.upstreams.action import params_schema

SUBMIT_PATHS = ("/user/ai/tasks/submit", "/user/ai/tasks/quote")
router = APIRouter(prefix="/user/ai", route_class=DirectRoute, tags=["AI 任务"])

ReadAccess = Annotated[RequestContext, Depends(Access(scope="tasks:read", limit="read"))]
SubmitAccess = Annotated[RequestContext, Depends(Access(scope="tasks:submit", limit="submit"))]
QuoteAccess = Annotated[RequestContext, Depends(Access(scope="tasks:submit", limit="read"))]
RECHECK_SECONDS = 2.0  # how often a waiting request reads the task, because notices may be lost
ENDED = frozenset({"completed", "failed"})
TaskType = Literal["text_to_image", "image_to_image", "text_to_video", "image_to_video", "image_normalize"]
Status = Literal["created", "queued", "processing", "completed", "failed"]
REPLAYED_HEADER = "Idempotency-Replayed"
MAX_END_USER_LENGTH = 128
PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$"  # no control characters
EndUser = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_END_USER_LENGTH, pattern=PRINTABLE),
]
NO_NUL = r"^[^\x00]*$"  # SQLite's LIKE ends a pattern at a NUL, so `%\0` would match every task

IMAGE_URL: dict[str, Any] = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"type": "null"}],
    "description": "图片链接，或用逗号连接的多个链接，或 JSON 数组字符串，或数组",
}


class SubmitBody(BaseModel):
    """A task to submit. Unknown fields are ignored here and refused in `params`."""

    model_config = ConfigDict(
        strict=True,
        extra="ignore",
        json_schema_extra={"examples": [{"modelName": "sc_soraimg_text_1x1", "prompt": "一只可爱的柴犬"}]},
    )

    modelName: Annotated[str, Field(min_length=1, max_length=100)]
    prompt: Annotated[str, Field(pattern=NO_NUL, description="除图片标准化外必填")] = ""
    imageUrl: Annotated[Any, WithJsonSchema(IMAGE_URL)] = None  # `Submission` validates it, with one message
    params: Annotated[dict[str, Any] | None, Field(description="模型参数，见 /user/ai/models")] = None
    callbackUrl: Annotated[str | None, Field(max_length=MAX_URL_LENGTH, description="任务结束时通知此链接")] = None
    endUser: Annotated[EndUser | None, Field(description="您的终端用户，由您命名，用于额度与筛选")] = None

    def to_submission(self, key: str | None = None) -> Submission:
        callback_url = self.callbackUrl or None
        return Submission(
            self.modelName, self.prompt, self.imageUrl, self.params or {}, key, callback_url, self.endUser
        )


IdempotencyKey = Annotated[str | None, Header(alias=FIELD, description="同一键加同一请求体，24 小时内只创建一个任务")]
Replayed = {"headers": {REPLAYED_HEADER: {"schema": {"type": "string"}, "description": "true: 该键之前已创建此任务"}}}


@router.post("/tasks/submit", summary="提交任务，立即扣除积分", responses={200: Replayed})
async def submit(
    body: SubmitBody, context: SubmitAccess, response: Response, key: IdempotencyKey = None
) -> Envelope[SubmitResponse]:
    caller = context.caller
    caller.check_model(body.modelName)
    submission = body.to_submission(check_key(key))
    result = await submit_task(context.runtime, caller.user_id, submission, key_id=caller.key_id)
    if result.is_replay:
        response.headers[REPLAYED_HEADER] = "true"
    return Envelope(data=SubmitResponse(**view_task(context.runtime, result.row), balance=result.balance))


@router.post("/tasks/{task_no}/cancel", summary="取消尚未开始生成的任务，退还积分")
async def cancel(task_no: str, context: SubmitAccess) -> Envelope[TaskView]:
    row = await cancel_task(context.runtime, context.user_id, task_no)
    return Envelope(data=view_task(context.runtime, row))


@router.post("/tasks/quote", summary="查询提交该任务所需积分，不扣费")
async def quote(body: SubmitBody, context: QuoteAccess) -> Envelope[QuoteResponse]:
    """Body and errors are those of submit, which computes the price with the same function."""
    context.caller.check_model(body.modelName)
    price = await quote_task(context.runtime, context.user_id, body.to_submission())
    return Envelope(
        data=QuoteResponse(modelName=body.modelName, pointsCost=price["points_cost"], balance=price["balance"])
    )


@router.get("/tasks/list", summary="任务列表，最新的在前")
async def list_(
    context: ReadAccess,
    page: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
    size: Annotated[int, Query(ge=1, le=100)] = 10,
    task_type: Annotated[TaskType | Literal[""] | None, Query(alias="taskType")] = None,
    status: Annotated[Status | Literal[""] | None, Query()] = None,
    model_name: Annotated[str | None, Query(alias="modelName", max_length=100)] = None,
    end_user: Annotated[str | None, Query(alias="endUser", max_length=MAX_END_USER_LENGTH)] = None,
    keyword: Annotated[str | None, Query(max_length=200, pattern=NO_NUL)] = None,
    start_time: Annotated[str | None, Query(alias="startTime", max_length=40)] = None,
    end_time: Annotated[str | None, Query(alias="endTime", max_length=40)] = None,
) -> Envelope[Page[TaskView]]:
    runtime, zone = context.runtime, context.runtime.settings.zone
    filters = Filters(
        task_type=task_type or None,
        status=status or None,
        model_name=model_name or None,
        end_user=(end_user or "").strip() or None,
        keyword=keyword or None,
        start=parse_datetime("startTime", start_time or None, zone),
        end=parse_datetime("endTime", end_time or None, zone),
    )
    rows, total = await list_tasks(runtime.database, context.user_id, filters, page=page, size=size)
    records = [view_task(runtime, row) for row in rows]
    return paged(records, total, page, size)


@router.get("/tasks/{task_no}", summary="查询单个任务")
async def get(
    request: Request,
    task_no: str,
    context: ReadAccess,
    wait: Annotated[int, Query(ge=0, le=60, description="最多等待多少秒，任务结束即返回")] = 0,
) -> Envelope[TaskView]:
    row = await get_task(context.runtime.database, context.user_id, task_no)
    if wait and row["status"] not in ENDED:
        with request.app.state.connection_limiter.acquire_wait(context.user_id):
            row = await _wait_for_end(request, context, task_no, wait)
    return Envelope(data=view_task(context.runtime, row))


async def _wait_for_end(request: Request, context: RequestContext, task_no: str, seconds: int) -> Any:
    """The task's row when it ends, or after `seconds`, or when the caller has hung up."""
    deadline = time.monotonic() + seconds
    async with context.runtime.pubsub.subscribe(context.user_id) as subscription:
        while True:
            row = await get_task(context.runtime.database, context.user_id, task_no)
            now = time.monotonic()
            if row["status"] in ENDED or now >= deadline or subscription.is_closed or await request.is_disconnected():
                return row
            await _wait_for_change(subscription, task_no, min(deadline - now, RECHECK_SECONDS))


async def _wait_for_change(subscription: Subscription, task_no: str, seconds: float) -> None:
    """Waits until this task may have changed, at most `seconds`. Changes of other tasks do not end the wait."""
    deadline = time.monotonic() + seconds
    while not subscription.is_closed and (remaining := deadline - time.monotonic()) > 0:
        await subscription.wait(remaining)
        numbers, has_missed = subscription.drain()
        if task_no in numbers or has_missed:
            return


@router.get("/models", summary="可用模型与价格")
async def models(context: ReadAccess) -> Envelope[list[ModelResponse]]:
    runtime, listed = context.runtime, []
    for model in await list_models(runtime.database):
        points_cost = base_price(runtime.actions[model.action], model)
        if points_cost is None or not context.caller.may_use(model.model_name):
            continue
        listed.append(
            ModelResponse(
                modelName=model.model_name,
                description=model.description,
                taskType=model.task_type,
                pointsCost=points_cost,
                priceRules=model.price_rules or [],
                aspectRatio=aspect_ratio(model),
                params=params_schema(runtime.actions[model.action].params[model.task_type], model.fixed),
            )
        )
    return Envelope(data=listed)
