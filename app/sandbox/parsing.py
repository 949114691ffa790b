"""From a request's body to an action's validated input. What breaks the schema raises InputError."""

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from app.sandbox.error_responses import field_error

Input = TypeVar("Input", bound=BaseModel)


class InputError(ValueError):
    """The input is refused with this status code; `errors` is FastAPI's list, as `detail` carries it."""

    def __init__(self, errors: list[dict[str, Any]], code: int = 422) -> None:
        self.errors = errors
        self.code = code
        super().__init__("input refused")


def parse_json(body: bytes) -> Any:
    """The JSON of a body. Raises InputError."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InputError([field_error("json_invalid", ["body"], f"JSON decode error: {error}")]) from None


def parse_body(body: bytes) -> Any:
    """The JSON of a plain body, or of one wrapped once as `{"data": {...}}`. Raises InputError."""
    parsed = parse_json(body)
    if isinstance(parsed, dict) and isinstance(parsed.get("data"), dict) and len(parsed) == 1:
        return parsed["data"]
    return parsed


def validate(model: type[Input], parsed: Any) -> Input:
    """The input as the model has it: strictly, so that no "5" passes for a 5. Raises InputError."""
    try:
        return model.model_validate(parsed, strict=True)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False, include_input=False)
        raise InputError([{**one, "loc": ["body", *one["loc"]]} for one in errors]) from None
