"""Secrets, messages and signatures by the Standard Webhooks specification. It does no I/O."""

import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

PREFIX = "whsec_"
SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class Message:
    """A message. `id` is the same at every attempt and for every receiver, so that receivers can drop repeats."""

    id: str
    body: bytes


def new_secret() -> str:
    return PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def write_message(message_id: str, event_type: str, occurred_at: datetime, data: dict[str, Any]) -> Message:
    """The timestamp in the body is `occurred_at` in UTC."""
    timestamp = occurred_at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    body = {"type": event_type, "timestamp": timestamp, "data": data}
    return Message(message_id, json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace"))


def sign(message: Message, timestamp: int, secrets_: Iterable[str]) -> dict[str, str]:
    """The headers of one attempt at `timestamp` (Unix seconds), with one signature for each secret.

    A signature is the HMAC-SHA256 of `{id}.{timestamp}.{body}`.
    """
    signed = f"{message.id}.{timestamp}.".encode() + message.body
    return {
        "webhook-id": message.id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(_signature(secret, signed) for secret in secrets_),
    }


def _signature(secret: str, signed: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(PREFIX))
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
