"""`gateway see2ai`: whether SEE2AI can be reached with our key, and what is left in the purse."""

from decimal import Decimal
from typing import Any

import typer

from app.cli.console import Json, answer, finish_badly, run_with_runtime, settings_or_exit
from app.see2ai.tenant import Standing, Tenant, read_tenant

see2ai = typer.Typer(no_args_is_help=True, help="The upstream: key and purse.")

REASONS = {
    Standing.UNREACHABLE: "SEE2AI cannot be reached",
    Standing.KEY_REFUSED: "SEE2AI refuses our key",
    Standing.PURSE_EMPTY: "our purse at SEE2AI is empty",
    Standing.BUSY: "SEE2AI finds that it is asked too often",
    Standing.TROUBLE: "SEE2AI has trouble of its own",
    Standing.UNREADABLE: "what answers is not SEE2AI as we know it",
}


@see2ai.command("check")
def see2ai_check(json: Json = False) -> None:
    """Asks SEE2AI who we are: exit 0 where jobs can be made, 1 with the reason."""
    settings = settings_or_exit()
    if not settings.see2ai_api_key:
        finish_badly("SEE2AI_API_KEY is not set")
    tenant: Tenant = run_with_runtime(lambda runtime: read_tenant(runtime.see2ai))
    answer(_as_data(tenant, settings.see2ai_base_url) if json else _in_words(tenant, settings.see2ai_base_url), json)
    if tenant.standing is not Standing.USABLE:
        finish_badly(f"{REASONS[tenant.standing]}: {' '.join(tenant.note.split())}")


def _as_data(tenant: Tenant, base_url: str) -> dict[str, Any]:
    return {
        "usable": tenant.standing is Standing.USABLE,
        "standing": tenant.standing,
        "baseUrl": base_url,
        "reachable": tenant.is_reachable,
        "keyAccepted": tenant.is_key_accepted,
        "tenant": tenant.name,
        "balanceTokens": _plain(tenant.balance_tokens),
        "balanceRmb": None if tenant.balance_rmb is None else f"{tenant.balance_rmb:.2f}",
        "note": tenant.note,
    }


def _in_words(tenant: Tenant, base_url: str) -> dict[str, Any]:
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
