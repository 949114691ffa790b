"""The SEE2AI account of the gateway's key, `GET /api/v1/me`: whether it can pay for jobs, and its balance.

SEE2AI does not document that answer in detail: a field may be missing or have another usual name.
"""

import asyncio
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Any, cast

from app.aio import cancel_and_wait
from app.telemetry import metrics
from app.upstreams.protocol import Upstream
from app.upstreams.see2ai.client import See2aiClient, UpstreamUnreachable
from app.upstreams.see2ai.responses import HttpResponse, error_text

PATH = "/api/v1/me"
TOKENS_PER_RMB = 50_000
FRESH_SECONDS = 60.0
MAX_NOTE_LENGTH = 300
INSUFFICIENT_BALANCE_WORDS = ("余额", "欠费", "充值", "balance", "funds", "credits")
NAMES = ("tenant_name", "name", "display_name")
BALANCES = ("balance", "balance_tokens", "token_balance", "balance_points", "points_balance", "available_balance")
WRAPPERS = ("data", "tenant", "account", "wallet", "balance")


class AccountStatus(StrEnum):
    """The state of the account. `/readyz` shows these words to everybody."""

    USABLE = "ok"
    UNREACHABLE = "unreachable"
    KEY_REJECTED = "key rejected"
    INSUFFICIENT_BALANCE = "insufficient balance"
    RATE_LIMITED = "rate limited"
    SERVER_ERROR = "server error"
    UNREADABLE = "unreadable answer"


@dataclass(frozen=True, slots=True)
class UpstreamAccount:
    """What is known of the account. `detail` is the text of SEE2AI or the network, for the operator only."""

    status: AccountStatus
    name: str | None = None
    balance_tokens: Decimal | None = None
    detail: str = ""

    @property
    def is_reachable(self) -> bool:
        return self.status is not AccountStatus.UNREACHABLE

    @property
    def is_key_accepted(self) -> bool | None:
        """None where SEE2AI did not check the key."""
        if self.status in {AccountStatus.USABLE, AccountStatus.INSUFFICIENT_BALANCE}:
            return True
        return False if self.status is AccountStatus.KEY_REJECTED else None

    @property
    def balance_rmb(self) -> Decimal | None:
        return None if self.balance_tokens is None else self.balance_tokens / TOKENS_PER_RMB


def see2ai_client(upstreams: Mapping[str, Upstream]) -> See2aiClient:
    return cast(See2aiClient, upstreams["see2ai"])


async def get_account(see2ai: See2aiClient) -> UpstreamAccount:
    """One call. It never raises for an answer."""
    try:
        answer = await see2ai.get(PATH)
    except UpstreamUnreachable as error:
        return UpstreamAccount(AccountStatus.UNREACHABLE, detail=str(error))
    return parse_account(answer)


def parse_account(answer: HttpResponse) -> UpstreamAccount:
    """The account that an answer of `/api/v1/me` describes."""
    note = f"HTTP {answer.status}: {error_text(answer.body)}"[:MAX_NOTE_LENGTH]
    match answer.status:
        case 401 | 402 | 403:
            # SEE2AI answers an empty balance with a 401, too.
            is_balance = answer.status == 402 or any(word in note.lower() for word in INSUFFICIENT_BALANCE_WORDS)  # noqa: PLR2004
            return UpstreamAccount(
                AccountStatus.INSUFFICIENT_BALANCE if is_balance else AccountStatus.KEY_REJECTED, detail=note
            )
        case 429:
            return UpstreamAccount(AccountStatus.RATE_LIMITED, detail=note)
        case 200:
            return _parse_account_body(answer.body)
    return UpstreamAccount(AccountStatus.SERVER_ERROR, detail=note)


def _parse_account_body(body: bytes) -> UpstreamAccount:
    try:
        value = json.loads(body, parse_float=Decimal, parse_constant=lambda _: None)
    except (ValueError, InvalidOperation, RecursionError):
        value = None
    if not isinstance(value, dict):
        return UpstreamAccount(AccountStatus.UNREADABLE, detail=f"no JSON object: {error_text(body)}"[:MAX_NOTE_LENGTH])
    objects = list(_unwrap(value))
    balances = (read_number(one.get(name)) for one in objects for name in BALANCES)
    balance = next((number for number in balances if number is not None), None)
    name = next((one[key] for one in objects for key in NAMES if _is_name(one.get(key))), None)
    if balance is None:
        return UpstreamAccount(AccountStatus.USABLE, name)
    status = AccountStatus.USABLE if balance > 0 else AccountStatus.INSUFFICIENT_BALANCE
    return UpstreamAccount(status, name, balance, detail="" if balance > 0 else "balance 0")


def _unwrap(value: dict[str, Any], depth: int = 3) -> Iterator[dict[str, Any]]:
    """The object, then the objects in its usual wrappers."""
    yield value
    for wrapper in WRAPPERS if depth else ():
        if isinstance(value.get(wrapper), dict):
            yield from _unwrap(value[wrapper], depth - 1)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and bool(value.strip())


def read_number(value: Any) -> Decimal | None:
    """A number, or a decimal in quotes."""
    if isinstance(value, bool) or not isinstance(value, int | str | Decimal):
        return None
    try:
        number = Decimal(value)
    except InvalidOperation:
        return None
    return number if number.is_finite() and number.copy_abs() < 10**18 else None


class AccountMonitor:
    """Remembers the newest answer. SEE2AI is called at most once a minute, however often `/readyz` is."""

    def __init__(self, see2ai: See2aiClient) -> None:
        self._see2ai = see2ai
        self._last: UpstreamAccount | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._loop: asyncio.Task[None] | None = None
        self._refreshed_at = 0.0

    async def get(self, patience_seconds: float) -> UpstreamAccount | None:
        """The newest known account. It waits at most so long for a running call; None: nothing is known yet."""
        now = time.monotonic()
        if self._refreshing is None or (self._refreshing.done() and now - self._refreshed_at >= FRESH_SECONDS):
            self._refreshing, self._refreshed_at = asyncio.create_task(self._refresh()), now
        await asyncio.wait([self._refreshing], timeout=patience_seconds)
        return self._last

    def start_polling(self) -> None:
        """Keeps the metrics fresh, also while nobody calls `get`."""
        self._loop = asyncio.create_task(self._poll_loop())

    async def close(self) -> None:
        await cancel_and_wait(*filter(None, (self._loop, self._refreshing)))

    async def _poll_loop(self) -> None:
        while True:
            await self.get(FRESH_SECONDS)
            await asyncio.sleep(FRESH_SECONDS)

    async def _refresh(self) -> None:
        self._last = account = await get_account(self._see2ai)
        metrics.SEE2AI_REACHABLE.set(account.is_reachable)
        metrics.SEE2AI_BALANCE.set(math.nan if account.balance_tokens is None else float(account.balance_tokens))
