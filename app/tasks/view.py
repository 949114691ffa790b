"""A task as callers see it, from its row. Upstream ids, provider texts and storage keys stay here."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

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
        "promptSnippet": snippet(row["prompt"]),
        "prompt": row["prompt"],
        "imageUrl": row["image_url"],
        "params": row["params"],
        "resultUrl": urls[0] if urls else None,
        "resultUrls": urls,
        "thumbnailUrls": [runtime.store.public_url(result["thumbnailKey"]) for result in results],
        "pointsCost": row["points_cost"],
        "pointsRefunded": row["points_cost"] if row["status"] == "failed" else 0,
        "createTime": local_time(row["created_at"], zone),
        "updateTime": local_time(row["updated_at"], zone),
        "completeTime": local_time(row.get("completed_at"), zone),
        "errorCode": row.get("error_code"),
        "errorMessage": row.get("error_message"),
    }


def snippet(prompt: str) -> str:
    """The whole prompt up to 20 characters; else cut at the last clause mark within them, or at 20, then `...`."""
    if len(prompt) <= SNIPPET_CHARACTERS:
        return prompt
    start = prompt[:SNIPPET_CHARACTERS]
    cut = max(start.rfind(mark) for mark in CLAUSE_MARKS)
    return (start[:cut] if cut > 0 else start) + "..."


def local_time(moment: datetime | None, zone: ZoneInfo) -> str | None:
    """ISO to the second, without an offset."""
    return None if moment is None else moment.astimezone(zone).isoformat(timespec="seconds")[:19]
