"""The envelope, and the shapes of what is answered. Every JSON answer is `{"code", "message", "data"}`."""

import json
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, Field
from starlette.responses import JSONResponse

T = TypeVar("T")


class Envelope(BaseModel, Generic[T]):
    """Success is code 200, message `success`. The HTTP status equals `code`."""

    code: int = 200
    message: str = "success"
    data: T


class Page(BaseModel, Generic[T]):
    """One page of records; `pages` is how many there are, `page` counts from 1."""

    records: list[T]
    total: int
    page: int
    size: int
    pages: int


class TaskData(BaseModel):
    """A task as its owner sees it. Times are local (`TIMEZONE`), to the second; links are permanent."""

    taskNo: str
    modelName: str
    status: str = Field(description="created, queued, processing, completed, failed")
    taskType: str
    progress: int = Field(description="0-100，仅完成时为 100")
    promptSnippet: str
    prompt: str
    imageUrl: str | list[str] | None
    params: dict[str, Any]
    resultUrl: str | None
    resultUrls: list[str]
    thumbnailUrls: list[str]
    pointsCost: int
    pointsRefunded: int
    createTime: str
    updateTime: str
    completeTime: str | None
    errorCode: str | None
    errorMessage: str | None


class SubmittedData(TaskData):
    """The stored task, and the balance after its charge."""

    balance: int


class BalanceData(BaseModel):
    """`balance` can be spent; `held` belongs to tasks still running; `expireTime` is when the next points lapse."""

    userId: int
    balance: int
    expireTime: str | None
    held: int


class ModelData(BaseModel):
    """A model a caller may name. `params` is the JSON Schema of what may be set on it."""

    modelName: str
    description: str
    taskType: str
    pointsCost: int
    aspectRatio: str | None
    params: dict[str, Any]


class ErrorData(BaseModel):
    """Any error: a Chinese message, a stable code, and the id to quote to support."""

    code: int
    message: str
    data: None = None
    errorCode: str
    requestId: str


class JsonAnswer(JSONResponse):
    """UTF-8 whatever is inside: a lone surrogate echoed from a caller must not turn a 400 into a 500."""

    def render(self, content: Any) -> bytes:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8", "replace")


def error_answer(
    status: int, error_code: str, message: str, request_id: str, headers: dict[str, str] | None = None
) -> JsonAnswer:
    body = {
        "code": status,
        "message": message,
        "data": None,
        "errorCode": error_code,
        "requestId": request_id,
    }
    return JsonAnswer(body, status_code=status, headers=headers)
