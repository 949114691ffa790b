"""The tenant's two routes: who it is and what it owns, and what it consumed."""

from typing import Any

from fastapi import APIRouter, Depends, Request

from app.sandbox.desk import get_desk, get_entry, require_key

PURSE_TOKENS = 1_000_000_000

tenant = APIRouter(prefix="/api/v1", dependencies=[Depends(require_key)])


@tenant.get("/me")
async def me(request: Request) -> dict[str, Any]:
    """The tenant and its balance in platform tokens: 0 while /control keeps the purse empty."""
    desk = get_desk(request)
    get_entry(request).outcome = "told"
    balance = 0 if desk.control.is_purse_empty else max(0, PURSE_TOKENS - desk.jobs.cost_points.total())
    return {"tenant_id": "sandbox", "tenant_name": "SANDBOX", "status": "active", "balance": balance}


@tenant.get("/usage")
async def usage(request: Request) -> dict[str, Any]:
    """What was consumed since the sandbox started, in all and by each action."""
    jobs = get_desk(request).jobs
    get_entry(request).outcome = "told"
    return {
        "tenant_id": "sandbox",
        "requests": jobs.requests.total(),
        "cost_points": jobs.cost_points.total(),
        "actions": {
            name: {"requests": count, "cost_points": jobs.cost_points[name]} for name, count in jobs.requests.items()
        },
    }
