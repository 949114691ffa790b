"""The three paths of every action: its POST, the POST of its `/async`, and the status of a job."""

import hashlib
from dataclasses import replace
from uuid import uuid4

from fastapi import APIRouter, Depends, Request
from starlette.responses import JSONResponse, Response

from app.sandbox import clock
from app.sandbox.actions.action import Action, JobSpec, SubmitRequest
from app.sandbox.actions.applicability import unusable_reason
from app.sandbox.error_responses import error_response, field_error
from app.sandbox.faults.faulty_responses import apply_fault, failure_response
from app.sandbox.jobs.job import Job, typical_seconds
from app.sandbox.media.images import MAX_TEXT_LENGTH
from app.sandbox.parsing import InputError, parse_body
from app.sandbox.routes.fault_matching import match_fault
from app.sandbox.routes.job_responses import blocking_response, snapshot_response, submit_response
from app.sandbox.rules.directives import parse_prompt, visible_text
from app.sandbox.rules.parse import RuleError
from app.sandbox.rules.rule_set import RuleSet
from app.sandbox.rules.scenario import Scenario
from app.sandbox.state import SandboxState, get_entry, get_state, require_key

action_routes = APIRouter(prefix="/api/v1/actions", dependencies=[Depends(require_key)])


@action_routes.post("/{name}")
async def submit(request: Request, name: str) -> Response:
    """Accepts a job. Answers when it is done, or at once, as the action and its input say."""
    action = _find_action(request, name)
    return await _submit(request, action) if action else _no_such_path(request)


@action_routes.post("/{name}/async")
async def submit_async(request: Request, name: str) -> Response:
    """Accepts a job and answers at once with its `task_id` and first status."""
    action = _find_action(request, name)
    return await _submit(request, action, is_async=True) if action and action.has_async_path else _no_such_path(request)


@action_routes.get("/{name}/status/{task_id}")
async def status(request: Request, name: str, task_id: str) -> Response:
    """The action's output at this moment; the result only on success, its URLs signed anew at each poll."""
    state, entry, action = get_state(request), get_entry(request), _find_action(request, name)
    if action is None or not action.has_status_path:
        return _no_such_path(request)
    entry.outcome, entry.task_id = "polled", task_id
    job = state.jobs.find(task_id)
    if job is not None and job.action != name:
        job = None
    rule = await match_fault(request, "poll", state.control, *([job.rules] if job else []))
    if rule is not None and rule.kind == "fail":
        return failure_response(rule)
    if job is None:
        entry.outcome = "refused"
        return error_response(404)
    return apply_fault(rule, snapshot_response(request, action, job, clock.now()), other_id=uuid4().hex)


async def _submit(request: Request, action: Action, *, is_async: bool = False) -> Response:
    state, entry = get_state(request), get_entry(request)
    entry.outcome = "refused"
    rule = await match_fault(request, "submit", state.control)
    if rule is not None and rule.kind == "fail":
        return failure_response(rule)
    try:
        spec = await action.read(SubmitRequest(request, parse_body(await request.body())))
        rules = _prompt_rules(state, action, spec)
    except InputError as error:
        return action.refuse(error)
    except RuleError as error:
        errors = [{**one, "loc": ["body", action.directive_field, *one["loc"]]} for one in error.errors]
        return JSONResponse({"detail": errors}, 422)
    rule = rule or await match_fault(request, "submit", rules)
    if rule is not None and rule.kind == "fail":
        return failure_response(rule)
    job = _make_job(state, action, spec, rules)
    earlier_id = state.jobs.newest_id(action.name) or job.task_id
    state.jobs.add(job)
    entry.outcome, entry.task_id = "accepted", job.task_id
    # A client that waits for the end could not give an approval.
    if spec.blocks and not is_async and job.scenario.approval_seconds is None:
        return blocking_response(request, action, job, rule, earlier_id)
    return apply_fault(rule, submit_response(request, action, job), other_id=earlier_id)


def _prompt_rules(state: SandboxState, action: Action, spec: JobSpec) -> RuleSet:
    """The rules of the prompt, counted by prompt and action. Raises RuleError for one that can do nothing here."""
    rules = parse_prompt(spec.prompt)
    reasons = [unusable_reason(rule, action, spec.media) for rule in rules if rule.action in {None, action.name}]
    if errors := [field_error("sandbox_directive", [], f"sandbox directive: {reason}") for reason in reasons if reason]:
        raise RuleError(errors)
    return RuleSet(rules, state.jobs.uses_of(f"{action.name} {_digest(spec.prompt)}") if rules else None)


def _make_job(state: SandboxState, action: Action, spec: JobSpec, rules: RuleSet) -> Job:
    shaping = [
        one.match_scenario(action.name, lambda rule: not unusable_reason(rule, action, spec.media))
        for one in (state.control, rules)
    ]
    scenario = Scenario(**(shaping[1] | shaping[0]))
    task_id = uuid4().hex
    default_seconds = typical_seconds(task_id, action.typical_seconds) * state.seconds_scale
    # One character more than is shown, so that the image can show that there was more.
    text, label = visible_text(spec.prompt)[: MAX_TEXT_LENGTH + 1], f"{task_id} · {spec.media.label}"
    return Job(
        task_id=task_id,
        action=action.name,
        scenario=scenario,
        media=replace(spec.media, text=text, digest=_digest(spec.prompt), label=label),
        state_names=action.state_names,
        cost_points=spec.cost_points,
        submitted_at=clock.now(),
        take_seconds=default_seconds if scenario.take_seconds is None else scenario.take_seconds,
        rules=rules.for_job(),
        extra_fields=spec.extra_fields,
    )


def _digest(prompt: str) -> str:
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()


def _find_action(request: Request, name: str) -> Action | None:
    known: dict[str, Action] = request.app.state.actions
    return known.get(name)


def _no_such_path(request: Request) -> Response:
    get_entry(request).outcome = "refused"
    return error_response(404, "Not Found")
