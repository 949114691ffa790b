"""Answers as a trouble bends them: first their JSON, then how they travel."""

import json

from starlette.responses import JSONResponse, Response

from app.sandbox.plan import Trouble
from app.sandbox.refusals import refusal
from app.sandbox.trouble import misbehave


def bend(trouble: Trouble | None, answer: Response, *, other_id: str = "") -> Response:
    """The answer where there is no trouble; `other_id` is the task id that a wrong one is taken from."""
    if trouble is None:
        return answer
    if trouble.kind in {"wrapped", "no-task-id", "reuse-task-id", "wrong-task-id"}:
        content = json.loads(bytes(answer.body))
        if trouble.kind == "wrapped":
            content = {"data": content}
        elif trouble.kind == "no-task-id":
            content.pop("task_id", None)
        else:
            content["task_id"] = other_id
        return JSONResponse(content, answer.status_code)
    return misbehave(trouble, answer)


def fail(trouble: Trouble) -> Response:
    """The refusal that a trouble of the kind `fail` asks for."""
    return refusal(trouble.code, trouble.text, form=trouble.detail, retry_after_seconds=trouble.retry_after_seconds)
