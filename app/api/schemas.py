"""Response bodies. Every JSON response is the envelope `{"code", "message", "data"}`."""

import json
import math
from math import inf
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse

from app.tasks.view import TaskView

T = TypeVar("T")
MAX_INT32 = 2**31 - 1


class Schema(BaseModel):
    """The documented shape of an answer. Pydantic compiles it at its first use: most are never validated."""

    model_config = ConfigDict(defer_build=True)


class Envelope(Schema, Generic[T]):
    """A success: `code` is 200 and `message` is `success`. `code` equals the HTTP status."""

    code: int = 200
    message: str = "success"
    data: T


class StrictBody(BaseModel):
    """The body of a request that changes something: types are strict, and unknown fields are refused."""

    model_config = ConfigDict(strict=True, extra="forbid")


class Page(Schema, Generic[T]):
    """One page of records. `page` counts from 1; `pages` is the number of pages."""

    records: list[T]
    total: int
    page: int
    size: int
    pages: int


def paged(records: list[T], total: int, page: int, size: int) -> Envelope[Page[T]]:
    """The answer of a list. `total` is the number of all its records."""
    return Envelope(data=Page(records=records, total=total, page=page, size=size, pages=math.ceil(total / size)))


class UploadResponse(Schema):
    """The stored file. The gateway converts some images, so it may differ from the sent file."""

    url: str = Field(description="链接，可用作 imageUrl 等参数")
    type: str = Field(description="MIME 类型")
    bytes: int
    width: int | None
    height: int | None
    durationSeconds: float | None
    kind: str = Field(description="image, video, audio")


class TicketResponse(Schema):
    """A ticket for `?ticket=`. It opens one stream, once, within `expiresIn` seconds."""

    ticket: str
    expiresIn: int


class QuoteResponse(Schema):
    """The price of a submit with the same body, and the caller's balance."""

    modelName: str
    pointsCost: int
    balance: int


class SubmitResponse(TaskView):
    """The stored task, and the balance after its charge."""

    balance: int


class BalanceResponse(Schema):
    """`balance` can be spent; running tasks hold `held`; `expireTime` is when the next points expire."""

    userId: int
    balance: int
    expireTime: str | None
    held: int


class RecordResponse(Schema):
    """One ledger entry: a change of the balance, and the balance after it."""

    id: int
    kind: str = Field(description="grant, deduct, settle, refund, expire, adjust")
    points: int = Field(description="余额的变化，带正负号；settle 为 0")
    balanceAfter: int
    taskNo: str | None
    remark: str
    createTime: str


class RedeemResponse(Schema):
    """The code's points and the balance that includes them; `expireTime` is when the next points expire."""

    points: int
    balance: int
    expireTime: str | None


class GrantResponse(Schema):
    """The user, their balance, and `applied`: false where an earlier request applied the same top-up."""

    userId: int
    balance: int
    applied: bool


class ModelResponse(Schema):
    """A model on sale. `params` is the JSON Schema of its parameters.

    `pointsCost` is the price without parameters. With `priceRules`, `/user/ai/tasks/quote` gives the price.
    """

    modelName: str
    description: str
    taskType: str
    pointsCost: int
    priceRules: list[dict[str, Any]]
    aspectRatio: str | None
    params: dict[str, Any]


class SecretResponse(Schema):
    """The current signing secret. Until `previousExpireTime` the previous secret signs as well."""

    secret: str
    previousExpireTime: str | None


class EndpointResponse(Schema):
    """A webhook endpoint. It receives the ends of the caller's tasks."""

    id: int
    url: str
    events: list[str] = Field(description="task.completed, task.failed")
    enabled: bool
    disabledReason: str | None = Field(description="manual, failing（连续失败 24 小时）, gone（返回 410）")
    disabledTime: str | None
    createTime: str


class NewEndpointResponse(EndpointResponse):
    """A new endpoint with its secret. No other response shows the secret."""

    secret: str


class DeliveryResponse(Schema):
    """One message to one receiver, with the outcome of the newest attempt.

    `endpointId` is null for the task's callbackUrl. `url` is null once the endpoint is deleted. The receiver reads
    `messageId` as `webhook-id`.
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


class WebhookTestResponse(Schema):
    """The outcome of a test. The codes are those of deliveries."""

    delivered: bool
    statusCode: int | None
    durationMs: int | None
    outcome: str


class ErrorResponse(Schema):
    """An error: a Chinese message, a stable error code, and the request id to quote to support."""

    code: int
    message: str
    data: None = None
    errorCode: str
    requestId: str


class SafeJSONResponse(JSONResponse):
    """JSON that always encodes: a lone surrogate from the caller must not turn a 400 into a 500."""

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


def mark_long_integers(document: Any) -> None:
    """Adds `format: int64` to each integer of an OpenAPI document that may not fit into 32 bits.

    Code generators take an integer without a format for one of 32 bits, and user ids and points are longer.
    """
    for item in document.values() if isinstance(document, dict) else document if isinstance(document, list) else ():
        mark_long_integers(item)
    if isinstance(document, dict) and document.get("type") == "integer":
        is_short = document.get("minimum", -inf) >= -MAX_INT32 and document.get("maximum", inf) <= MAX_INT32
        if not is_short:
            document.setdefault("format", "int64")
