"""SEE2AI's usage in the forms that it may have. An answer that nobody understands is an error, never a bill of 0."""

import json
from datetime import date
from decimal import Decimal
from typing import Any

import pytest

from app.upstreams.see2ai.client import UpstreamUnreachable
from app.upstreams.see2ai.responses import HttpResponse
from app.upstreams.see2ai.usage import ActionUsage, Usage, get_usage, parse_usage

DAY = date(2026, 11, 28)
FAST, VIDEO = "see2ai_image_generation_fast_v1", "see2ai_video_generation_v1"


def parsed(body: Any, status: int = 200) -> Usage:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return parse_usage(HttpResponse(status, raw), DAY)


TWO = {FAST: ActionUsage(3, Decimal(90)), VIDEO: ActionUsage(1, Decimal(500))}


@pytest.mark.parametrize(
    "body",
    [
        {"actions": {FAST: {"requests": 3, "cost_points": 90}, VIDEO: {"requests": 1, "cost_points": 500}}},
        {"data": {"total": 4, "usage": {FAST: {"calls": 3, "cost": "90"}, VIDEO: {"calls": "1", "cost": 500}}}},
        {"items": [{"action": FAST, "count": 3, "tokens": 90}, {"action_name": VIDEO, "count": 1, "tokens": 500.0}]},
        [{"name": FAST, "calls": 3, "cost": 90}, {"name": VIDEO, "calls": 1, "cost": 500}, {"name": "all", "cost": 9}],
        {"by_day": {"2026-11-27": {FAST: {"calls": 9, "cost": 9}}, "2026-11-28": {
            FAST: {"calls": 3, "cost": 90}, VIDEO: {"calls": 1, "cost": 500}}}},
        {"records": [
            {"date": "2026-11-27", "action": FAST, "calls": 7, "cost": 7},
            {"date": "2026-11-28", "action": FAST, "calls": 2, "cost": 60},
            {"date": "2026-11-28", "action": FAST, "calls": 1, "cost": 30},
            {"date": "2026-11-28", "action": VIDEO, "calls": 1, "cost": 500},
        ]},
        {"actions": {
            FAST: {"requests": 3, "cost_points": 90, "detail": {"requests": 3, "cost_points": 90}},
            VIDEO: {"requests": 1, "cost_points": 500},
        }},
    ],
)  # fmt: skip
def test_the_figures_of_each_action_are_found_in_any_usual_form(body: Any) -> None:
    assert parsed(body).actions == TWO


def test_only_an_answer_that_names_its_day_is_of_that_day() -> None:
    body = {"actions": {FAST: {"requests": 3, "cost_points": 90}}}
    assert parsed(body).is_dated is False
    assert parsed(body | {"date": "2026-11-28"}).is_dated is True
    assert parsed(body | {"date": "2026-11-27"}).actions == {}
    assert parsed({"date": "2026-11-28", "actions": {}}) == Usage(is_dated=True)


def test_jobs_are_listed_and_not_added_to_a_sum() -> None:
    jobs = [{"task_id": "a", "cost": 30}, {"task_id": 7, "cost": 60}]
    with_sum = parsed({"actions": {FAST: {"requests": 3, "cost_points": 91, "jobs": jobs}}})
    assert with_sum.actions == {FAST: ActionUsage(3, Decimal(91))}
    assert with_sum.jobs == [(FAST, "a"), (FAST, "7")]
    alone = parsed([{"action": FAST} | job for job in jobs])
    assert alone.actions == {FAST: ActionUsage(2, Decimal(90))}


def test_a_missing_figure_is_unknown_and_not_zero() -> None:
    assert parsed({FAST: {"requests": 3}}).actions == {FAST: ActionUsage(3, None)}
    assert parsed({FAST: {"cost": 3}}).actions == {FAST: ActionUsage(None, Decimal(3))}
    for wrong in (True, "many", None, -1, 1e30, [], "1e99999"):
        assert parsed({FAST: {"requests": wrong, "cost": wrong}}).actions == {}, wrong
    assert parsed({"total": 3, "cost": 7}) == Usage()


@pytest.mark.parametrize("body", [b"", b"<html>", b"7", b'"x"', b"[" * 5000, b"\xff"])
def test_an_answer_that_nobody_understands_is_an_error(body: bytes) -> None:
    with pytest.raises(UpstreamUnreachable):
        parsed(body)


def test_an_error_of_see2ai_keeps_its_text_for_the_operator() -> None:
    with pytest.raises(UpstreamUnreachable, match="HTTP 401: 余额不足"):
        parsed({"detail": "余额不足"}, 401)


def test_a_huge_answer_is_refused() -> None:
    with pytest.raises(UpstreamUnreachable):
        parsed([{"action": FAST, "task_id": str(number)} for number in range(20_001)])


@pytest.mark.anyio
async def test_a_refused_parameter_is_left_out() -> None:
    class Strict:
        paths: list[str] = []  # noqa: RUF012

        async def get(self, path: str) -> HttpResponse:
            self.paths.append(path)
            return HttpResponse(422 if "?" in path else 200, json.dumps({FAST: {"requests": 1}}).encode())

    strict = Strict()
    usage = await get_usage(strict, DAY)  # type: ignore[arg-type]
    assert strict.paths == ["/api/v1/usage?date=2026-11-28", "/api/v1/usage"]
    assert (usage.actions, usage.is_dated) == ({FAST: ActionUsage(1, None)}, False)
