"""The shapes of what the gateway answers. Dates are local to the gateway, to the second."""

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

ImageUrl = str | list[str]


class SubmitOptions(TypedDict, total=False):
    """What `run` hands to `submit`."""

    image_url: ImageUrl | None
    params: Mapping[str, Any] | None
    callback_url: str | None
    idempotency_key: str | None


class Result(TypedDict):
    """`durationSeconds` is None for a picture."""

    url: str
    type: str
    bytes: int
    width: int
    height: int
    durationSeconds: float | None


class Task(TypedDict):
    """`progress` never falls and is 100 only when completed; `estimatedSecondsLeft` is None once it has ended."""

    taskNo: str
    modelName: str
    status: Literal["created", "queued", "processing", "completed", "failed"]
    taskType: str
    progress: int
    estimatedSecondsLeft: int | None
    promptSnippet: str
    prompt: str
    imageUrl: ImageUrl | None
    params: dict[str, Any]
    resultUrl: str | None
    resultUrls: list[str]
    thumbnailUrls: list[str]
    results: list[Result]
    pointsCost: int
    pointsRefunded: int
    createTime: str
    updateTime: str
    completeTime: str | None
    errorCode: str | None
    errorMessage: str | None


class SubmittedTask(Task):
    """`balance` is after the charge."""

    balance: int


class Quote(TypedDict):
    modelName: str
    pointsCost: int
    balance: int


class Balance(TypedDict):
    """`held`: points of tasks still running."""

    userId: int
    balance: int
    held: int
    expireTime: str | None


class Model(TypedDict):
    """`params` is the JSON Schema of what may be set."""

    modelName: str
    description: str
    taskType: str
    pointsCost: int
    priceRules: list[dict[str, Any]]
    aspectRatio: str | None
    params: dict[str, Any]


class Upload(TypedDict):
    """What is stored under `url`."""

    url: str
    type: str
    bytes: int
    width: int | None
    height: int | None
    durationSeconds: float | None
    kind: Literal["image", "video", "audio"]


class Webhook(TypedDict):
    type: Literal["task.completed", "task.failed"]
    timestamp: str
    data: Task
