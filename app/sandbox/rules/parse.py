"""From JSON to rules, for `POST /control` and for directives alike. What is not understood raises RuleError."""

import json
from typing import Any

from pydantic import ValidationError

from app.sandbox.error_responses import field_error
from app.sandbox.rules.rule import JOB_KEYS, FaultRule, JobRule, Rule


class RuleError(ValueError):
    """The rules are refused. `errors` is FastAPI's list, with the place of each error inside the rules in `loc`."""

    def __init__(self, errors: list[dict[str, Any]]) -> None:
        self.errors = errors
        super().__init__("; ".join(error["msg"] for error in errors))


def describe(error: dict[str, Any]) -> str:
    """The error in one line, with the key that it is about."""
    path = ".".join(str(part) for part in error["loc"])
    return f"{path}: {error['msg']}" if path else str(error["msg"])


def parse_rules(parsed: Any) -> list[Rule]:
    """One rule, or a list of rules. Raises RuleError with all errors at once."""
    _require_unicode(parsed)
    rules: list[Rule] = []
    errors: list[dict[str, Any]] = []
    for index, given in enumerate(parsed if isinstance(parsed, list) else [parsed]):
        try:
            rules.append(_parse_rule(given))
        except RuleError as error:
            position = [index] if isinstance(parsed, list) else []
            errors += [{**one, "loc": [*position, *one["loc"]]} for one in error.errors]
    if errors:
        raise RuleError(errors)
    return rules


def _parse_rule(given: Any) -> Rule:
    if not isinstance(given, dict):
        raise RuleError([field_error("dict_type", [], "A rule should be a JSON object")])
    model = JobRule if JOB_KEYS & given.keys() else FaultRule
    try:
        return model.model_validate(given)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        raise RuleError([{**one, "msg": _message(one["type"], one["loc"], one["msg"])} for one in found]) from None


def _message(kind: str, loc: tuple[int | str, ...], message: str) -> str:
    if kind != "extra_forbidden":
        return message
    # A rule with a key of a job is a JobRule, so only the keys of a FaultRule can be out of place.
    if loc[0] in FaultRule.model_fields:
        return "A rule that shapes a job takes no key of a fault: write two rules"
    return "Unknown key"


def _require_unicode(parsed: Any) -> None:
    """JSON can hold half of a surrogate pair, which no response can carry. Raises RuleError."""
    try:
        json.dumps(parsed, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        raise RuleError([field_error("string_unicode", [], "Text should be valid Unicode")]) from None
