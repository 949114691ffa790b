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


class Caps(TypedDict, total=False):
    """Points a day, a month and in total, and tasks at once. None is no cap."""

    daily: int | None
    monthly: int | None
    total: int | None
    maxTasks: int | None


class KeyFields(TypedDict, total=False):
    """What a key may do. `endUserCaps` hold for each end user of its tasks."""

    name: str
    scopes: list[str]
    models: list[str] | None
    addresses: list[str] | None
    expireTime: str | None
    caps: Caps | None
    endUserCaps: Caps | None


class Spent(TypedDict):
    """The points of the key's tasks, without refunds."""

    today: int
    thisMonth: int
    total: int


class Key(TypedDict):
    """A key without its text."""

    id: int
    prefix: str
    name: str
    status: Literal["active", "expired", "revoked"]
    scopes: list[str]
    models: list[str] | None
    addresses: list[str] | None
    caps: Caps
    endUserCaps: Caps
    spent: Spent
    runningTasks: int
    createTime: str
    expireTime: str | None
    lastUseTime: str | None
    revokeTime: str | None


class NewKey(Key):
    """A key with its text, which no other answer has."""

    apiKey: str


class Rotation(NewKey):
    """The new key, and the one that it replaces."""

    previous: Key


class KeyPage(TypedDict):
    """One page of keys. `total` counts all of them."""

    records: list[Key]
    total: int
    page: int
    size: int
    pages: int
