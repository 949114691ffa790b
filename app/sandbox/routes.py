"""The action's three routes, the tenant's two, and the operator's /journal and /control. No pictures here."""

import hashlib
import json
from typing import Any
from uuid import uuid4

import anyio
from fastapi import APIRouter, Depends, Request
from pydantic import ValidationError
from starlette.responses import JSONResponse, Response

from app.sandbox import clock
from app.sandbox.control import Rule
from app.sandbox.desk import Desk, get_desk, get_entry, require_key
from app.sandbox.jobs import Job, look_at, next_trouble, usual_seconds
from app.sandbox.markers import MarkerError, Trouble, parse_prompt, visible_text
from app.sandbox.pictures import TEXT_SHOWN
from app.sandbox.results import sign_urls
from app.sandbox.trouble import Late, misbehave
from app.sandbox.wire import (
    ACTION,
    END_CODES,
    FastImageInput,
    InputError,
    job_answer,
    marker_fault,
    read_input,
    refusal,
)

PURSE_TOKENS = 1_000_000_000

actions = APIRouter(prefix="/api/v1", dependencies=[Depends(require_key)])
operators = APIRouter(dependencies=[Depends(require_key)])


@actions.post(f"/actions/{ACTION}")
async def generate(request: Request) -> Response:
    """Accepts a job and answers when it is done, as SEE2AI's blocking form does."""
    return await _submit(request, blocking=True)


@actions.post(f"/actions/{ACTION}/async")
async def submit(request: Request) -> Response:
    """Accepts a job and answers at once with its `task_id` and first status."""
    return await _submit(request, blocking=False)


@actions.get(f"/actions/{ACTION}/status/{{task_id}}")
async def status(request: Request, task_id: str) -> Response:
    """The full output schema at this moment; `result_urls` only on success, freshly signed at each look."""
    desk, entry = get_desk(request), get_entry(request)
    entry.outcome, entry.task_id = "looked", task_id
    delay_seconds, trouble = desk.control.strike("poll")
    await anyio.sleep(delay_seconds)
    job = desk.jobs.find(task_id)
    if trouble is None and job is not None:
        trouble = next_trouble(job.plan.troubles, "poll", job.used)
    if trouble is not None:
        entry.trouble = trouble.name
        if trouble.kind == "fail":
            return _fail(trouble)
    if job is None:
        entry.outcome = "refused"
        return refusal(404)
    return _with_trouble(trouble, _look(request, job, clock.now()), other_id=uuid4().hex)


@actions.get("/me")
async def me(request: Request) -> dict[str, Any]:
    """The tenant and its balance in platform tokens: 0 while /control keeps the purse empty."""
    desk = get_desk(request)
    get_entry(request).outcome = "told"
    balance = 0 if desk.control.is_purse_empty else max(0, PURSE_TOKENS - desk.jobs.cost_points)
    return {"tenant_id": "sandbox", "tenant_name": "SANDBOX", "status": "active", "balance": balance}


@actions.get("/usage")
async def usage(request: Request) -> dict[str, Any]:
    """What was consumed since the sandbox started."""
    desk = get_desk(request)
    get_entry(request).outcome = "told"
    counts = {"requests": desk.jobs.accepted, "cost_points": desk.jobs.cost_points}
    return {"tenant_id": "sandbox", **counts, "actions": {ACTION: counts}}


@operators.get("/journal")
async def read_journal(request: Request, outcome: str | None = None, task_id: str | None = None) -> JSONResponse:
    """Everything that arrived, oldest first; `?outcome=accepted` are the jobs made."""
    return JSONResponse(get_desk(request).journal.read(outcome=outcome, task_id=task_id))


@operators.delete("/journal", status_code=204)
async def clear_journal(request: Request) -> None:
    get_desk(request).journal.clear()


@operators.get("/control")
async def read_control(request: Request) -> list[dict[str, Any]]:
    return [rule.model_dump() for rule in get_desk(request).control.rules]


@operators.post("/control")
async def set_control(request: Request) -> Response:
    """Replaces all rules by one rule, or by a list of them; answers with what is now in force."""
    try:
        wanted = await request.json()
        rules = [Rule.model_validate(rule) for rule in (wanted if isinstance(wanted, list) else [wanted])]
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        return JSONResponse({"detail": faults}, 422)
    except ValueError as error:
        return JSONResponse({"detail": str(error)}, 422)
    get_desk(request).control.rules = rules
    return JSONResponse([rule.model_dump() for rule in rules])


@operators.delete("/control", status_code=204)
async def clear_control(request: Request) -> None:
    get_desk(request).control.rules = []


async def _submit(request: Request, *, blocking: bool) -> Response:
    desk, entry = get_desk(request), get_entry(request)
    entry.outcome = "refused"
    delay_seconds, trouble = desk.control.strike("submit")
    await anyio.sleep(delay_seconds)
    if trouble is not None and trouble.kind == "fail":
        entry.trouble = trouble.name
        return _fail(trouble)
    try:
        wanted = read_input(await request.body())
        job = _make_job(desk, wanted)
    except InputError as refused:
        return JSONResponse({"detail": refused.faults}, 422)
    except MarkerError as error:
        return JSONResponse({"detail": marker_fault(error)}, 422)
    if trouble is None and any(planned.where == "submit" for planned in job.plan.troubles):
        trouble = next_trouble(job.plan.troubles, "submit", desk.jobs.used_by(job.prompt_digest))
    if trouble is not None:
        entry.trouble = trouble.name
        if trouble.kind == "fail":
            return _fail(trouble)
    earlier_id = desk.jobs.newest_id() or job.task_id
    desk.jobs.open(job)
    entry.outcome, entry.task_id = "accepted", job.task_id
    if blocking:
        return _answer_at_the_end(request, job, trouble, earlier_id)
    return _with_trouble(trouble, JSONResponse(_first_answer(job)), other_id=earlier_id)


def _make_job(desk: Desk, wanted: FastImageInput) -> Job:
    plan = parse_prompt(wanted.prompt)
    task_id = uuid4().hex
    usual = usual_seconds(task_id) * desk.seconds_scale
    return Job(
        task_id=task_id,
        plan=plan,
        # One character more than is shown, so that the picture can tell that there was more.
        text=visible_text(wanted.prompt)[: TEXT_SHOWN + 1],
        prompt_digest=hashlib.sha256(wanted.prompt.encode("utf-8", "surrogatepass")).hexdigest(),
        aspect_ratio=wanted.aspect_ratio,
        resolution=wanted.resolution,
        output_format=wanted.output_format or "jpg",
        references=len(wanted.image_input or []),
        submitted_at=clock.now(),
        take_seconds=usual if plan.take_seconds is None else plan.take_seconds,
    )


def _first_answer(job: Job) -> dict[str, Any]:
    first = {"task_id": job.task_id, "status": "PENDING", "state": "pending", "model": "see2ai-image-fast"}
    if job.plan.field != "both":
        del first["status" if job.plan.field == "state" else "state"]
    return first


def _answer_at_the_end(request: Request, job: Job, trouble: Trouble | None, earlier_id: str) -> Response:
    def answer() -> Response:
        if job.plan.succeeds:
            # A timer may wake a little early, and the answer must not be "running" then.
            good: Response = _look(request, job, max(clock.now(), job.ends_at or 0))
        else:
            good = refusal(END_CODES.get(job.plan.end_word.lower(), 500), job.plan.end_reason)
        return _with_trouble(trouble, good, other_id=earlier_id)

    if job.ends_at is None:
        return Late(None, answer)
    return Late(max(0.0, job.ends_at - clock.now()), answer)


def _look(request: Request, job: Job, now: float) -> JSONResponse:
    look, urls = look_at(job, now), []
    if look.has_succeeded:
        job.looks_at_success += 1
        without = job.plan.looks_without_url
        if without is not None and job.looks_at_success > without:
            urls = sign_urls(request, job)
    return JSONResponse(job_answer(job, look, urls, now))


def _fail(trouble: Trouble) -> Response:
    return refusal(trouble.code, trouble.text, form=trouble.detail, retry_after_seconds=trouble.retry_after_seconds)


def _with_trouble(trouble: Trouble | None, answer: Response, *, other_id: str) -> Response:
    """The answer as the trouble bends it: first its JSON, then how it travels."""
    if trouble is None:
        return answer
    if trouble.kind in {"wrapped", "no-task-id", "reuse-task-id", "wrong-task-id"}:
        content = json.loads(bytes(answer.body))
        if trouble.kind == "wrapped":
            content = {"data": content}
        elif trouble.kind == "no-task-id":
            content.pop("task_id", None)
        else:
            content["task_id"] = other_id
        return JSONResponse(content, answer.status_code)
    return misbehave(trouble, answer)
