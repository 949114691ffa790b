"""The three paths of every action: its POST, the POST of its `/async`, and the status of a job. One way for all."""

import hashlib
from dataclasses import replace
from math import ceil
from typing import Any
from uuid import uuid4

import anyio
from fastapi import APIRouter, Depends, Request
from starlette.responses import JSONResponse, Response

from app.sandbox import clock
from app.sandbox.actions.action import OK, Action, Arrival, Moment, Order
from app.sandbox.answers import bend, fail
from app.sandbox.bodies import InputError, parse_body
from app.sandbox.desk import Desk, get_desk, get_entry, get_origin, require_key
from app.sandbox.jobs import Job, Look, first_look, look_at, next_trouble, usual_seconds
from app.sandbox.markers import parse_prompt, visible_text
from app.sandbox.pictures import TEXT_SHOWN
from app.sandbox.plan import Plan, Trouble
from app.sandbox.refusals import END_CODES, fault, refusal
from app.sandbox.results import sign_urls
from app.sandbox.trouble import Late
from app.sandbox.words import MarkerError
from app.sandbox.works import MEDIA_TYPES

actions = APIRouter(prefix="/api/v1/actions", dependencies=[Depends(require_key)])


@actions.post("/{name}")
async def submit(request: Request, name: str) -> Response:
    """Accepts a job and answers when it is done, or at once, as the action and its input have it."""
    action = _find_action(request, name)
    return await _submit(request, action) if action else _no_such_path(request)


@actions.post("/{name}/async")
async def submit_async(request: Request, name: str) -> Response:
    """Accepts a job and answers at once with its `task_id` and first status."""
    action = _find_action(request, name)
    return await _submit(request, action, is_async=True) if action and action.has_async_path else _no_such_path(request)


@actions.get("/{name}/status/{task_id}")
async def status(request: Request, name: str, task_id: str) -> Response:
    """The action's output at this moment; the result only on success, its URLs freshly signed at each look."""
    desk, entry, action = get_desk(request), get_entry(request), _find_action(request, name)
    if action is None or not action.has_status_path:
        return _no_such_path(request)
    entry.outcome, entry.task_id = "looked", task_id
    delay_seconds, trouble = desk.control.strike("poll", name)
    await anyio.sleep(delay_seconds)
    job = desk.jobs.find(task_id)
    if job is not None and job.action != name:
        job = None
    if trouble is None and job is not None:
        trouble = next_trouble(job.plan.troubles, "poll", job.used)
    if trouble is not None:
        entry.trouble = trouble.name
        if trouble.kind == "fail":
            return fail(trouble)
    if job is None:
        entry.outcome = "refused"
        return refusal(404)
    return bend(trouble, _look(request, action, job, clock.now()), other_id=uuid4().hex)


async def _submit(request: Request, action: Action, *, is_async: bool = False) -> Response:
    desk, entry = get_desk(request), get_entry(request)
    entry.outcome = "refused"
    delay_seconds, trouble = desk.control.strike("submit", action.name)
    await anyio.sleep(delay_seconds)
    if trouble is not None and trouble.kind == "fail":
        entry.trouble = trouble.name
        return fail(trouble)
    try:
        order = await action.read(Arrival(request, parse_body(await request.body())))
        job = _make_job(desk, action, order)
    except InputError as error:
        return action.refuse(error)
    except MarkerError as error:
        return JSONResponse({"detail": [fault("sandbox_marker", ["body", action.marker_field], str(error))]}, 422)
    if trouble is None and any(planned.where == "submit" for planned in job.plan.troubles):
        trouble = next_trouble(job.plan.troubles, "submit", desk.jobs.used_by(job.prompt_digest))
    if trouble is not None:
        entry.trouble = trouble.name
        if trouble.kind == "fail":
            return fail(trouble)
    earlier_id = desk.jobs.newest_id(action.name) or job.task_id
    desk.jobs.open(job)
    entry.outcome, entry.task_id = "accepted", job.task_id
    # Nobody who waits for the end could give an approval.
    if order.blocks and not is_async and job.plan.approval_seconds is None:
        return _answer_at_the_end(request, action, job, trouble, earlier_id)
    return bend(trouble, JSONResponse(_first_answer(request, action, job)), other_id=earlier_id)


def _make_job(desk: Desk, action: Action, order: Order) -> Job:
    plan = parse_prompt(order.prompt)
    _require_fitting(plan, action, order)
    task_id = uuid4().hex
    usual = usual_seconds(task_id, action.usual_seconds) * desk.seconds_scale
    digest = hashlib.sha256(order.prompt.encode("utf-8", "surrogatepass")).hexdigest()
    # One character more than is shown, so that the picture can tell that there was more.
    text, label = visible_text(order.prompt)[: TEXT_SHOWN + 1], f"{task_id} · {order.work.label}"
    return Job(
        task_id=task_id,
        action=action.name,
        plan=plan,
        work=replace(order.work, text=text, digest=digest, label=label),
        words=action.words,
        # The same prompt sent to two actions has troubles of its own at each.
        prompt_digest=f"{action.name} {digest}",
        cost_points=order.cost_points,
        submitted_at=clock.now(),
        take_seconds=usual if plan.take_seconds is None else plan.take_seconds,
        facts=order.facts,
    )


def _require_fitting(plan: Plan, action: Action, order: Order) -> None:
    """Raises MarkerError for a clause that could do nothing at this action."""
    if plan.place and not action.knows_places:
        raise MarkerError("place", "an action with more than one place for its result: UniWorld")
    if plan.size_bytes is not None and MEDIA_TYPES[order.work.output_format] != "video/mp4":
        raise MarkerError("size", "a video: only those can be padded")
    if plan.images != Plan().images and not action.knows_images:
        raise MarkerError("images", "an action that lists its results: fast image or video")
    if action.has_status_path:
        return
    idle = {"state": plan.running_word, "progress": plan.progress}
    for word in (word for word, asked in idle.items() if asked):
        raise MarkerError(word, "an action with a status to ask for")
    if any(trouble.kind in {"no-task-id", "reuse-task-id"} for trouble in plan.troubles):
        raise MarkerError("no-task-id or reuse-task-id", "an action that gives its jobs an id")
    if plan.approval_seconds is not None:
        raise MarkerError("approval", "an action with a status to ask for")
    if any(trouble.where == "poll" for trouble in plan.troubles):
        raise MarkerError("poll", "an action with a status to ask for")


def _first_answer(request: Request, action: Action, job: Job) -> dict[str, Any]:
    look = first_look(job)
    model = job.facts.get("model", action.model)
    return {"task_id": job.task_id, **action.word(job, look), "model": model, **_approval(request, job, look)}


def _answer_at_the_end(
    request: Request, action: Action, job: Job, trouble: Trouble | None, earlier_id: str
) -> Response:
    def answer() -> Response:
        if job.plan.succeeds:
            # A timer may wake a little early, and the answer must not be "running" then.
            good: Response = _look(request, action, job, max(clock.now(), job.ends_at or 0))
        else:
            good = _failed(action, job)
        return bend(trouble, good, other_id=earlier_id)

    if job.ends_at is None:
        return Late(None, answer)
    return Late(max(0.0, job.ends_at - clock.now()), answer)


def _failed(action: Action, job: Job) -> Response:
    """How the blocking form tells of a failed job: as an error, or with the guidance the action gives."""
    code, told = action.failure(job)
    if code != OK:
        return JSONResponse(action.word(job, look_at(job, job.ends_at or 0)) | told, code)
    return refusal(END_CODES.get(job.plan.end_word.lower(), 500), job.plan.end_reason)


def _look(request: Request, action: Action, job: Job, now: float) -> JSONResponse:
    look, code = look_at(job, now), OK
    urls: list[str] = []
    told: dict[str, Any] = {}
    if look.has_succeeded:
        job.looks_at_success += 1
        without = job.plan.looks_without_url
        if without is not None and job.looks_at_success > without:
            urls = sign_urls(request, job, action.urls_live_seconds)
    elif look.has_ended:
        code, told = action.failure(job)
    answer = action.answer(Moment(job, look, urls, now))
    return JSONResponse(answer | told | _approval(request, job, look), code)


def _approval(request: Request, job: Job, look: Look) -> dict[str, Any]:
    """What a job that waits for approval tells; its link is only for show, the plan decides."""
    if look.approval_left_seconds is None:
        return {}
    approval_id = f"approval-{job.task_id}"
    return {
        "approval_id": approval_id,
        "approval_urls": {"approve": f"{get_origin(request)}/approvals/{approval_id}/approve"},
        "expires_in_s": ceil(look.approval_left_seconds),
    }


def _find_action(request: Request, name: str) -> Action | None:
    known: dict[str, Action] = request.app.state.actions
    return known.get(name)


def _no_such_path(request: Request) -> Response:
    get_entry(request).outcome = "refused"
    return refusal(404, "Not Found")
