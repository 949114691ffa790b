"""`gateway see2ai check`: reads our account at SEE2AI and formats it for output."""

import asyncio
from decimal import Decimal
from typing import Any

from app.settings import Settings
from app.telemetry.logs import configure_logs
from app.upstreams.see2ai.account import AccountStatus, UpstreamAccount, get_account
from app.upstreams.see2ai.client import See2aiClient

REASONS = {
    AccountStatus.UNREACHABLE: "SEE2AI cannot be reached",
    AccountStatus.KEY_REJECTED: "SEE2AI refuses our key",
    AccountStatus.INSUFFICIENT_BALANCE: "our balance at SEE2AI is empty",
    AccountStatus.RATE_LIMITED: "SEE2AI limits our requests",
    AccountStatus.SERVER_ERROR: "SEE2AI answers with an error",
    AccountStatus.UNREADABLE: "the response has no account of SEE2AI",
}


def fetch_account(settings: Settings) -> UpstreamAccount:
    """Reads the account in a new event loop with a client of its own."""
    configure_logs(settings)

    async def work() -> UpstreamAccount:
        see2ai = See2aiClient(settings)
        try:
            return await get_account(see2ai)
        finally:
            await see2ai.close()

    return asyncio.run(work())


def reason_unusable(account: UpstreamAccount) -> str | None:
    """Why SEE2AI would refuse our jobs; None where it accepts them."""
    if account.status is AccountStatus.USABLE:
        return None
    return f"{REASONS[account.status]}: {' '.join(account.detail.split())}"


def to_json(account: UpstreamAccount, base_url: str) -> dict[str, Any]:
    return {
        "usable": account.status is AccountStatus.USABLE,
        "standing": account.status,
        "baseUrl": base_url,
        "reachable": account.is_reachable,
        "keyAccepted": account.is_key_accepted,
        "tenant": account.name,
        "balanceTokens": _plain(account.balance_tokens),
        "balanceRmb": None if account.balance_rmb is None else f"{account.balance_rmb:.2f}",
        "note": account.detail,
    }


def to_text(account: UpstreamAccount, base_url: str) -> dict[str, Any]:
    balance = "unknown"
    if account.balance_tokens is not None:
        balance = f"{_plain(account.balance_tokens)} tokens (RMB {account.balance_rmb:.2f})"
    return {
        "upstream": base_url,
        "reachable": "yes" if account.is_reachable else "no",
        "key": {True: "accepted", False: "refused", None: "not judged"}[account.is_key_accepted],
        "tenant": account.name or "unknown",
        "balance": balance,
    }


def _plain(tokens: Decimal | None) -> int | str | None:
    """Whole tokens as a number, a fraction as a string, so that JSON keeps it exact."""
    if tokens is None:
        return None
    return int(tokens) if tokens == tokens.to_integral_value() else f"{tokens:f}"
