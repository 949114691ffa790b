"""Parses and formats times: ISO times in the local zone (`TIMEZONE`), and the Retry-After header."""

import math
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from zoneinfo import ZoneInfo

from app.errors import InvalidParameter


def format_local(moment: datetime | None, zone: ZoneInfo) -> str | None:
    """The moment as a local ISO time without an offset, such as `2025-10-26T15:30:45`."""
    # A zone's time computes its offset again for its text.
    return None if moment is None else moment.astimezone(zone).replace(tzinfo=None).isoformat(timespec="seconds")


def parse_datetime(field: str, text: str | None, zone: ZoneInfo) -> datetime | None:
    """Parses an ISO time and returns it in UTC. A time without an offset is local, as in our responses.

    Raises InvalidParameter that names `field`. None stays None.
    """
    if text is None:
        return None
    # The first blank may stand for the "T". A later blank is the "+" of an offset that the caller did not encode.
    text = text.strip().replace(" ", "T", "T" not in text).replace(" ", "+")
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidParameter(field, "须为 ISO 时间，例如 2025-10-26T15:30:45") from None


def parse_retry_after(value: str | None, max_seconds: float) -> float | None:
    """Seconds from now, at most `max_seconds`. The header holds seconds or a date; None if it holds neither."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return None if math.isnan(seconds) else min(max(seconds, 0.0), max_seconds)
