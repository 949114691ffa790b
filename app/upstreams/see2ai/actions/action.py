"""What the gateway needs to know of an action, and how a caller's words become SEE2AI's. Holds no rule of any one."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from app.errors import InvalidParameter

MAX_FIELD_LENGTH = 100  # of a field's name said back to a caller, who made it up
IMAGE_URL = "imageUrl"


class CallerParams(BaseModel):
    """What a caller may set: camelCase outside, strict types, nothing unknown."""

    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", strict=True, frozen=True)


class UpstreamRequest(BaseModel):
    """The body SEE2AI is sent, by its Input Schema. It is what submit validates before a point is taken.

    A rule over several fields raises InvalidParameter itself, naming the field as the caller wrote it.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


@dataclass(frozen=True, slots=True)
class ActionInput:
    """What a caller wants of an action: every field right by itself, their combination not yet judged."""

    task_type: str
    prompt: str
    references: tuple[str, ...]
    params: CallerParams


@dataclass(frozen=True, slots=True)
class Action:
    """One SEE2AI action. Paths are below the base URL; seconds are what is usual, not promised."""

    name: str
    params: Mapping[str, type[CallerParams]]  # by task type
    submit_path: str
    status_path: str | None  # with a {task_id}; None where the answer to the submit is the result
    build: Callable[[ActionInput], dict[str, Any]]
    read_urls: Callable[[dict[str, Any]], tuple[str, ...]]  # the results in the body of an answer
    media: Literal["image", "video"]
    typical_seconds: float
    max_references: int
    max_prompt_length: int
    needs_prompt: bool = True
    url_params: tuple[str, ...] = ()  # the caller's params that hold links
    image_url_fields: tuple[str, ...] = ()  # of the request: links to pictures
    av_url_fields: tuple[str, ...] = ()  # of the request: links to films and sounds
    normalize_profile: str = ""  # how SEE2AI normalizes the pictures of this action
    provider: str = "see2ai"  # whose key and purse it takes: what goes wrong with one keeps no other's tasks waiting
    caller_field_names: Mapping[str, str] = field(
        default_factory=dict
    )  # of the request, where it is not `params.<camelCase>`


def merge_params(
    action: Action, task_type: str, fixed: dict[str, Any], defaults: dict[str, Any], asked: dict[str, Any]
) -> CallerParams:
    """The settings of one task: the row's defaults, then the caller's, then what the row fixes.

    Raises InvalidParameter naming `params.<field>` for a field that is unknown, fixed or wrong.
    """
    for name in asked:
        if name in fixed:
            raise InvalidParameter(f"params.{name}"[:MAX_FIELD_LENGTH], "由模型固定，不能修改")
    params = action.params[task_type]
    try:
        return params.model_validate({**defaults, **asked, **fixed})
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        name = ".".join(["params", *(str(part) for part in fault["loc"])])[:MAX_FIELD_LENGTH]
        if fault["type"] == "extra_forbidden":
            known = "、".join(params_schema(params, fixed)["properties"])
            raise InvalidParameter(name, f"不支持，可用参数: {known}") from None
        raise InvalidParameter(name, _problem(fault)) from None


def build_request(action: Action, order: ActionInput) -> dict[str, Any]:
    """The body for SEE2AI. Raises InvalidParameter naming the caller's own field for whatever SEE2AI would refuse."""
    try:
        return action.build(order)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        name = str(fault["loc"][0]) if fault["loc"] else ""
        told = action.caller_field_names.get(name, f"params.{to_camel(name)}")
        raise InvalidParameter(told, _problem(fault)) from None


def require_reference_images(order: ActionInput, *others: str | None) -> None:
    """`imageUrl` must be there for an image_to_… task (or one of `others`), and must not for a text_to_… one."""
    if order.task_type.startswith("text_to_"):
        if order.references:
            raise InvalidParameter(IMAGE_URL, "不适用于该模型")
    elif not order.references and not any(others):
        raise InvalidParameter(IMAGE_URL, "不能为空")


def _problem(fault: Any) -> str:
    context = fault.get("ctx", {})
    match fault["type"]:
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
    """The links in a value of an answer that ought to be one link or a list of them; what is none is left out."""
    values = value if isinstance(value, list) else [value]
    return tuple(url for url in values if isinstance(url, str) and url and url.isprintable())


def urls_in(request: dict[str, Any], fields: Iterable[str]) -> list[str]:
    """All links that stand in these fields of a request, in their order."""
    found: list[str] = []
    for field_ in fields:
        value = request.get(field_)
        if value:
            found += value if isinstance(value, list) else [value]
    return found


@cache
def _schema(params: type[CallerParams]) -> dict[str, Any]:
    """Not to be changed: Pydantic makes it anew each time, which takes a millisecond."""
    return params.model_json_schema(by_alias=True)
