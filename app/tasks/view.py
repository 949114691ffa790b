"""The task as callers see it. REST, streams, webhooks and the OpenAPI document all follow from `TaskView`.

Ids and texts of the upstream and storage keys are not in it. A new field is one line in `TaskView`, one in `view_task`
and, where it is a column, one in `PUBLIC_COLUMNS`; the clients' types follow.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field
from sqlalchemy import ColumnElement
from typing_extensions import TypedDict

from app.catalog.durations import typical_seconds
from app.catalog.progress import estimate_seconds_left
from app.database import utc_now
from app.datetimes import format_local
from app.runtime import Runtime
from app.tables import tasks

SNIPPET_CHARACTERS = 20
CLAUSE_MARKS = ",，。;；!！?？、"


class ResultView(TypedDict):
    """One stored result, described by its own bytes. Sizes are in pixels; `durationSeconds` is null for an image."""

    url: str
    type: Annotated[str, Field(description="MIME 类型")]
    bytes: int
    width: int
    height: int
    durationSeconds: float | None


class TaskView(TypedDict):
    """A task as its owner sees it. Times are local (`TIMEZONE`), to the second; URLs are permanent."""

    taskNo: str
    modelName: str
    status: Annotated[str, Field(description="created, queued, processing, completed, failed")]
    taskType: str
    progress: Annotated[int, Field(description="0-100，不会变小，仅完成时为 100")]
    estimatedSecondsLeft: Annotated[int | None, Field(description="预计剩余秒数，仅供参考；结束后为 null")]
    promptSnippet: str
    prompt: str
    imageUrl: str | list[str] | None
    params: dict[str, Any]
    endUser: Annotated[str | None, Field(description="提交时的 endUser")]
    resultUrl: str | None
    resultUrls: list[str]
    thumbnailUrls: Annotated[list[str], Field(description="图片的缩略图；视频没有")]
    results: list[ResultView]
    pointsCost: int
    pointsRefunded: int
    createTime: str
    updateTime: str
    completeTime: str | None
    errorCode: str | None
    errorMessage: str | None


PUBLIC_COLUMNS: tuple[ColumnElement[Any], ...] = (
    utc_now().label("now"),
    tasks.c.task_no,
    tasks.c.model_name,
    tasks.c.status,
    tasks.c.task_type,
    tasks.c.action,
    tasks.c.progress,
    tasks.c.prompt,
    tasks.c.image_url,
    tasks.c.params,
    tasks.c.end_user,
    tasks.c.results,
    tasks.c.points_cost,
    tasks.c.created_at,
    tasks.c.updated_at,
    tasks.c.completed_at,
    tasks.c.error_code,
    tasks.c.error_message,
)
"""What `view_task` reads."""


def view_task(runtime: Runtime, row: Mapping[str, Any]) -> TaskView:
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
        "endUser": row["end_user"],
        "resultUrl": urls[0] if urls else None,
        "resultUrls": urls,
        "thumbnailUrls": [runtime.store.public_url(r["thumbnailKey"]) for r in results if "thumbnailKey" in r],
        "results": [_view_result(url, result) for url, result in zip(urls, results, strict=True)],
        "pointsCost": row["points_cost"],
        "pointsRefunded": row["points_cost"] if row["status"] == "failed" else 0,
        "createTime": format_local(row["created_at"], zone) or "",
        "updateTime": format_local(row["updated_at"], zone) or "",
        "completeTime": format_local(row.get("completed_at"), zone),
        "errorCode": row.get("error_code"),
        "errorMessage": row.get("error_message"),
    }


def _seconds_left(runtime: Runtime, row: Mapping[str, Any]) -> int | None:
    """None once the task has ended. The time before its generation begins is unknown and not in it."""
    if row.get("completed_at") is not None:
        return None
    is_running = row["status"] == "processing"
    age_seconds = (row["now"] - row["updated_at"]).total_seconds() if is_running else 0.0
    typical = typical_seconds(runtime.durations, row["model_name"], runtime.actions.get(row["action"]))
    return estimate_seconds_left(row["progress"], age_seconds, typical)


def _view_result(url: str, result: Mapping[str, Any]) -> ResultView:
    return {
        "url": url,
        "type": result["type"],
        "bytes": result["bytes"],
        "width": result["width"],
        "height": result["height"],
        "durationSeconds": result.get("durationSeconds"),
    }


def snippet(prompt: str) -> str:
    """At most 20 characters of the prompt, cut at the last clause mark if there is one, then `...`."""
    if len(prompt) <= SNIPPET_CHARACTERS:
        return prompt
    start = prompt[:SNIPPET_CHARACTERS]
    cut = max(start.rfind(mark) for mark in CLAUSE_MARKS)
    return (start[:cut] if cut > 0 else start) + "..."
