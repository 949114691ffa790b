"""The shapes of SEE2AI's fast-image action (SEE2AI's published schema), and how its errors are spelt. No state."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints, ValidationError
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from app.sandbox.jobs import Job, Look
from app.sandbox.markers import MarkerError

ACTION = "see2ai_image_generation_fast_v1"
EMPTY_PURSE = "余额不足，请充值"
REASONS = {
    400: "Input validation failed before the upstream request.",
    401: "Provider authentication failed.",
    402: "Insufficient balance.",
    403: "Forbidden.",
    404: "Task not found.",
    422: "Input validation failed.",
    429: "Provider rate limit exceeded.",
    500: "Provider generation, response parsing, or storage upload failed.",
    502: "Bad gateway.",
    503: "Service unavailable.",
    504: "Generation timed out before completion.",
}
END_CODES = {"timeout": 504, "expired": 504, "rejected": 400, "needs_repair": 422}

AspectRatio = Literal[
    "1:1", "1:4", "1:8", "2:3", "3:2", "3:4", "4:1", "4:3", "4:5", "5:4", "8:1", "9:16", "16:9", "21:9"
]


class FastImageInput(BaseModel):
    """SEE2AI's published input, and what SEE2AI refuses beyond it: a blank prompt, `auto` as a ratio, webp."""

    prompt: Annotated[str, StringConstraints(max_length=20_000, pattern=r"\S")]
    image_input: Annotated[list[str], Field(max_length=14)] | None = None
    aspect_ratio: AspectRatio
    resolution: Literal["1K", "2K"] = "1K"
    output_format: Literal["jpg", "jpeg", "png"] | None = "jpg"


class InputError(ValueError):
    """The input breaks the schema; `faults` is FastAPI's list, as `detail` carries it."""

    def __init__(self, faults: list[dict[str, Any]]) -> None:
        self.faults = faults
        super().__init__("input refused")


def read_input(body: bytes) -> FastImageInput:
    """The input from a plain body, or from one wrapped once as `{"data": {...}}`. Raises InputError."""
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InputError([_fault("json_invalid", ["body"], f"JSON decode error: {error}")]) from None
    if isinstance(parsed, dict) and isinstance(parsed.get("data"), dict) and len(parsed) == 1:
        parsed = parsed["data"]
    try:
        return FastImageInput.model_validate(parsed, strict=True)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        raise InputError([{**fault, "loc": ["body", *fault["loc"]]} for fault in faults]) from None


def marker_fault(error: MarkerError) -> list[dict[str, Any]]:
    return [_fault("sandbox_marker", ["body", "prompt"], str(error))]


def _fault(kind: str, where: list[str], message: str) -> dict[str, Any]:
    return {"type": kind, "loc": where, "msg": message}


def job_answer(job: Job, look: Look, urls: list[str], now: float) -> dict[str, Any]:
    """SEE2AI's published output plus `status`, `progress` and `error_message`, which SEE2AI shows beside it."""
    answer: dict[str, Any] = {
        "input_tokens": 0,
        "output_tokens": 0,
        "total_tokens": 0,
        "model": "see2ai-image-fast",
        "source": "see2ai",
        "cost_points": job.cost_points if look.has_succeeded else None,
        "result_urls": urls,
        "task_id": job.task_id,
        "cost_time": round((job.take_seconds if look.has_ended else now - job.submitted_at) * 1000),
        "status": look.status,
        "state": look.state,
        "progress": look.progress,
        "provider_config_id": None,
        "warnings": None,
    }
    if look.has_ended and not look.has_succeeded:
        answer["error_message"] = job.plan.end_reason or REASONS[500]
    if job.plan.field != "both":
        del answer["status" if job.plan.field == "state" else "state"]
    return answer


def refusal(code: int, text: str = "", *, form: str = "string", retry_after_seconds: int | None = None) -> Response:
    """An error in one of the forms SEE2AI is known to use; `form` is a word of markers.DETAIL_FORMS."""
    reason = text or REASONS.get(code, "Error.")
    headers = {} if retry_after_seconds is None else {"retry-after": str(retry_after_seconds)}
    if form == "html":
        return HTMLResponse(f"<html><body><h1>{code}</h1><p>{reason}</p></body></html>", code, headers)
    if form == "not-json":
        return PlainTextResponse(f"upstream error: {reason}", code, headers)
    if form == "list":
        return JSONResponse({"detail": [_fault("value_error", ["body"], reason)]}, code, headers)
    if form == "error.message":
        return JSONResponse({"error": {"code": code, "message": reason}}, code, headers)
    return JSONResponse({"detail" if form == "string" else form: reason}, code, headers)
