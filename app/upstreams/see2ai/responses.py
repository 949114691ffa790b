"""What an answer of SEE2AI means: pure functions from an HTTP status and a body to an `UpstreamResult`.

The state is in `status` or `state`, in any case. SEE2AI publishes no list of states: an unknown one means *still
running* and never fails a task. A body may be wrapped once as `{"data": {...}}`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from app.upstreams.protocol import ResultKind, UpstreamResult

AWAITING_APPROVAL = "awaiting_user_approval"
NEEDS_REPAIR = "needs_repair"
SUCCESS = frozenset({"success", "succeeded", "completed", "complete", "done", "finished"})
FAILURE = frozenset(
    {"failed", "failure", "error", "cancelled", "canceled", "expired", "rejected", "timeout", NEEDS_REPAIR}
)
WAITING = frozenset({"queued", "pending", "submitted", "created", "waiting"})
RUNNING = frozenset({"running", "processing", "in_progress", "generating", AWAITING_APPROVAL})
MAX_TASK_ID_LENGTH = 128
MAX_NOTE_LENGTH = 2000

ReadUrls = Callable[[dict[str, Any]], tuple[str, ...]]
"""Reads the result URLs of an action from the body of an answer."""


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """HTTP status, body, and `Retry-After` in seconds from now; None where it is missing or unreadable."""

    status: int
    body: bytes
    retry_after_seconds: float | None = None


def read_submit(answer: HttpResponse) -> UpstreamResult:
    """The result of a submit, by the table "answer to a submit"."""
    if 200 <= answer.status < 300:  # noqa: PLR2004
        return _accepted(answer)
    detail = _error_detail(answer)
    match answer.status:
        case 401 | 402 | 403:
            return UpstreamResult(ResultKind.ACCOUNT_ERROR, detail)
        case 429:
            return UpstreamResult(ResultKind.RATE_LIMITED, detail, retry_after_seconds=answer.retry_after_seconds)
        case 500 | 502 | 503:
            return UpstreamResult(ResultKind.SERVER_ERROR, detail, retry_after_seconds=answer.retry_after_seconds)
        case 504:
            return UpstreamResult(ResultKind.UPSTREAM_TIMEOUT, detail)
        case status if 400 <= status < 500:  # noqa: PLR2004
            return UpstreamResult(ResultKind.REJECTED, detail)
    # A redirect or an unusual status: its sender may have passed the submit on.
    return UpstreamResult(ResultKind.UNKNOWN_OUTCOME, detail)


def read_result(answer: HttpResponse, read_urls: ReadUrls) -> UpstreamResult:
    """The result of a submit that blocks until the job is done."""
    result = read_submit(answer)
    if not 200 <= answer.status < 300:  # noqa: PLR2004
        return result
    body = _json_object(answer.body)
    urls = read_urls(body) if body is not None and _state(body) not in FAILURE else ()
    if not urls:
        return UpstreamResult(
            ResultKind.UNKNOWN_OUTCOME, f"HTTP {answer.status} without a result: {_excerpt(answer.body)}"
        )
    return UpstreamResult(ResultKind.SUCCEEDED, _excerpt(answer.body), urls=urls)


def _accepted(answer: HttpResponse) -> UpstreamResult:
    body = _json_object(answer.body)
    task_id = body.get("task_id") if body is not None else None
    if isinstance(task_id, int) and not isinstance(task_id, bool):
        task_id = str(task_id)
    if not isinstance(task_id, str) or not 0 < len(task_id) <= MAX_TASK_ID_LENGTH or not task_id.isprintable():
        return UpstreamResult(
            ResultKind.UNKNOWN_OUTCOME, f"HTTP {answer.status} without a readable task_id: {_excerpt(answer.body)}"
        )
    is_waiting = body is not None and _state(body) == AWAITING_APPROVAL
    return UpstreamResult(ResultKind.ACCEPTED, _excerpt(answer.body), task_id=task_id, is_awaiting_approval=is_waiting)


def read_poll(answer: HttpResponse, task_id: str, read_urls: ReadUrls) -> UpstreamResult:
    """The result of a poll of `task_id`, by the table "answer to a poll"."""
    body = _json_object(answer.body)
    match answer.status:
        case 401 | 402 | 403:
            return UpstreamResult(ResultKind.ACCOUNT_ERROR, _error_detail(answer))
        case 404:
            return UpstreamResult(ResultKind.NOT_FOUND, _error_detail(answer))
        case 429:
            pause = answer.retry_after_seconds
            return UpstreamResult(ResultKind.RATE_LIMITED, _error_detail(answer), retry_after_seconds=pause)
    # `needs_repair` comes with a 422.
    if body is None or not _state(body) or not (200 <= answer.status < 300 or answer.status == 422):  # noqa: PLR2004
        return UpstreamResult(ResultKind.SERVER_ERROR, _error_detail(answer))
    other_id = body.get("task_id")
    if other_id is not None and str(other_id) != task_id:
        return UpstreamResult(
            ResultKind.SERVER_ERROR, f"an answer about another task: {str(other_id)[:MAX_TASK_ID_LENGTH]!a}"
        )
    return _from_state(body, answer, read_urls)


def _from_state(body: dict[str, Any], answer: HttpResponse, read_urls: ReadUrls) -> UpstreamResult:
    state = _state(body)
    if state == NEEDS_REPAIR:
        return UpstreamResult(ResultKind.REJECTED, f"{state}: {error_text(answer.body)}")
    if state in FAILURE:
        return UpstreamResult(ResultKind.FAILED, f"{state}: {error_text(answer.body)}")
    if state in SUCCESS:
        return UpstreamResult(ResultKind.SUCCEEDED, _excerpt(answer.body), urls=read_urls(body))
    is_known = state in WAITING or state in RUNNING
    return UpstreamResult(
        ResultKind.RUNNING,
        is_awaiting_approval=state == AWAITING_APPROVAL,
        progress=_progress(body.get("progress")),
        unknown_state="" if is_known else state[:40].encode(errors="replace").decode(),
    )


def _state(body: dict[str, Any]) -> str:
    """The state in lower case. Where both fields have one, a final state wins."""
    states: list[str] = [
        body[field].strip().lower() for field in ("status", "state") if isinstance(body.get(field), str)
    ]
    for state in states:
        if state in SUCCESS or state in FAILURE:
            return state
    return states[0] if states else ""


def _progress(value: Any) -> int | None:
    """Percent. UniWorld sends a list of `{step, message, percent}`; the last one counts."""
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = value[-1].get("percent")
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:  # noqa: PLR0124 (NaN)
        return None
    return int(min(max(value, 0), 100))


def _json_object(body: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict) and set(value) == {"data"} and isinstance(value["data"], dict):
        value = value["data"]
    return value if isinstance(value, dict) else None


def _error_detail(answer: HttpResponse) -> str:
    return f"HTTP {answer.status}: {error_text(answer.body)}"


def error_text(body: bytes) -> str:
    """The reason in a body: `detail` (text or FastAPI's list), `error.message`, `message`, `error_message`, or raw.

    A database can always store it: JSON may hold half of a surrogate pair, which is replaced.
    """
    return _error_message(body).encode(errors="replace").decode()


def _error_message(body: bytes) -> str:
    value = _json_object(body)
    if value is None:
        return _excerpt(body)
    detail = value.get("detail")
    if isinstance(detail, list):
        parts = [str(item.get("msg", item)) if isinstance(item, dict) else str(item) for item in detail]
        return "; ".join(parts)[:MAX_NOTE_LENGTH]
    error = value.get("error")
    nested = error.get("message") if isinstance(error, dict) else error
    guidance = (value.get("repair_summary"), value.get("user_facing_message"))
    for text in (detail, nested, value.get("error_message"), value.get("message"), *guidance):
        if isinstance(text, str) and text:
            return text[:MAX_NOTE_LENGTH]
    return _excerpt(body)


def _excerpt(body: bytes) -> str:
    return body[:MAX_NOTE_LENGTH].decode(errors="replace")
