"""The envelope, and the shapes of what is answered. Every JSON answer is `{"code", "message", "data"}`."""

import json
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, Field
from starlette.responses import JSONResponse

from app.tasks.view import TaskView

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


class UploadResponse(BaseModel):
    """What is stored under `url`: a converted picture differs from what was sent."""

    url: str = Field(description="链接，可用作 imageUrl 等参数")
    type: str = Field(description="MIME 类型")
    bytes: int
    width: int | None
    height: int | None
    durationSeconds: float | None
    kind: str = Field(description="image, video, audio")


class TicketResponse(BaseModel):
    """Opens one stream of tasks: `?ticket=`, once, within `expiresIn` seconds."""

    ticket: str
    expiresIn: int


class QuoteResponse(BaseModel):
    """What a submit of the same body would take now, and what the caller has."""

    modelName: str
    pointsCost: int
    balance: int


class SubmitResponse(TaskView):
    """The stored task, and the balance after its charge."""

    balance: int


class BalanceResponse(BaseModel):
    """`balance` can be spent; `held` belongs to tasks still running; `expireTime` is when the next points lapse."""

    userId: int
    balance: int
    expireTime: str | None
    held: int


class RecordResponse(BaseModel):
    """One entry of the caller's ledger: what happened to the balance, and what it was then."""

    id: int
    kind: str = Field(description="grant, deduct, settle, refund, expire, adjust")
    points: int = Field(description="余额的变化，带正负号；settle 为 0")
    balanceAfter: int
    taskNo: str | None
    remark: str
    createTime: str


class RedeemResponse(BaseModel):
    """What the code was worth, and the balance with it; `expireTime` is when the next points of the balance lapse."""

    points: int
    balance: int
    expireTime: str | None


class GrantResponse(BaseModel):
    """The top-up's user, their balance, and whether this request applied it (false: an earlier one did)."""

    userId: int
    balance: int
    applied: bool


class ModelResponse(BaseModel):
    """A model a caller may name. `params` is the JSON Schema of what may be set on it.

    `pointsCost` is the price with nothing set; where `priceRules` is not empty, ask `/user/ai/tasks/quote`.
    """

    modelName: str
    description: str
    taskType: str
    pointsCost: int
    priceRules: list[dict[str, Any]]
    aspectRatio: str | None
    params: dict[str, Any]


class SecretResponse(BaseModel):
    """What signs from now on; until `previousExpireTime` the secret before it signs as well."""

    secret: str
    previousExpireTime: str | None


class EndpointResponse(BaseModel):
    """A standing receiver of the caller's ends of tasks."""

    id: int
    url: str
    events: list[str] = Field(description="task.completed, task.failed")
    enabled: bool
    disabledReason: str | None = Field(description="manual, failing（连续失败 24 小时）, gone（返回 410）")
    disabledTime: str | None
    createTime: str


class NewEndpointResponse(EndpointResponse):
    """The endpoint with its secret, which no list shows."""

    secret: str


class DeliveryResponse(BaseModel):
    """One message to one receiver. `endpointId` is null for the task's own callbackUrl; `url` once it is deleted.

    `messageId` is what the receiver reads as `webhook-id`. The outcome is of the newest attempt.
    """

    id: int
    messageId: str
    type: str
    taskNo: str
    endpointId: int | None
    url: str | None
    status: str = Field(description="pending, delivered, failed")
    attempts: int
    nextAttemptTime: str | None
    outcome: str | None = Field(
        description="delivered, redirect, rejected, gone, error, timeout, broken, unreachable, disabled, internal"
    )
    statusCode: int | None
    durationMs: int | None
    createTime: str
    deliveredTime: str | None


class WebhookTestResponse(BaseModel):
    """What became of the test; the outcomes are those of deliveries."""

    delivered: bool
    statusCode: int | None
    durationMs: int | None
    outcome: str


class ErrorResponse(BaseModel):
    """Any error: a Chinese message, a stable code, and the id to quote to support."""

    code: int
    message: str
    data: None = None
    errorCode: str
    requestId: str


class SafeJSONResponse(JSONResponse):
    """UTF-8 whatever is inside: a lone surrogate echoed from a caller must not turn a 400 into a 500."""

    def render(self, content: Any) -> bytes:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8", "replace")


def error_body(
    status: int, error_code: str, message: str, request_id: str, headers: dict[str, str] | None = None
) -> SafeJSONResponse:
    body = {
        "code": status,
        "message": message,
        "data": None,
        "errorCode": error_code,
        "requestId": request_id,
    }
    return SafeJSONResponse(body, status_code=status, headers=headers)
