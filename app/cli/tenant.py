"""What `gateway see2ai check` asks SEE2AI, and how it tells what it heard."""

import asyncio
from decimal import Decimal
from typing import Any

from app.logs import set_up_logs
from app.see2ai.client import See2ai
from app.see2ai.tenant import Standing, Tenant, read_tenant
from app.settings import Settings

REASONS = {
    Standing.UNREACHABLE: "SEE2AI cannot be reached",
    Standing.KEY_REFUSED: "SEE2AI refuses our key",
    Standing.PURSE_EMPTY: "our purse at SEE2AI is empty",
    Standing.RATE_LIMITED: "SEE2AI finds that it is asked too often",
    Standing.SERVER_ERROR: "SEE2AI has trouble of its own",
    Standing.UNREADABLE: "what answers is not SEE2AI as we know it",
}


def ask_tenant(settings: Settings) -> Tenant:
    """In a loop and with a client of its own."""
    set_up_logs(settings)

    async def ask() -> Tenant:
        see2ai = See2ai(settings)
        try:
            return await read_tenant(see2ai)
        finally:
            await see2ai.close()

    return asyncio.run(ask())


def why_unusable(tenant: Tenant) -> str | None:
    """None where jobs can be made."""
    if tenant.status is Standing.USABLE:
        return None
    return f"{REASONS[tenant.status]}: {' '.join(tenant.detail.split())}"


def as_data(tenant: Tenant, base_url: str) -> dict[str, Any]:
    return {
        "usable": tenant.status is Standing.USABLE,
        "standing": tenant.status,
        "baseUrl": base_url,
        "reachable": tenant.is_reachable,
        "keyAccepted": tenant.is_key_accepted,
        "tenant": tenant.name,
        "balanceTokens": _plain(tenant.balance_tokens),
        "balanceRmb": None if tenant.balance_rmb is None else f"{tenant.balance_rmb:.2f}",
        "note": tenant.detail,
    }


def in_words(tenant: Tenant, base_url: str) -> dict[str, Any]:
    balance = "unknown"
    if tenant.balance_tokens is not None:
        balance = f"{_plain(tenant.balance_tokens)} tokens (RMB {tenant.balance_rmb:.2f})"
    return {
        "upstream": base_url,
        "reachable": "yes" if tenant.is_reachable else "no",
        "key": {True: "accepted", False: "refused", None: "not judged"}[tenant.is_key_accepted],
        "tenant": tenant.name or "unknown",
        "balance": balance,
    }


def _plain(tokens: Decimal | None) -> int | str | None:
    """Whole tokens as a number; a fraction as it is, in quotes."""
    if tokens is None:
        return None
    return int(tokens) if tokens == tokens.to_integral_value() else f"{tokens:f}"
