"""Sends one signed POST through the egress guard. The outcome's code reveals nothing about our network."""

import asyncio
from dataclasses import dataclass
from http import HTTPStatus

from app.datetimes import parse_retry_after
from app.egress import Egress, EgressConnectError, EgressError, EgressFailed, EgressForbidden, EgressTimeout
from app.webhooks.signing import Message, sign
from app.webhooks.signing_secrets import SigningSecrets

TIMEOUT_SECONDS = 10.0
"""For a whole attempt: DNS, connection, TLS and the response's head."""
MAX_RETRY_AFTER_SECONDS = 3600.0
"""A longer `Retry-After` is ignored."""
RETRY_AFTER_STATUSES = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one attempt. `status` and `duration_ms` are None where no connection was made.

    `code` is one of the delivery log's outcomes. `retry_after_seconds` is the receiver's `Retry-After`.
    """

    code: str
    status: int | None = None
    duration_ms: int | None = None
    retry_after_seconds: float | None = None

    @property
    def is_delivered(self) -> bool:
        return self.code == "delivered"

    @property
    def counts_against_endpoint(self) -> bool:
        """Whether the outcome says anything about the receiver, provided that our own network works."""
        return self.code not in {"disabled", "internal"}


async def send(egress: Egress, url: str, signing_secrets: SigningSecrets, message: Message) -> Outcome:
    """Signs with the database's time, because receivers refuse a signature that is some minutes off."""
    signature = sign(message, int(signing_secrets.now.timestamp()), signing_secrets.active())
    headers = {"Content-Type": "application/json", **signature}
    loop = asyncio.get_running_loop()
    started_at = loop.time()
    try:
        response = await egress.post(url, message.body, headers, timeout_seconds=TIMEOUT_SECONDS)
    except EgressError as error:
        code = _code_for_error(error)
        return Outcome(code, None, None if code == "unreachable" else round((loop.time() - started_at) * 1000))
    duration_ms = round((loop.time() - started_at) * 1000)
    retry_after_seconds = None
    if response.status in RETRY_AFTER_STATUSES:
        retry_after_seconds = parse_retry_after(response.retry_after, MAX_RETRY_AFTER_SECONDS)
    return Outcome(_code_for_status(response.status), response.status, duration_ms, retry_after_seconds)


def _code_for_error(error: EgressError) -> str:
    """A forbidden address has the code of one that does not answer, so that callers cannot map our network."""
    match error:
        case EgressForbidden() | EgressConnectError():
            return "unreachable"
        case EgressTimeout():
            return "timeout"
        case EgressFailed():
            return "broken"
    raise error


def _code_for_status(status: int) -> str:
    if status == HTTPStatus.GONE:
        return "gone"
    match status // 100:
        case 2:
            return "delivered"
        case 3:
            return "redirect"
        case 5:
            return "error"
    return "rejected"
