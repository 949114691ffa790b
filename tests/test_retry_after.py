"""`Retry-After` in its two forms, and invalid values."""

import time
from email.utils import formatdate

import pytest

from app.datetimes import parse_retry_after

MAX_SECONDS = 3600.0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("3", 3.0), ("0", 0.0), ("1.5", 1.5), ("-4", 0.0), ("1e9", MAX_SECONDS), (None, None), ("", None)],
)
def test_seconds(header: str | None, seconds: float | None) -> None:
    assert parse_retry_after(header, MAX_SECONDS) == seconds


@pytest.mark.parametrize("header", ["soon", "nan", "Mon, 99 Foo 2026", "\x00", "9" * 5000 + "x"])
def test_invalid_values_leave_the_pause_to_our_backoff(header: str) -> None:
    assert parse_retry_after(header, MAX_SECONDS) is None


def test_a_date_is_counted_from_now() -> None:
    assert 55 < (parse_retry_after(formatdate(time.time() + 60, usegmt=True), MAX_SECONDS) or 0) <= 60
    assert parse_retry_after(formatdate(time.time() - 60, usegmt=True), MAX_SECONDS) == 0.0
