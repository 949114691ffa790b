"""Responses as a fault changes them: first their JSON, then how they are sent."""

import json

from starlette.responses import JSONResponse, Response

from app.sandbox.error_responses import error_response
from app.sandbox.faults.misbehaviour import misbehave
from app.sandbox.rules.rule import FaultRule


def apply_fault(rule: FaultRule | None, response: Response, *, other_id: str = "") -> Response:
    """The response itself where there is no fault; `other_id` is the task id that a wrong one is taken from."""
    if rule is None:
        return response
    if rule.fault in {"wrapped", "no-task-id", "reuse-task-id", "wrong-task-id"}:
        content = json.loads(bytes(response.body))
        if rule.fault == "wrapped":
            content = {"data": content}
        elif rule.fault == "no-task-id":
            content.pop("task_id", None)
        else:
            content["task_id"] = other_id
        return JSONResponse(content, response.status_code)
    return misbehave(rule, response)


def failure_response(rule: FaultRule) -> Response:
    """The error response that a rule with `fail` or `balance` asks for."""
    return error_response(rule.status_code, rule.message, form=rule.detail, retry_after_seconds=rule.retry_after)
