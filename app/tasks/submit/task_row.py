"""The row of a new task: its number, its request, its price and its deadline."""

from datetime import datetime, timedelta
from typing import Any

from app.catalog.models import Model
from app.engine.state import UpstreamState
from app.engine.steps.prepare import needs_preparation
from app.files.references import LinkRules
from app.runtime import Runtime
from app.tasks.validation import PreparedTask, Submission, prepare_task

_DIGITS_ALONE = str.maketrans("", "", "-T:.")


def new_task_row(
    runtime: Runtime, user_id: int, submission: Submission, model: Model, suffix: str, *, key_id: int | None = None
) -> dict[str, Any]:
    """All columns of a new task. Its request, price and deadline stay the same when the model changes later."""
    settings = runtime.settings
    prepared = prepare(runtime, submission, model)
    deadline_seconds = prepared.action.deadline_seconds(settings)
    runtime.breakers[prepared.action.provider].reject_when_open(deadline_seconds)
    return {
        "task_no": task_number(model.now.astimezone(settings.zone), suffix),
        "user_id": user_id,
        "key_id": key_id,
        "end_user": submission.end_user,
        "model_name": model.model_name,
        "task_type": model.task_type,
        "action": model.action,
        "prompt": submission.prompt,
        "image_url": prepared.image_url,
        "params": submission.params,
        "upstream_request": prepared.request,
        "points_cost": prepared.points_cost,
        "status": "created",
        "progress": 0,
        "step": "prepare" if needs_preparation(runtime, prepared.action, prepared.request, model) else "submit",
        "next_run_at": model.now,
        "deadline_at": model.now + timedelta(seconds=deadline_seconds),
        "history": [],
        "upstream_state": UpstreamState(normalized_urls=() if model.normalizes_references else None).to_json(),
        "callback_url": prepared.callback_url,
        "idempotency_key": submission.key,
        "idempotency_digest": submission.digest() if submission.key is not None else None,
        "created_at": model.now,
        "updated_at": model.now,
    }


def prepare(runtime: Runtime, submission: Submission, model: Model) -> PreparedTask:
    """The validated submission with its request and price. Raises InvalidParameter and ModelNotFound."""
    links = LinkRules(runtime.settings.egress_allowed, runtime.store.key_from_url)
    return prepare_task(runtime.actions[model.action], submission, model, links)


def task_number(local: datetime, suffix: str) -> str:
    """`TASK-` + local time to the millisecond + `-` + digits that keep it unique (the guide's form)."""
    digits = local.isoformat(timespec="milliseconds")[:23].translate(_DIGITS_ALONE)
    return f"TASK-{digits}-{suffix}"
