"""The account's two routes: its name and balance, and what it consumed."""

from typing import Any

from fastapi import APIRouter, Depends, Request

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
async def usage(request: Request) -> dict[str, Any]:
    """What was consumed since the sandbox started, in all and by each action."""
    jobs = get_state(request).jobs
    get_entry(request).outcome = "reported"
    return {
        "tenant_id": "sandbox",
        "requests": jobs.requests.total(),
        "cost_points": jobs.cost_points.total(),
        "actions": {
            name: {"requests": count, "cost_points": jobs.cost_points[name]} for name, count in jobs.requests.items()
        },
    }
