"""Periods of reports: days are local, also where summer time begins or ends."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from app.errors import InvalidParameter
from app.reports.period import Days, parse_day, parse_days, parse_end, parse_start, today

SHANGHAI, BERLIN = ZoneInfo("Asia/Shanghai"), ZoneInfo("Europe/Berlin")


def test_a_day_begins_at_local_midnight() -> None:
    days = Days(date(2026, 11, 1), date(2026, 11, 2), SHANGHAI)
    assert (days.start, days.end) == (datetime(2026, 10, 31, 16, tzinfo=UTC), datetime(2026, 11, 2, 16, tzinfo=UTC))
    assert len(days) == 2
    assert days.offsets() == [(days.end, 8 * 3600)]


def test_each_change_of_the_offset_is_found_to_the_second() -> None:
    days = Days(date(2026, 3, 1), date(2026, 11, 1), BERLIN)
    offsets = days.offsets()
    assert offsets == [
        (datetime(2026, 3, 29, 1, tzinfo=UTC), 3600),
        (datetime(2026, 10, 25, 1, tzinfo=UTC), 7200),
        (days.end, 3600),
    ]
    for hour in range(0, 24 * len(days), 1):  # the offsets give the day that the zone gives
        moment = days.start + timedelta(hours=hour)
        if moment < days.end:
            offset = next(seconds for until, seconds in offsets if moment < until)
            assert (moment + timedelta(seconds=offset)).date() == moment.astimezone(BERLIN).date()


def test_days_have_defaults_and_a_bound() -> None:
    days = parse_days(None, None, SHANGHAI, default_days=30, max_days=92)
    assert (days.last, len(days)) == (today(SHANGHAI), 30)
    assert len(parse_days("2026-01-01", "2026-04-02", SHANGHAI, default_days=30, max_days=92)) == 92
    for first, last in (("2026-01-01", "2026-04-03"), ("2026-01-02", "2026-01-01")):
        with pytest.raises(InvalidParameter, match="from"):
            parse_days(first, last, SHANGHAI, default_days=30, max_days=92)


@pytest.mark.parametrize(
    "text", ["2026-13-01", "2026-02-30", "20260101", "1969-12-31", "9999-12-31", "2026-01-01\n", "٢٠٢٦-٠١-٠١", "\0"]
)
def test_what_is_no_day_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameter, match="to"):
        parse_day("to", text)


def test_a_bound_is_a_day_or_a_time_and_the_end_includes_it() -> None:
    assert parse_start("from", "2026-11-01", SHANGHAI) == datetime(2026, 10, 31, 16, tzinfo=UTC)
    assert parse_end("to", "2026-11-01", SHANGHAI) == datetime(2026, 11, 1, 16, tzinfo=UTC)
    assert parse_start("from", "2026-11-01T08:00:00", SHANGHAI) == datetime(2026, 11, 1, tzinfo=UTC)
    assert parse_end("to", "2026-11-01T08:00:00.5", SHANGHAI) == datetime(2026, 11, 1, 0, 0, 1, tzinfo=UTC)
    assert parse_start("from", None, SHANGHAI) is parse_end("to", "", SHANGHAI) is None
    for text in ("0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "yesterday"):
        for parse in (parse_start, parse_end):
            with pytest.raises(InvalidParameter, match="from"):
                parse("from", text, SHANGHAI)
