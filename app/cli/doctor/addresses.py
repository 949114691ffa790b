"""What lies at an address: this gateway at PUBLIC_URL, SEE2AI that accepts our key, and the keys of JWT_JWKS."""

import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import httpx

from app.accounts.log_in.jwks import load_key_set
from app.cli.admin.account import reason_unusable, to_text
from app.cli.doctor.checks import Check, Group, Outcome, close_quietly, describe
from app.egress import Egress
from app.settings import Settings
from app.upstreams.see2ai.account import AccountStatus, get_account
from app.upstreams.see2ai.client import See2aiClient

REACHABLE = "Let PUBLIC_URL be the address at which callers reach the gateway."
KEY_SET = "Let JWT_JWKS be a file or an https URL with a JWK set for JWT_ALGORITHM. Until then every JWT gets 503."
REMEDIES = {
    AccountStatus.UNREACHABLE: "Check SEE2AI_BASE_URL, DNS and the firewall.",
    AccountStatus.KEY_REJECTED: "Set a good SEE2AI_API_KEY, and restart the workers.",
    AccountStatus.INSUFFICIENT_BALANCE: "Top up the balance at SEE2AI.",
    AccountStatus.RATE_LIMITED: "Wait a minute, and run this again.",
    AccountStatus.SERVER_ERROR: "Wait, or ask SEE2AI.",
    AccountStatus.UNREADABLE: "Let SEE2AI_BASE_URL lead to SEE2AI.",
}


def public_url_group(settings: Settings) -> Group[Settings]:
    @asynccontextmanager
    async def use() -> AsyncIterator[Settings]:
        yield settings

    return Group(use, [Check("public url", _check_public_url, REACHABLE)])


async def _check_public_url(settings: Settings) -> Outcome:
    url, is_production = settings.own_url, settings.environment == "production"
    parts = urlsplit(url)
    if is_production and not settings.public_url:
        return Outcome("ok", "PUBLIC_URL is empty: links to results begin with the bucket's address")
    if is_production and _is_local(parts.hostname or ""):
        return Outcome("failed", f"{url} is an address that only this machine or network reaches", REACHABLE)
    outcome = await _ask(url)
    if outcome.status == "ok" and is_production and parts.scheme != "https":
        return Outcome("warning", f"{url} is not https", "Put a proxy with TLS in front of the API.")
    return outcome


async def _ask(url: str) -> Outcome:
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=httpx.Timeout(5)) as client:
            answer = await client.get(f"{url}/healthz")
    except httpx.HTTPError as error:
        if "certificate" in str(error).lower():
            return Outcome("failed", f"{url}: {describe(error)}", "Install a certificate that callers accept.")
        text = f"nothing answers at {url} as seen from this machine"
        return Outcome("warning", text, "Start `gateway serve`, and check the proxy, DNS and the firewall.")
    try:
        body = answer.json()
        is_gateway = body["code"] == answer.status_code == httpx.codes.OK and body["data"] == {"status": "ok"}
    except (ValueError, KeyError, TypeError):
        is_gateway = False
    if not is_gateway:
        text = f"{url}/healthz answers HTTP {answer.status_code}, and not as the gateway does"
        remedy = "Let PUBLIC_URL lead to the gateway, and let the proxy pass all paths on unchanged."
        return Outcome("failed", text, remedy)
    return Outcome("ok", f"the gateway answers at {url}")


def _is_local(host: str) -> bool:
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return host == "localhost" or "." not in host or host.endswith((".local", ".internal", ".localhost"))


def upstream_group(settings: Settings) -> Group[See2aiClient]:
    @asynccontextmanager
    async def use() -> AsyncIterator[See2aiClient]:
        client = See2aiClient(settings)
        try:
            yield client
        finally:
            await close_quietly(client.close())

    async def check(client: See2aiClient) -> Outcome:
        if not settings.see2ai_api_key:
            text = "SEE2AI_API_KEY is empty: only `gateway up` works, with its sandbox"
            return Outcome("warning", text, "Set SEE2AI_API_KEY for real jobs.")
        account = await get_account(client)
        reason = reason_unusable(account)
        if reason is not None:
            is_short = account.status is AccountStatus.RATE_LIMITED
            return Outcome("warning" if is_short else "failed", reason, REMEDIES[account.status])
        return Outcome("ok", f"our key is accepted; balance {to_text(account, settings.see2ai_base_url)['balance']}")

    return Group(use, [Check("see2ai", check, REMEDIES[AccountStatus.UNREACHABLE])])


def log_in_group(settings: Settings) -> Group[Egress]:
    @asynccontextmanager
    async def use() -> AsyncIterator[Egress]:
        egress = Egress(settings.egress_allowed)
        try:
            yield egress
        finally:
            await egress.close()

    async def check(egress: Egress) -> Outcome:
        keys = await load_key_set(settings.jwt_jwks, settings.jwt_algorithm, egress)
        names = ", ".join(sorted(filter(None, keys))) or "without an id"
        return Outcome("ok", f"{settings.jwt_algorithm} keys: {names}")

    return Group(use, [Check("jwt keys", check, KEY_SET)])
