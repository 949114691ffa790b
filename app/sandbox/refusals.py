"""How SEE2AI spells its errors: the known reasons, and every form in which a refusal may come. No state."""

from typing import Any

from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

EMPTY_PURSE = "余额不足，请充值"
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


def refusal(code: int, text: str = "", *, form: str = "string", retry_after_seconds: int | None = None) -> Response:
    """An error in one of the forms SEE2AI is known to use; `form` is a word of plan.DETAIL_FORMS."""
    reason = text or REASONS.get(code, "Error.")
    headers = {} if retry_after_seconds is None else {"retry-after": str(retry_after_seconds)}
    if form == "html":
        return HTMLResponse(f"<html><body><h1>{code}</h1><p>{reason}</p></body></html>", code, headers)
    if form == "not-json":
        return PlainTextResponse(f"upstream error: {reason}", code, headers)
    if form == "list":
        return JSONResponse({"detail": [fault("value_error", ["body"], reason)]}, code, headers)
    if form == "error.message":
        return JSONResponse({"error": {"code": code, "message": reason}}, code, headers)
    if form == "needs-repair":
        return JSONResponse(guidance([fault("value_error", ["body"], reason)]), code, headers)
    return JSONResponse({"detail" if form == "string" else form: reason}, code, headers)


def guidance(faults: list[dict[str, Any]], state: str = "needs_repair") -> dict[str, Any]:
    """What a request in need of repair is answered with: each fault as an issue, and the first one in words."""
    return {
        "state": state,
        "error_code": "video_request_invalid",
        "repair_summary": f"{len(faults)} issue(s) to repair before the request can be accepted.",
        "user_facing_message": faults[0]["msg"],
        "issues": [{"field": str(one["loc"][-1]), "code": one["type"], "message": one["msg"]} for one in faults],
    }


def fault(kind: str, where: list[str], message: str) -> dict[str, Any]:
    """One line of FastAPI's list in `detail`."""
    return {"type": kind, "loc": where, "msg": message}
