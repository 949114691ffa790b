"""The operator's /journal and /control: the requests that arrived, and the rules in force."""

from typing import Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import JSONResponse, Response

from app.sandbox.parsing import InputError, parse_json
from app.sandbox.rules.parse import RuleError, parse_rules
from app.sandbox.rules.rule_set import RuleSet
from app.sandbox.state import get_state, require_key

control_routes = APIRouter(dependencies=[Depends(require_key)])


@control_routes.get("/journal")
async def read_request_log(
    request: Request, outcome: str | None = None, action: str | None = None, task_id: str | None = None
) -> JSONResponse:
    """Every request, oldest first; with `?outcome=accepted` those that made a job."""
    return JSONResponse(get_state(request).request_log.read(outcome=outcome, action=action, task_id=task_id))


@control_routes.delete("/journal", status_code=204)
async def clear_request_log(request: Request) -> None:
    get_state(request).request_log.clear()


@control_routes.get("/control")
async def read_rules(request: Request) -> list[dict[str, Any]]:
    return get_state(request).control.as_json()


@control_routes.post("/control")
async def set_rules(request: Request) -> Response:
    """Replaces all rules by one rule, or by a list of rules; answers with the rules now in force."""
    try:
        control = RuleSet(parse_rules(parse_json(await request.body())))
    except (InputError, RuleError) as error:
        return JSONResponse({"detail": error.errors}, 422)
    get_state(request).control = control
    return JSONResponse(control.as_json())


@control_routes.delete("/control", status_code=204)
async def clear_rules(request: Request) -> None:
    get_state(request).control = RuleSet()
