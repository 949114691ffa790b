"""Standard Webhooks, the pure part: secrets, messages, and the three headers that let a receiver believe one."""

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
    """What is told. `id` stays the same however often and to whomever it is sent: by it receivers drop repeats."""

    id: str
    body: bytes


def new_secret() -> str:
    return PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def write_message(message_id: str, kind: str, moment: datetime, data: dict[str, Any]) -> Message:
    """`moment` is when it happened; it is told in UTC."""
    timestamp = moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    told = {"type": kind, "timestamp": timestamp, "data": data}
    return Message(message_id, json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace"))


def sign(message: Message, timestamp: int, secrets_: Iterable[str]) -> dict[str, str]:
    """The headers of one attempt, made at `timestamp` (Unix seconds): one signature for each secret, the newest first.

    Signed is `{id}.{timestamp}.{body}`, with HMAC-SHA256.
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
