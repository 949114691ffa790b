"""The column `tasks.upstream_state`: reading returns what was written, also for rows of an earlier release."""

import json
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.state import TaskUpdate, UpstreamState

urls = st.lists(st.text(), max_size=3).map(tuple)
counters = st.integers(0, 9)
states = st.builds(
    UpstreamState,
    accepted_age_seconds=st.floats(0, 1e6),
    is_awaiting_approval=st.booleans(),
    has_own_progress=st.booleans(),
    urls=urls,
    is_refreshed=st.booleans(),
    server_errors=counters,
    empty_results=counters,
    not_found_polls=counters,
    not_found_since=st.text(max_size=9),
    normalized_urls=st.none() | urls,
    is_normalize_started=st.booleans(),
    note=st.text(max_size=9),
)
NAMES = {one.name for one in fields(UpstreamState)}
NEW_NAMES = {"successes_when_refused", "unknown_state"}
FORMER_ROW = {
    "accepted_age": 3.5,
    "approval": True,
    "told": True,
    "urls": ["https://x/1"],
    "relooked": True,
    "troubles": 2,
    "empty": 4,
    "missing": 1,
    "missing_since": "2026-03-23T12:00:00+00:00",
    "normalized": ["https://x/2"],
    "asked": True,
    "note": "HTTP 429",
}


def stored(value: dict[str, Any]) -> Any:
    """The value as a JSON column returns it."""
    return json.loads(json.dumps(value))


@given(states)
def test_a_state_is_read_as_it_was_written(state: UpstreamState) -> None:
    assert UpstreamState.from_json(stored(state.to_json())) == state


@given(states)
def test_the_json_holds_only_what_differs_from_the_defaults(state: UpstreamState) -> None:
    default = UpstreamState()
    assert set(state.to_json()) == {name for name in NAMES if getattr(state, name) != getattr(default, name)}


@pytest.mark.parametrize("empty", [None, {}])
def test_an_empty_column_is_the_default_state(empty: dict[str, Any] | None) -> None:
    assert UpstreamState.from_json(empty) == UpstreamState()
    assert UpstreamState().to_json() == {}


def test_an_empty_list_of_normalized_urls_is_not_none() -> None:
    """It means that the model normalizes references, and that none is normalized yet."""
    state = UpstreamState(normalized_urls=())
    assert state.to_json() == {"normalized_urls": []}
    assert UpstreamState.from_json({"normalized": []}) == state


def test_a_row_of_an_earlier_release_keeps_all_its_values() -> None:
    state = UpstreamState.from_json(stored(FORMER_ROW))
    assert state == UpstreamState(
        accepted_age_seconds=3.5,
        is_awaiting_approval=True,
        has_own_progress=True,
        urls=("https://x/1",),
        is_refreshed=True,
        server_errors=2,
        empty_results=4,
        not_found_polls=1,
        not_found_since="2026-03-23T12:00:00+00:00",
        normalized_urls=("https://x/2",),
        is_normalize_started=True,
        note="HTTP 429",
    )
    assert set(state.to_json()) == NAMES - NEW_NAMES, "writing it again must leave only the new names"


@given(states, st.dictionaries(st.text(min_size=1).filter(lambda key: key not in NAMES | set(FORMER_ROW)), st.text()))
def test_keys_that_this_release_does_not_know_are_ignored(state: UpstreamState, others: dict[str, str]) -> None:
    assert UpstreamState.from_json(others | state.to_json()) == state


def test_an_update_names_only_the_columns_that_it_changes() -> None:
    assert TaskUpdate().columns() == {"attempts": 0}
    update = TaskUpdate(attempts=2, progress=0, upstream_request={}, upstream_state=UpstreamState(note="x"))
    assert update.columns() == {
        "attempts": 2,
        "progress": 0,
        "upstream_request": {},
        "upstream_state": {"note": "x"},
    }
