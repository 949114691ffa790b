"""The account's two routes: its name and balance, and what it consumed."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request

from app.sandbox.state import get_entry, get_state, require_key

INITIAL_BALANCE_TOKENS = 1_000_000_000

account_routes = APIRouter(prefix="/api/v1", dependencies=[Depends(require_key)])


@account_routes.get("/me")
async def me(request: Request) -> dict[str, Any]:
    """The account and its balance in platform tokens: 0 while a rule of /control says that it is empty."""
    state = get_state(request)
    get_entry(request).outcome = "reported"
    balance = max(0, INITIAL_BALANCE_TOKENS - state.jobs.cost_points.total())
    if state.control.is_balance_empty:
        balance = 0
    return {"tenant_id": "sandbox", "tenant_name": "SANDBOX", "status": "active", "balance": balance}


@account_routes.get("/usage")
async def usage(
    request: Request, date: Annotated[str | None, Query(pattern=r"^\d{4}-\d{2}-\d{2}$")] = None
) -> dict[str, Any]:
    """What was consumed since the sandbox started, or on one day in China: in all, and by each action.

    SEE2AI documents neither the parameter nor the form of the answer. Both are guesses.
    """
    requests, cost_points = get_state(request).jobs.consumed(date)
    get_entry(request).outcome = "reported"
    return {
        "tenant_id": "sandbox",
        **({} if date is None else {"date": date}),
        "requests": requests.total(),
        "cost_points": cost_points.total(),
        "actions": {name: {"requests": count, "cost_points": cost_points[name]} for name, count in requests.items()},
    }
