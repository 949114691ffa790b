"""From a request's body to an action's validated input; what breaks the schema is refused with FastAPI's list."""

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from app.sandbox.refusals import fault

Input = TypeVar("Input", bound=BaseModel)


class InputError(ValueError):
    """The input is refused with this status code; `faults` is FastAPI's list, as `detail` carries it."""

    def __init__(self, faults: list[dict[str, Any]], code: int = 422) -> None:
        self.faults = faults
        self.code = code
        super().__init__("input refused")


def parse_body(body: bytes) -> Any:
    """The JSON of a plain body, or of one wrapped once as `{"data": {...}}`. Raises InputError."""
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InputError([fault("json_invalid", ["body"], f"JSON decode error: {error}")]) from None
    if isinstance(parsed, dict) and isinstance(parsed.get("data"), dict) and len(parsed) == 1:
        return parsed["data"]
    return parsed


def validate(model: type[Input], parsed: Any) -> Input:
    """The input as the model has it: strictly, so that no "5" passes for a 5. Raises InputError."""
    try:
        return model.model_validate(parsed, strict=True)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        raise InputError([{**one, "loc": ["body", *one["loc"]]} for one in faults]) from None
