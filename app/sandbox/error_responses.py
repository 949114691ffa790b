"""SEE2AI's error responses: the reasons it is known to give, and every form in which an error may come. No state."""

from typing import Any

from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

INSUFFICIENT_BALANCE = "余额不足，请充值"
REASONS = {
    400: "Input validation failed before the upstream request.",
    401: "Provider authentication failed.",
    402: "Insufficient balance.",
    403: "Forbidden.",
    404: "Task not found.",
    413: "File too large.",
    422: "Input validation failed.",
    429: "Provider rate limit exceeded.",
    500: "Provider generation, response parsing, or storage upload failed.",
    502: "Bad gateway.",
    503: "Service unavailable.",
    504: "Generation timed out before completion.",
}
END_CODES = {"timeout": 504, "expired": 504, "rejected": 400, "needs_repair": 422}
DETAIL_FORMS = ("string", "list", "error.message", "message", "error_message", "not-json", "html", "needs-repair")


def error_response(
    code: int, text: str = "", *, form: str = "string", retry_after_seconds: int | None = None
) -> Response:
    """An error in one of the forms SEE2AI is known to use; `form` is one of DETAIL_FORMS."""
    reason = text or REASONS.get(code, "Error.")
    headers = {} if retry_after_seconds is None else {"retry-after": str(retry_after_seconds)}
    if form == "html":
        return HTMLResponse(f"<html><body><h1>{code}</h1><p>{reason}</p></body></html>", code, headers)
    if form == "not-json":
        return PlainTextResponse(f"upstream error: {reason}", code, headers)
    if form == "list":
        return JSONResponse({"detail": [field_error("value_error", ["body"], reason)]}, code, headers)
    if form == "error.message":
        return JSONResponse({"error": {"code": code, "message": reason}}, code, headers)
    if form == "needs-repair":
        return JSONResponse(repair_guidance([field_error("value_error", ["body"], reason)]), code, headers)
    return JSONResponse({"detail" if form == "string" else form: reason}, code, headers)


def repair_guidance(errors: list[dict[str, Any]], state: str = "needs_repair") -> dict[str, Any]:
    """The answer to a request that needs repair: each error as an issue, and the first one for the user."""
    return {
        "state": state,
        "error_code": "video_request_invalid",
        "repair_summary": f"{len(errors)} issue(s) to repair before the request can be accepted.",
        "user_facing_message": errors[0]["msg"],
        "issues": [
            {"field": str(error["loc"][-1]), "code": error["type"], "message": error["msg"]} for error in errors
        ],
    }


def field_error(kind: str, loc: list[str], message: str) -> dict[str, Any]:
    """One line of FastAPI's list in `detail`."""
    return {"type": kind, "loc": loc, "msg": message}
