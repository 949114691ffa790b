"""What the gateway needs to know of an action, and how a caller's words become SEE2AI's. Holds no rule of any one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from app.errors import InvalidParameter

LONGEST_FIELD = 100  # of a field's name said back to a caller, who made it up


class CallerParams(BaseModel):
    """What a caller may set: camelCase outside, strict types, nothing unknown."""

    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", strict=True, frozen=True)


class UpstreamRequest(BaseModel):
    """The body SEE2AI is sent, by its Input Schema. It is what submit validates before a point is taken."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


@dataclass(frozen=True, slots=True)
class Action:
    """One SEE2AI action. Paths are below the base URL; seconds are what is usual, not promised."""

    name: str
    task_types: frozenset[str]
    submit_path: str
    status_path: str  # with a {task_id}
    params: type[CallerParams]
    request: type[UpstreamRequest]
    build: Callable[[str, tuple[str, ...], CallerParams], dict[str, Any]]
    usual_seconds: float
    most_references: int
    longest_prompt: int


def fold_params(action: Action, fixed: dict[str, Any], defaults: dict[str, Any], asked: dict[str, Any]) -> CallerParams:
    """The settings of one task: the row's defaults, then the caller's, then what the row fixes.

    Raises InvalidParameter naming `params.<field>` for a field that is unknown, fixed or wrong.
    """
    for name in asked:
        if name in fixed:
            raise InvalidParameter(f"params.{name}", "由模型固定，不能修改")
    try:
        return action.params.model_validate({**defaults, **asked, **fixed})
    except ValidationError as error:
        raise InvalidParameter(*_told(error, action.params, fixed)) from None


def _told(error: ValidationError, params: type[CallerParams], fixed: dict[str, Any]) -> tuple[str, str]:
    fault = error.errors(include_url=False)[0]
    field = ".".join(["params", *(str(part) for part in fault["loc"])])[:LONGEST_FIELD]
    if fault["type"] == "extra_forbidden":
        known = "、".join(caller_schema(params, fixed)["properties"])
        return field, f"不支持，可用参数: {known}"
    if fault["type"] in {"literal_error", "enum"}:
        return field, f"取值无效，可选: {fault.get('ctx', {}).get('expected', '')}".replace(" or ", ", ")
    return field, "类型或取值错误"


def caller_schema(params: type[CallerParams], fixed: dict[str, Any]) -> dict[str, Any]:
    """JSON Schema of what a caller may set on a model that fixes the names in `fixed`."""
    schema = params.model_json_schema(by_alias=True)
    properties = {name: rule for name, rule in schema.get("properties", {}).items() if name not in fixed}
    return {"type": "object", "properties": properties, "additionalProperties": False}
