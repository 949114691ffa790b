"""Types of the gateway's responses. Dates are local to the gateway, with whole seconds."""

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

ImageUrl = str | list[str]


class SubmitOptions(TypedDict, total=False):
    """Options that `run` passes to `submit`."""

    image_url: ImageUrl | None
    params: Mapping[str, Any] | None
    callback_url: str | None
    idempotency_key: str | None


class Result(TypedDict):
    """One result. `durationSeconds` is None for an image."""

    url: str
    type: str
    bytes: int
    width: int
    height: int
    durationSeconds: float | None


class Task(TypedDict):
    """A task. `progress` never falls and reaches 100 only at completion. `estimatedSecondsLeft` ends as None."""

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
    endUser: str | None
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
    """A submitted task with the balance after its charge."""

    balance: int


class Quote(TypedDict):
    """The price of a submit, and the caller's balance."""

    modelName: str
    pointsCost: int
    balance: int


class Balance(TypedDict):
    """`held` is the number of points that running tasks hold."""

    userId: int
    balance: int
    held: int
    expireTime: str | None


class Model(TypedDict):
    """A model on sale. `params` is the JSON Schema of its parameters."""

    modelName: str
    description: str
    taskType: str
    pointsCost: int
    priceRules: list[dict[str, Any]]
    aspectRatio: str | None
    params: dict[str, Any]


class Upload(TypedDict):
    """The stored file."""

    url: str
    type: str
    bytes: int
    width: int | None
    height: int | None
    durationSeconds: float | None
    kind: Literal["image", "video", "audio"]


class Webhook(TypedDict):
    """A webhook's body."""

    type: Literal["task.completed", "task.failed"]
    timestamp: str
    data: Task
