"""What an answer of SEE2AI means: status and body in, a verdict out. Pure; the client feeds it, the tasks obey it.

The word is in `status` or `state`, its case varies, no list of words is published: an unknown word means *still
running* and never fails a task. Bodies may be wrapped once as `{"data": {...}}`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

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
"""Where an action has its results in the body of an answer."""


class ResultKind(StrEnum):
    """What a verdict amounts to."""

    ACCEPTED = "accepted"
    """A submit was taken; `task_id` is set."""
    NOT_SENT = "not_sent"
    """Nothing left this machine: trying again is harmless."""
    REJECTED = "refused"
    """The input is refused for good; a poll says so of a video that "needs repair"."""
    ACCOUNT_ERROR = "operator"
    """Our key is bad or the tenant's purse is empty: the operator's fault, never the user's."""
    RATE_LIMITED = "busy"
    """Too fast; `retry_after_seconds` may say how long to wait."""
    SERVER_ERROR = "trouble"
    """An error of SEE2AI's own, not charged by its promise; for a poll also anything unreadable."""
    UPSTREAM_TIMEOUT = "gave_up"
    """SEE2AI says the generation timed out."""
    UNKNOWN_OUTCOME = "ambiguous"
    """A job may be running that we know nothing of: never send again."""
    RUNNING = "running"
    """The job goes on; `progress` may say how far it is."""
    SUCCEEDED = "done"
    """The job succeeded; `urls` may still be empty, which is not success yet. Also a submit that brought its result."""
    FAILED = "failed"
    """The job ended badly."""
    NOT_FOUND = "missing"
    """SEE2AI does not know the task (404)."""


@dataclass(frozen=True, slots=True)
class UpstreamResult:
    """One answer, understood. `note` is for the operator and never shown to a caller."""

    kind: ResultKind
    detail: str = ""
    task_id: str = ""
    is_awaiting_approval: bool = False
    urls: tuple[str, ...] = ()
    progress: int | None = None
    retry_after_seconds: float | None = None
    unknown_state: str = ""


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """What came over the wire: HTTP status, the body's bytes, `Retry-After` in seconds from now where readable."""

    status: int
    body: bytes
    retry_after_seconds: float | None = None


def read_submit(answer: HttpResponse) -> UpstreamResult:
    """The verdict on the answer to a submit, by the table "answer to a submit"."""
    if 200 <= answer.status < 300:  # noqa: PLR2004
        return _accepted(answer)
    note = f"HTTP {answer.status}: {error_text(answer.body)}"
    match answer.status:
        case 401 | 402 | 403:
            return UpstreamResult(ResultKind.ACCOUNT_ERROR, note)
        case 429:
            return UpstreamResult(ResultKind.RATE_LIMITED, note, retry_after_seconds=answer.retry_after_seconds)
        case 500 | 502 | 503:
            return UpstreamResult(ResultKind.SERVER_ERROR, note, retry_after_seconds=answer.retry_after_seconds)
        case 504:
            return UpstreamResult(ResultKind.UPSTREAM_TIMEOUT, note)
        case status if 400 <= status < 500:  # noqa: PLR2004
            return UpstreamResult(ResultKind.REJECTED, note)
    # A redirect or an unheard-of status: whoever sent it may have passed the submit on.
    return UpstreamResult(ResultKind.UNKNOWN_OUTCOME, note)


def read_result(answer: HttpResponse, read_urls: ReadUrls) -> UpstreamResult:
    """The verdict on the answer to a submit that blocks until the result is there."""
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
    waits = body is not None and _state(body) == AWAITING_APPROVAL
    return UpstreamResult(ResultKind.ACCEPTED, _excerpt(answer.body), task_id=task_id, is_awaiting_approval=waits)


def read_poll(answer: HttpResponse, task_id: str, read_urls: ReadUrls) -> UpstreamResult:
    """The verdict on the answer to a poll of `task_id`, by the table "answer to a poll"."""
    note = f"HTTP {answer.status}: {error_text(answer.body)}"
    match answer.status:
        case 401 | 402 | 403:
            return UpstreamResult(ResultKind.ACCOUNT_ERROR, note)
        case 404:
            return UpstreamResult(ResultKind.NOT_FOUND, note)
        case 429:
            return UpstreamResult(ResultKind.RATE_LIMITED, note, retry_after_seconds=answer.retry_after_seconds)
    body = _json_object(answer.body)
    # 422 with a word is how `needs_repair` arrives.
    if body is None or not _state(body) or not (200 <= answer.status < 300 or answer.status == 422):  # noqa: PLR2004
        return UpstreamResult(ResultKind.SERVER_ERROR, note)
    theirs = body.get("task_id")
    if theirs is not None and str(theirs) != task_id:
        return UpstreamResult(
            ResultKind.SERVER_ERROR, f"an answer about another task: {str(theirs)[:MAX_TASK_ID_LENGTH]!a}"
        )
    return _from_state(body, answer, read_urls)


def _from_state(body: dict[str, Any], answer: HttpResponse, read_urls: ReadUrls) -> UpstreamResult:
    word = _state(body)
    if word == NEEDS_REPAIR:
        return UpstreamResult(ResultKind.REJECTED, f"{word}: {error_text(answer.body)}")
    if word in FAILURE:
        return UpstreamResult(ResultKind.FAILED, f"{word}: {error_text(answer.body)}")
    if word in SUCCESS:
        return UpstreamResult(ResultKind.SUCCEEDED, _excerpt(answer.body), urls=read_urls(body))
    known = word in WAITING or word in RUNNING
    return UpstreamResult(
        ResultKind.RUNNING,
        is_awaiting_approval=word == AWAITING_APPROVAL,
        progress=_progress(body.get("progress")),
        unknown_state="" if known else word[:40].encode(errors="replace").decode(),
    )


def _state(body: dict[str, Any]) -> str:
    """The state in lower case. Where both fields are there, an ending speaks louder than a waiting word."""
    words: list[str] = [
        body[field].strip().lower() for field in ("status", "state") if isinstance(body.get(field), str)
    ]
    for word in words:
        if word in SUCCESS or word in FAILURE:
            return word
    return words[0] if words else ""


def _progress(value: Any) -> int | None:
    """A percentage; UniWorld sends a list of `{step, message, percent}`, of which the last counts."""
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


def error_text(body: bytes) -> str:
    """The reason in a body: `detail` (text or FastAPI's list), `error.message`, `message`, `error_message`, or raw.

    Always text that a database takes: JSON may hold half a surrogate pair, which no encoding of ours does.
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
