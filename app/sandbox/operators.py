"""The operator's /journal and /control: what arrived, and the rules in force."""

from typing import Any

from fastapi import APIRouter, Depends, Request
from pydantic import ValidationError
from starlette.responses import JSONResponse, Response

from app.sandbox.control import Rule
from app.sandbox.desk import get_desk, require_key

operators = APIRouter(dependencies=[Depends(require_key)])


@operators.get("/journal")
async def read_journal(
    request: Request, outcome: str | None = None, action: str | None = None, task_id: str | None = None
) -> JSONResponse:
    """Everything that arrived, oldest first; `?outcome=accepted` are the jobs made."""
    return JSONResponse(get_desk(request).journal.read(outcome=outcome, action=action, task_id=task_id))


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
