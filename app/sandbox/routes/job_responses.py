"""The responses about a job: at its submit, at a poll, and at the end of a request that blocks."""

from math import ceil
from typing import Any

from fastapi import Request
from starlette.responses import JSONResponse, Response

from app.sandbox import clock
from app.sandbox.actions.action import OK, Action, JobSnapshot
from app.sandbox.error_responses import END_CODES, error_response
from app.sandbox.faults.faulty_responses import apply_fault
from app.sandbox.faults.misbehaviour import DelayedResponse
from app.sandbox.jobs.job import Job, JobStatus, initial_status, status_at
from app.sandbox.jobs.result_urls import sign_urls
from app.sandbox.rules.rule import FaultRule
from app.sandbox.state import get_origin, get_state


def submit_response(request: Request, action: Action, job: Job) -> JSONResponse:
    """What a submit that does not block answers."""
    status = initial_status(job)
    model = job.extra_fields.get("model", action.model)
    state_fields = action.state_fields(job, status)
    approval_fields = _approval_fields(request, job, status)
    return JSONResponse({"task_id": job.task_id, **state_fields, "model": model, **approval_fields})


def blocking_response(
    request: Request, action: Action, job: Job, rule: FaultRule | None, earlier_id: str
) -> DelayedResponse:
    """Answers when the job has ended, with the fault of the rule."""

    def respond() -> Response:
        if job.scenario.succeeds:
            # A timer may fire a little early, and the answer must not be "running" then.
            response: Response = snapshot_response(request, action, job, max(clock.now(), job.ends_at or 0))
        else:
            response = _failed_response(action, job)
        return apply_fault(rule, response, other_id=earlier_id)

    if job.ends_at is None:
        return DelayedResponse(None, respond)
    return DelayedResponse(max(0.0, job.ends_at - clock.now()), respond)


def snapshot_response(request: Request, action: Action, job: Job, now: float) -> JSONResponse:
    """The action's full output at this moment; with result URLs only where the job has succeeded."""
    status, code = status_at(job, now), OK
    urls: list[str] = []
    failure_fields: dict[str, Any] = {}
    if status.has_succeeded:
        job.success_polls += 1
        hidden = job.scenario.polls_without_url
        if hidden != "always" and job.success_polls > hidden:
            secret = get_state(request).signing_secret
            urls = sign_urls(job, action.url_lifetime_seconds, origin=get_origin(request), secret=secret)
    elif status.has_ended:
        code, failure_fields = action.failure(job)
    answer = action.answer(JobSnapshot(job, status, urls, now))
    return JSONResponse(answer | failure_fields | _approval_fields(request, job, status), code)


def _failed_response(action: Action, job: Job) -> Response:
    """A failed job in the blocking form: an error, or the guidance that the action gives."""
    code, fields = action.failure(job)
    if code != OK:
        return JSONResponse(action.state_fields(job, status_at(job, job.ends_at or 0)) | fields, code)
    return error_response(END_CODES.get(job.scenario.end_state, 500), job.scenario.text)


def _approval_fields(request: Request, job: Job, status: JobStatus) -> dict[str, Any]:
    """The fields of a job that waits for approval. The link does nothing, because the scenario decides."""
    if status.approval_left_seconds is None:
        return {}
    approval_id = f"approval-{job.task_id}"
    return {
        "approval_id": approval_id,
        "approval_urls": {"approve": f"{get_origin(request)}/approvals/{approval_id}/approve"},
        "expires_in_s": ceil(status.approval_left_seconds),
    }
