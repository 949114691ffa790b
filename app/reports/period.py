"""The period of a report: whole local days, or two moments. Callers write it as `from` and `to`."""

import itertools
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from app.datetimes import parse_datetime
from app.errors import InvalidParameter

_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
EARLIEST, LATEST = date(1970, 1, 2), date(9998, 12, 31)
"""Days outside are refused: in some zone they would have no UTC time."""
WRONG_DAY = "须为日期，例如 2026-11-01"


@dataclass(frozen=True, slots=True)
class Days:
    """Local days from `first` to `last`, both included."""

    first: date
    last: date
    zone: ZoneInfo

    @property
    def start(self) -> datetime:
        return midnight(self.first, self.zone)

    @property
    def end(self) -> datetime:
        """The first moment after the last day."""
        return midnight(self.last + timedelta(days=1), self.zone)

    def offsets(self) -> list[tuple[datetime, int]]:
        """The offsets from UTC in seconds, each with the moment until which it holds. The last one holds to the end.

        A change between two midnights is found to the second, so that each day has exactly its own tasks.
        """
        moments = [midnight(self.first + timedelta(days=number), self.zone) for number in range(len(self) + 1)]
        found: list[tuple[datetime, int]] = []
        for start, end in itertools.pairwise(moments):
            before, after = _offset(start, self.zone), _offset(end, self.zone)
            if before != after:
                found.append((_change(start, end, self.zone), before))
        return [*found, (self.end, _offset(self.end - timedelta(seconds=1), self.zone))]

    def __len__(self) -> int:
        return (self.last - self.first).days + 1


def midnight(day: date, zone: ZoneInfo) -> datetime:
    """The first moment of the local day, in UTC."""
    return datetime.combine(day, time(), zone).astimezone(UTC)


def today(zone: ZoneInfo) -> date:
    return datetime.now(UTC).astimezone(zone).date()


def parse_days(first: str | None, last: str | None, zone: ZoneInfo, *, default_days: int, max_days: int) -> Days:
    """The days that a caller writes as `from` and `to`. Raises InvalidParameter.

    Without `to` they end today; without `from` they are `default_days`.
    """
    until = parse_day("to", last) if last else today(zone)
    since = parse_day("from", first) if first else max(until - timedelta(days=default_days - 1), EARLIEST)
    days = Days(since, until, zone)
    if until < since:
        raise InvalidParameter("from", "不能晚于 to")
    if len(days) > max_days:
        raise InvalidParameter("from", f"与 to 之间最多 {max_days} 天")
    return days


def parse_day(field: str, text: str) -> date:
    """A day from EARLIEST to LATEST. Raises InvalidParameter that names the field."""
    day = read_day(field, text)
    if not EARLIEST <= day <= LATEST:
        raise InvalidParameter(field, WRONG_DAY)
    return day


def read_day(field: str, text: str) -> date:
    """Any day that has a date. Raises InvalidParameter that names the field."""
    try:
        day = date.fromisoformat(text) if _DAY.fullmatch(text) else None
    except ValueError:
        day = None
    if day is None:
        raise InvalidParameter(field, WRONG_DAY)
    return day


def parse_start(field: str, text: str | None, zone: ZoneInfo) -> datetime | None:
    """The first moment of a period: a local day, or an ISO time. None stays None. Raises InvalidParameter."""
    if text and _DAY.fullmatch(text.strip()):
        return midnight(parse_day(field, text.strip()), zone)
    return _parse_moment(field, text, zone)


def parse_end(field: str, text: str | None, zone: ZoneInfo) -> datetime | None:
    """The first moment after a period: the whole day, or the whole second, belongs to it. None stays None."""
    if text and _DAY.fullmatch(text.strip()):
        return midnight(parse_day(field, text.strip()) + timedelta(days=1), zone)
    moment = _parse_moment(field, text, zone)
    return None if moment is None else moment.replace(microsecond=0) + timedelta(seconds=1)


def _parse_moment(field: str, text: str | None, zone: ZoneInfo) -> datetime | None:
    moment = parse_datetime(field, text or None, zone)
    if moment is not None and not EARLIEST <= moment.date() <= LATEST:
        raise InvalidParameter(field, f"须在 {EARLIEST} 与 {LATEST} 之间")
    return moment


def _offset(moment: datetime, zone: ZoneInfo) -> int:
    offset = moment.astimezone(zone).utcoffset() or timedelta()
    return round(offset.total_seconds())


def _change(start: datetime, end: datetime, zone: ZoneInfo) -> datetime:
    """The first second with the offset of `end`. A day has at most one change."""
    before = _offset(start, zone)
    low, high = 0, round((end - start).total_seconds())
    while high - low > 1:
        middle = (low + high) // 2
        if _offset(start + timedelta(seconds=middle), zone) == before:
            low = middle
        else:
            high = middle
    return start + timedelta(seconds=high)
