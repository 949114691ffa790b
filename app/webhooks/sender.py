"""One signed POST through the guarded way out, and what became of it in a word that tells nobody about our network."""

import asyncio
from dataclasses import dataclass
from http import HTTPStatus

from app.datetimes import parse_retry_after
from app.egress import Egress, EgressConnectError, EgressError, EgressFailed, EgressForbidden, EgressTimeout
from app.webhooks.signing import Message, sign
from app.webhooks.signing_secrets import SigningSecrets

TIMEOUT_SECONDS = 10.0
"""For a whole attempt: name, connection, TLS, and the answer's head."""
MAX_RETRY_AFTER_SECONDS = 3600.0
"""A receiver that asks for more quiet than this is not heard."""
RETRY_AFTER_STATUSES = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})


@dataclass(frozen=True, slots=True)
class Outcome:
    """`word` is one of the delivery log's; `status` and `duration_ms` are None where nobody was reached.

    `retry_after_seconds` is how long the receiver asked to be left alone.
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
        """Whether it says anything about how the receiver does, where our own way out is sound."""
        return self.code not in {"disabled", "internal"}


async def send(egress: Egress, url: str, keys: SigningSecrets, message: Message) -> Outcome:
    """Signed for this moment by the database's clock: receivers refuse a signature that is minutes off."""
    headers = {"Content-Type": "application/json", **sign(message, int(keys.now.timestamp()), keys.active())}
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        answer = await egress.post(url, message.body, headers, timeout_seconds=TIMEOUT_SECONDS)
    except EgressError as error:
        word = _code_for_error(error)
        return Outcome(word, None, None if word == "unreachable" else round((loop.time() - began) * 1000))
    wish = (
        parse_retry_after(answer.retry_after, MAX_RETRY_AFTER_SECONDS)
        if answer.status in RETRY_AFTER_STATUSES
        else None
    )
    return Outcome(_code_for_status(answer.status), answer.status, round((loop.time() - began) * 1000), wish)


def _code_for_error(error: EgressError) -> str:
    """An address we refuse sounds like one that is not there."""
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
