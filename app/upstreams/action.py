"""What the gateway knows of an action of a provider, and how a caller's parameters become a request.

The rules of one action stand in the file of that action.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from app.errors import InvalidParameter
from app.settings import Settings

MAX_PARAMS = 32  # that a caller may send, known or not; no action has as many
MAX_FIELD_LENGTH = 100  # of a field's name said back to a caller, who made it up
IMAGE_URL = "imageUrl"


class CallerParams(BaseModel):
    """Parameters that a caller may set: camelCase on the wire, strict types, no unknown names."""

    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", strict=True, frozen=True)


class UpstreamRequest(BaseModel):
    """The body of a submit, by the provider's schema. It is validated before a point is taken.

    A rule over several fields raises InvalidParameter itself, with the field's name as the caller wrote it.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


@dataclass(frozen=True, slots=True)
class ActionInput:
    """The input of an action: each field is valid by itself; their combination is not checked yet."""

    task_type: str
    prompt: str
    references: tuple[str, ...]
    params: CallerParams


Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True, slots=True)
class SizeRule:
    """How a request that depends on the size of its first reference is completed by the worker."""

    is_needed: Callable[[dict[str, Any]], bool]
    apply: Callable[[dict[str, Any], Size | None], dict[str, Any]]
    """The completed request; None where the reference cannot be read."""
    reference_field: str


@dataclass(frozen=True, slots=True)
class Action:
    """One action of a provider. Paths are below its base URL. Seconds are typical, not promised."""

    name: str
    params: Mapping[str, type[CallerParams]]  # by task type
    submit_path: str
    status_path: str | None  # with a {task_id}; None where the answer to the submit is the result
    build: Callable[[ActionInput], dict[str, Any]]
    read_urls: Callable[[dict[str, Any]], tuple[str, ...]]  # result URLs in the body of an answer
    media: Literal["image", "video"]
    typical_seconds: float
    max_references: int
    max_prompt_length: int
    needs_prompt: bool = True
    url_params: tuple[str, ...] = ()  # the caller's params that hold URLs
    image_url_fields: tuple[str, ...] = ()  # of the request: URLs of images
    av_url_fields: tuple[str, ...] = ()  # of the request: URLs of videos and audio
    size_rule: SizeRule | None = None
    normalize_profile: str = ""  # how the provider normalizes the reference images of this action
    provider: str = "see2ai"  # key, balance and circuit breaker are the provider's
    caller_field_names: Mapping[str, str] = field(default_factory=dict)  # where it is not `params.<camelCase>`
    deadline_seconds: Callable[[Settings], float] = lambda settings: settings.task_deadline_seconds


def merge_params(
    action: Action, task_type: str, fixed: dict[str, Any], defaults: dict[str, Any], caller_params: dict[str, Any]
) -> CallerParams:
    """The params of one task: the model's defaults, then the caller's, then what the model fixes.

    Raises InvalidParameter naming `params.<field>` for a field that is unknown, fixed or wrong.
    """
    if len(caller_params) > MAX_PARAMS:
        raise InvalidParameter("params", f"最多 {MAX_PARAMS} 项")
    for name in caller_params:
        if name in fixed:
            raise InvalidParameter(f"params.{name}"[:MAX_FIELD_LENGTH], "由模型固定，不能修改")
    params = action.params[task_type]
    try:
        return params.model_validate({**defaults, **caller_params, **fixed})
    except ValidationError as error:
        error_item = error.errors(include_url=False)[0]
        name = ".".join(["params", *(str(part) for part in error_item["loc"])])[:MAX_FIELD_LENGTH]
        if error_item["type"] == "extra_forbidden":
            allowed = "、".join(params_schema(params, fixed)["properties"])
            raise InvalidParameter(name, f"不支持，可用参数: {allowed}") from None
        raise InvalidParameter(name, _problem(error_item)) from None


def build_request(action: Action, action_input: ActionInput) -> dict[str, Any]:
    """The body for the provider. Raises InvalidParameter with the caller's field for what the provider would reject."""
    try:
        return action.build(action_input)
    except ValidationError as error:
        error_item = error.errors(include_url=False)[0]
        name = str(error_item["loc"][0]) if error_item["loc"] else ""
        field_name = action.caller_field_names.get(name, f"params.{to_camel(name)}")
        raise InvalidParameter(field_name, _problem(error_item)) from None


def require_reference_images(action_input: ActionInput, *others: str | None) -> None:
    """An image_to_… task needs `imageUrl` or one of `others`; a text_to_… task takes no `imageUrl`."""
    if action_input.task_type.startswith("text_to_"):
        if action_input.references:
            raise InvalidParameter(IMAGE_URL, "不适用于该模型")
    elif not action_input.references and not any(others):
        raise InvalidParameter(IMAGE_URL, "不能为空")


def _problem(error_item: Any) -> str:
    context = error_item.get("ctx", {})
    match error_item["type"]:
        case "literal_error" | "enum":
            return f"取值无效，可选: {context.get('expected', '')}".replace(" or ", ", ")
        case "string_too_long":
            return f"不能超过 {context['max_length']} 个字符"
        case "too_long":
            return f"最多 {context['max_length']} 项"
        case "greater_than_equal":
            return f"不能小于 {context['ge']}"
        case "less_than_equal":
            return f"不能大于 {context['le']}"
    return "类型或取值错误"


def params_schema(params: type[CallerParams], fixed: dict[str, Any]) -> dict[str, Any]:
    """JSON Schema of what a caller may set on a model that fixes the names in `fixed`."""
    schema = _schema(params)
    properties = {name: rule for name, rule in schema.get("properties", {}).items() if name not in fixed}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def as_urls(value: Any) -> tuple[str, ...]:
    """The URLs in a value that should be one URL or a list of them, as they are spelled. Other items are left out."""
    values = value if isinstance(value, list) else [value]
    return tuple(url for url in values if isinstance(url, str) and url.strip())


def urls_in(request: dict[str, Any], fields: Iterable[str]) -> list[str]:
    """All URLs in these fields of a request, in order."""
    found: list[str] = []
    for field_ in fields:
        value = request.get(field_)
        if value:
            found += value if isinstance(value, list) else [value]
    return found


@cache
def _schema(params: type[CallerParams]) -> dict[str, Any]:
    """Shared: the caller does not change it. Pydantic takes a millisecond to build one."""
    return params.model_json_schema(by_alias=True)
