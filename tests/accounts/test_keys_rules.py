"""The rules of keys that need no database: scopes, addresses, and the counters of caps."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.accounts.authentication import Caller
from app.accounts.keys.addresses import is_allowed, normalize_addresses
from app.accounts.keys.caps import KEY, Caps, Counter, local_day
from app.accounts.keys.scopes import KEY_SCOPES, expand_scopes
from app.errors import Forbidden, InvalidParameter, KeyBudgetExceeded

SHANGHAI = ZoneInfo("Asia/Shanghai")


def test_former_words_mean_what_they_meant() -> None:
    tasks, points = set(expand_scopes(["tasks"])), set(expand_scopes(["points"]))
    assert tasks == {"tasks", "tasks:submit", "tasks:read", "files:write", "webhooks"}
    assert points == {"points", "points:read"}
    assert expand_scopes(KEY_SCOPES) == KEY_SCOPES
    assert "points" not in expand_scopes(KEY_SCOPES), "a new key redeems no codes"


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("203.0.113.7", "203.0.113.7"),
        (" 10.0.0.0/8 ", "10.0.0.0/8"),
        ("203.0.113.7/32", "203.0.113.7"),
        ("2001:DB8::1", "2001:db8::1"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("0.0.0.0/0", "0.0.0.0/0"),
    ],
)
def test_addresses_have_one_form(written: str, kept: str) -> None:
    assert normalize_addresses("addresses", [written, written]) == [kept]


@pytest.mark.parametrize(
    "wrong", ["", "localhost", "1.2.3", "10.0.0.1/8", "1.2.3.4/33", "fe80::1%eth0", "1.2.3.4:80", "10.0.0.0/255.0.0.1"]
)
def test_a_wrong_address_is_named(wrong: str) -> None:
    with pytest.raises(InvalidParameter, match=r"addresses\[1\]"):
        normalize_addresses("addresses", ["1.1.1.1", wrong])


def test_an_address_is_allowed_by_its_network() -> None:
    allowed = ("203.0.113.7", "10.0.0.0/8", "2001:db8::/32")
    assert [is_allowed(allowed, one) for one in ("203.0.113.7", "10.255.0.1", "2001:db8::9")] == [True] * 3
    assert [is_allowed(allowed, one) for one in ("203.0.113.8", "11.0.0.1", "2001:db9::9", "")] == [False] * 4


def test_a_jwt_is_bound_to_nothing_and_a_key_to_its_lists() -> None:
    key = Caller(1, "user", key_id=1, models=("a",), addresses=("10.0.0.0/8",))
    for refused in (lambda: key.check_model("b"), lambda: key.at_address("1.1.1.1"), lambda: key.at_address("")):
        with pytest.raises(Forbidden):
            refused()
    key.check_model("a")
    assert key.at_address("10.1.1.1").address == "10.1.1.1"
    Caller(1, "user").at_address("").check_model("b")


def test_days_are_local() -> None:
    assert local_day(datetime(2026, 11, 30, 15, 59, 59, tzinfo=UTC), SHANGHAI) == "2026-11-30"
    assert local_day(datetime(2026, 11, 30, 16, 0, tzinfo=UTC), SHANGHAI) == "2026-12-01"


def test_a_task_from_before_midnight_counts_for_the_newer_day() -> None:
    """Else the submits that are under way at midnight would pass the cap of either day."""
    counter = Counter(KEY, Caps(daily=60))
    counter.add("2026-12-01", 30)
    counter.add("2026-11-30", 30)
    assert (counter.day, counter.today, counter.month) == ("2026-12-01", 60, 60)
    with pytest.raises(KeyBudgetExceeded):
        counter.check("2026-11-30", 30)
    counter.check("2026-12-02", 30)


DAYS = st.dates(min_value=datetime(2026, 1, 1).date(), max_value=datetime(2026, 3, 31).date()).map(str)  # noqa: DTZ001


@given(st.lists(st.tuples(DAYS, st.integers(0, 50)), max_size=40), st.integers(0, 200), st.integers(0, 400))
def test_no_sequence_of_submits_exceeds_a_cap(submits: list[tuple[str, int]], daily: int, monthly: int) -> None:
    counter = Counter(KEY, Caps(daily=daily, monthly=monthly, total=500))
    spent: dict[str, int] = {}
    for day, cost in submits:
        try:
            counter.check(day, cost)
        except KeyBudgetExceeded:
            continue
        counter.add(day, cost)
        for span in (counter.day, counter.day[:7], ""):
            spent[span] = spent.get(span, 0) + cost
    assert all(spent[span] <= {10: daily, 7: monthly, 0: 500}[len(span)] for span in spent)
    assert counter.today <= counter.month <= counter.total == spent.get("", 0)
