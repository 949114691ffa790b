"""`/user/ai/...`: models, submit, one task, the list of tasks."""

import asyncio
import math
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from app.api.deps import SubmitDesk, TaskDesk
from app.api.wire import Envelope, ModelData, Page, SubmittedData, TaskData
from app.errors import InvalidParameter
from app.points.models import list_models
from app.points.prices import quote
from app.runtime import Runtime
from app.see2ai.actions.action import caller_schema
from app.tasks.find import Filters, get_task, list_tasks
from app.tasks.submit import Submission, submit_task
from app.tasks.view import view_task

router = APIRouter(prefix="/user/ai", tags=["AI 任务"])

LOOK_AGAIN_SECONDS = 2.0  # while waiting for a task: notices may be lost, the clock is not
ENDED = frozenset({"completed", "failed"})
TaskType = Literal["text_to_image", "image_to_image", "text_to_video", "image_to_video", "image_normalize"]
Status = Literal["created", "queued", "processing", "completed", "failed"]
WITHOUT_NUL = r"^[^\x00]*$"  # C ends a string at a NUL, and SQLite's LIKE with it: `%\0` would find everything


IMAGE_URL: dict[str, Any] = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"type": "null"}],
    "description": "图片链接，或 JSON 数组字符串，或数组",
}


class SubmitBody(BaseModel):
    """Unknown fields here are ignored; unknown fields in `params` are refused."""

    model_config = ConfigDict(strict=True, extra="ignore")

    modelName: Annotated[str, Field(min_length=1, max_length=100)]
    prompt: Annotated[str, Field(min_length=1, pattern=WITHOUT_NUL)]
    imageUrl: Annotated[Any, WithJsonSchema(IMAGE_URL)] = None  # judged where its forms are known, by one text
    params: Annotated[dict[str, Any] | None, Field(description="模型参数，见 /user/ai/models")] = None


@router.post("/tasks/submit", summary="提交任务，立即扣除积分")
async def submit(body: SubmitBody, desk: SubmitDesk) -> Envelope[SubmittedData]:
    asked = Submission(body.modelName, body.prompt, body.imageUrl, body.params or {})
    row = await submit_task(desk.runtime, desk.user_id, asked)
    return Envelope(data=SubmittedData.model_construct(**view_task(desk.runtime, row), balance=row["balance"]))


@router.get("/tasks/list", summary="任务列表，最新的在前")
async def list_(
    desk: TaskDesk,
    page: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
    size: Annotated[int, Query(ge=1, le=100)] = 10,
    task_type: Annotated[TaskType | Literal[""] | None, Query(alias="taskType")] = None,
    status: Annotated[Status | Literal[""] | None, Query()] = None,
    model_name: Annotated[str | None, Query(alias="modelName", max_length=100)] = None,
    keyword: Annotated[str | None, Query(max_length=200, pattern=WITHOUT_NUL)] = None,
    start_time: Annotated[str | None, Query(alias="startTime", max_length=40)] = None,
    end_time: Annotated[str | None, Query(alias="endTime", max_length=40)] = None,
) -> Envelope[Page[TaskData]]:
    runtime = desk.runtime
    filters = Filters(
        task_type=task_type or None,
        status=status or None,
        model_name=model_name or None,
        keyword=keyword or None,
        start=_moment(runtime, "startTime", start_time),
        end=_moment(runtime, "endTime", end_time),
    )
    rows, total = await list_tasks(runtime.sessions, desk.user_id, filters, page=page, size=size)
    records = [TaskData.model_construct(**view_task(runtime, row)) for row in rows]
    return Envelope(data=Page(records=records, total=total, page=page, size=size, pages=math.ceil(total / size)))


@router.get("/tasks/{task_no}", summary="查询单个任务")
async def get(
    task_no: str,
    desk: TaskDesk,
    wait: Annotated[int, Query(ge=0, le=60, description="最多等待多少秒，任务结束即返回")] = 0,
) -> Envelope[TaskData]:
    row = await get_task(desk.runtime.sessions, desk.user_id, task_no)
    if wait and row["status"] not in ENDED:
        row = await _wait_for_end(desk.runtime, desk.user_id, task_no, wait)
    return Envelope(data=TaskData.model_construct(**view_task(desk.runtime, row)))


async def _wait_for_end(runtime: Runtime, user_id: int, task_no: str, seconds: int) -> Any:
    """Woken by the task's notices; looks by itself now and then, because a notice may be lost."""
    until = asyncio.get_running_loop().time() + seconds
    async with runtime.notices.listen(user_id) as changed:
        while True:
            row = await get_task(runtime.sessions, user_id, task_no)
            left = until - asyncio.get_running_loop().time()
            if row["status"] in ENDED or left <= 0:
                return row
            try:
                async with asyncio.timeout(min(left, LOOK_AGAIN_SECONDS)):
                    while await changed.get() != task_no:
                        pass
            except TimeoutError:
                continue


@router.get("/models", summary="可用模型与价格")
async def models(desk: TaskDesk) -> Envelope[list[ModelData]]:
    return Envelope(
        data=[
            ModelData(
                modelName=model.model_name,
                description=model.description,
                taskType=model.task_type,
                pointsCost=quote(model),
                aspectRatio=model.params.get("aspectRatio"),
                params=caller_schema(model.spec().params, model.params),
            )
            for model in await list_models(desk.runtime.sessions)
        ]
    )


def _moment(runtime: Runtime, field: str, text: str | None) -> datetime | None:
    """An ISO time in UTC; without an offset it is local (`TIMEZONE`), as answers are."""
    if not text:
        return None
    # The first blank may stand for the "T"; the "+" of an offset arrives as another where the caller did not encode it.
    text = text.strip().replace(" ", "T", "T" not in text).replace(" ", "+")
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=runtime.settings.zone)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidParameter(field, "须为 ISO 时间，例如 2025-10-26T15:30:45") from None
