"""Times as people write and read them, ISO and local (`TIMEZONE`) where nothing else is said; and Retry-After."""

import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from zoneinfo import ZoneInfo

from app.errors import InvalidParameter


def format_local(moment: datetime | None, zone: ZoneInfo) -> str | None:
    """ISO to the second, without an offset."""
    return None if moment is None else moment.astimezone(zone).isoformat(timespec="seconds")[:19]


def parse_datetime(field: str, text: str | None, zone: ZoneInfo) -> datetime | None:
    """An ISO time in UTC; without an offset it is local, as answers are. InvalidParameter for other words and none."""
    if text is None:
        return None
    # The first blank may stand for the "T"; the "+" of an offset arrives as another where the caller did not encode it.
    text = text.strip().replace(" ", "T", "T" not in text).replace(" ", "+")
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidParameter(field, "须为 ISO 时间，例如 2025-10-26T15:30:45") from None


def parse_retry_after(value: str | None, longest: float) -> float | None:
    """Seconds from now, of either form of the header, at most `longest`; None for what is neither."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return min(max(seconds, 0.0), longest) if seconds == seconds else None  # noqa: PLR0124 (NaN)
