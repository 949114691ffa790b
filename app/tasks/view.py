"""A task as callers see it, from its row. Upstream ids, provider texts and storage keys stay here."""

from collections.abc import Mapping
from typing import Any

from app.catalog.durations import typical_seconds
from app.datetimes import format_local
from app.engine.progress import estimate_seconds_left
from app.runtime import Runtime

SNIPPET_CHARACTERS = 20
CLAUSE_MARKS = ",，。;；!！?？、"


def view_task(runtime: Runtime, row: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `GET /user/ai/tasks/{taskNo}`, in camelCase, times local to the second."""
    zone = runtime.settings.zone
    results = row.get("results") or []
    urls = [runtime.store.public_url(result["key"]) for result in results]
    return {
        "taskNo": row["task_no"],
        "modelName": row["model_name"],
        "status": row["status"],
        "taskType": row["task_type"],
        "progress": row["progress"],
        "estimatedSecondsLeft": _seconds_left(runtime, row),
        "promptSnippet": snippet(row["prompt"]),
        "prompt": row["prompt"],
        "imageUrl": row["image_url"],
        "params": row["params"],
        "resultUrl": urls[0] if urls else None,
        "resultUrls": urls,
        "thumbnailUrls": [runtime.store.public_url(r["thumbnailKey"]) for r in results if "thumbnailKey" in r],
        "results": [_view_result(url, result) for url, result in zip(urls, results, strict=True)],
        "pointsCost": row["points_cost"],
        "pointsRefunded": row["points_cost"] if row["status"] == "failed" else 0,
        "createTime": format_local(row["created_at"], zone),
        "updateTime": format_local(row["updated_at"], zone),
        "completeTime": format_local(row.get("completed_at"), zone),
        "errorCode": row.get("error_code"),
        "errorMessage": row.get("error_message"),
    }


def _seconds_left(runtime: Runtime, row: Mapping[str, Any]) -> int | None:
    """None once it has ended. How long a task waits before it is generated, nobody knows: that time is not in it."""
    if row.get("completed_at") is not None:
        return None
    is_begun = row["status"] == "processing"
    told_for = (row["now"] - row["updated_at"]).total_seconds() if is_begun else 0.0
    return estimate_seconds_left(row["progress"], told_for, typical_seconds(runtime, row["model_name"], row["action"]))


def _view_result(url: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """`durationSeconds` is null for a picture."""
    told = {name: result.get(name) for name in ("type", "bytes", "width", "height", "durationSeconds")}
    return {"url": url, **told}


def snippet(prompt: str) -> str:
    """The whole prompt up to 20 characters; else cut at the last clause mark within them, or at 20, then `...`."""
    if len(prompt) <= SNIPPET_CHARACTERS:
        return prompt
    start = prompt[:SNIPPET_CHARACTERS]
    cut = max(start.rfind(mark) for mark in CLAUSE_MARKS)
    return (start[:cut] if cut > 0 else start) + "..."
