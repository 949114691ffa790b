"""Every row of the table "answer to a poll", over HTTP, in both worlds: what is polled again, and what is final."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import REGISTRY

from app.engine import transitions
from app.upstreams import breaker_state
from app.upstreams.see2ai import client
from app.upstreams.see2ai.responses import FAILURE, NEEDS_REPAIR, SUCCESS
from tests.support.breakers import shorten_pauses
from tests.support.makers import Maker
from tests.support.run import full
from tests.support.sandbox_server import Server, directive
from tests.support.task_rows import SECRET, ended, polls, row_of, run_all, set_deadline, shorten_delays, submits
from tests.support.waiting import until
from tests.support.workers import stepping

pytestmark = pytest.mark.anyio
working = pytest.mark.usefixtures("working")
PRICE = 30


@pytest.fixture(autouse=True)
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_delays(monkeypatch)
    shorten_pauses(monkeypatch, first_pause_seconds=0.3)


# ------------------------------------------------------------------ errors, which never end a task


@working
async def test_a_failed_poll_is_repeated_and_the_job_completes(
    make: Maker, upstream: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "POLL_SECONDS", 1.0)
    user = await make.user(points=1000)
    # More errors than a step may crash, to show that they do not count as crashes.
    faults = [
        *(({"fail": code}, 4) for code in (500, 503, 504, 422, 429, 404)),
        ({"fail": 502, "detail": "html"}, 4),
        *(({"fault": name}, 4) for name in ("malformed", "html", "reset", "wrong-task-id")),
        *(({"fault": name}, 1) for name in ("hang", "gzip-bomb", "huge", "drip")),
        ({"fault": "redirect", "url": f"{upstream.origin}/stolen"}, 4),
    ]
    prompts = {
        directive({"where": "poll", "times": times} | fault, {"take_seconds": 0}): times for fault, times in faults
    }
    ends = await run_all(make, user, prompts)
    for prompt, one in ends.items():
        assert one.outcome == "completed", prompt
        assert len(polls(upstream, one.row)) == prompts[prompt] + 1, prompt
        assert len(submits(upstream, one.prompt)) == 1, prompt
    assert not [entry for entry in upstream.journal() if "stolen" in entry["path"]]
    assert await make.balance(user) == (1000 - PRICE * len(prompts), 0)


@working
async def test_a_404_is_believed_after_three_in_a_row_and_never_sooner(
    make: Maker, upstream: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transitions, "NOT_FOUND_SECONDS", 0.0)
    user = await make.user(points=300)
    expected = {
        directive({"where": "poll", "fail": 404, "text": SECRET}, {"end": "never"}): ("UPSTREAM_FAILED", 3),
        directive({"where": "poll", "fail": 404, "times": 1}, {"take_seconds": 0}): ("completed", 2),
        directive({"where": "poll", "fail": 404, "times": 2}, {"take_seconds": 0}): ("completed", 3),
        directive(
            {"where": "poll", "fail": 404, "times": 2},
            {"where": "poll", "fail": 500, "times": 1},
            {"where": "poll", "fail": 404, "times": 2},
            {"take_seconds": 0},
        ): ("completed", 6),
    }
    ends = await run_all(make, user, expected)
    assert {prompt: (one.outcome, len(polls(upstream, one.row))) for prompt, one in ends.items()} == expected
    gone = next(iter(ends.values()))
    assert SECRET not in gone.words
    assert gone.row["suspected_orphan"] is False
    assert await make.balance(user) == (300 - 3 * PRICE, 0)


@working
async def test_three_404s_must_also_span_their_time(
    make: Maker, upstream: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert transitions.NOT_FOUND_SECONDS == 60
    monkeypatch.setattr(transitions, "NOT_FOUND_SECONDS", 1.0)
    user = await make.user(points=100)
    prompt = '[[sandbox: {"where": "poll", "fail": 404}]]'
    one = (await run_all(make, user, [prompt]))[prompt]
    poll_entries = [entry["monotonic"] for entry in polls(upstream, one.row)]
    assert one.outcome == "UPSTREAM_FAILED"
    assert len(poll_entries) > 3
    assert poll_entries[-1] - poll_entries[0] >= 0.95


@working
@pytest.mark.parametrize("code", [401, *full(402, 403)])
async def test_a_rejected_key_fails_no_running_task(
    make: Maker, upstream: Server, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(breaker_state, "FIRST_PAUSE_SECONDS", 8.0)
    user = await make.user(points=100)
    upstream.control({"fail": code, "where": "poll", "text": SECRET})
    task_no = await make.task_no(user, '[[sandbox: {"take_seconds": 0}]]')
    await until("the breaker is open", lambda: make.runtime.breakers["see2ai"].is_open)
    assert (await make.task(user, task_no))["status"] == "processing"
    # the breaker belongs to the provider, not to the task
    waiting = await make.task_no(user, '[[sandbox: {"take_seconds": 0}]] another')
    await asyncio.sleep(0.2)
    assert len([entry for entry in upstream.journal() if "/status/" in entry["path"]]) == 1
    assert submits(upstream, '[[sandbox: {"take_seconds": 0}]] another') == []
    upstream.control()
    for number in (task_no, waiting):
        assert (await ended(make, user, number)).outcome == "completed"
    assert len([entry for entry in upstream.journal() if entry["outcome"] == "accepted"]) == 2


@working
async def test_a_429_slows_the_polls(make: Maker, upstream: Server) -> None:
    user = await make.user(points=100)
    prompt = directive({"where": "poll", "fail": 429, "retry_after": 1, "times": 1}, {"take_seconds": 0})
    one = (await run_all(make, user, [prompt]))[prompt]
    first, second = (entry["monotonic"] for entry in polls(upstream, one.row))
    assert second - first >= 1.0
    assert one.outcome == "completed"


# ------------------------------------------------------------------ states


@working
async def test_every_final_state_is_known_in_any_case_and_either_field(make: Maker, upstream: Server) -> None:
    user = await make.user(points=2000)
    expected = {}
    meanings = (
        (SUCCESS, "completed"),
        (FAILURE - {NEEDS_REPAIR}, "UPSTREAM_FAILED"),
        ({NEEDS_REPAIR}, "UPSTREAM_REJECTED"),
    )
    for words, outcome in meanings:
        for word, field in zip(sorted(words), ("state", "status", "both") * 3, strict=False):
            reason = {"text": SECRET} if outcome != "completed" else {}
            for normalized in (word, word.upper() if len(word) % 2 else word.title()):
                expected[directive({"end": normalized, "state_field": field, "take_seconds": 0} | reason)] = outcome
    ends = await run_all(make, user, expected)
    assert {prompt: one.outcome for prompt, one in ends.items()} == expected
    for one in ends.values():
        assert len(polls(upstream, one.row)) == 1
        if one.outcome != "completed":
            assert SECRET in one.row["operator_note"]
            assert SECRET not in one.words
            assert one.row["suspected_orphan"] is False
    assert await make.balance(user) == (2000 - PRICE * sum(o == "completed" for o in expected.values()), 0)


@working
async def test_every_other_state_means_still_running_and_an_unknown_one_is_counted_once(
    make: Maker, upstream: Server
) -> None:
    def counted(word: str) -> float:
        return REGISTRY.get_sample_value("gateway_upstream_unknown_states_total", {"state": word}) or 0.0

    before = {word: counted(word) for word in ("simmering", "queued", "awaiting_user_approval")}
    user = await make.user(points=1000)
    words = ("queued", "Pending", "SUBMITTED", "created", "waiting", "RUNNING", "processing", "awaiting_user_approval")
    prompts = [f'[[sandbox: {{"state": "{word}", "take_seconds": 8}}]]' for word in words]
    prompts += [
        f'[[sandbox: {{"state": "{word}", "take_seconds": 8}}]]'
        for word in ("Simmering", "SIMMERING", "unbekannt-未知")
    ]
    prompts += [
        directive({"state": "Simmering", "state_field": field, "take_seconds": 8}) for field in ("state", "status")
    ]
    ends = await run_all(make, user, prompts)
    for prompt, one in ends.items():
        assert one.outcome == "completed", prompt
        assert len(polls(upstream, one.row)) >= 2, prompt
    after = {word: counted(word) - before[word] for word in before}
    assert after == {"simmering": 1.0, "queued": 0.0, "awaiting_user_approval": 0.0}


@working
async def test_success_without_a_url_is_none(make: Maker, upstream: Server) -> None:
    user = await make.user(points=100)
    expected = {
        '[[sandbox: {"polls_without_url": "always", "take_seconds": 0}]]': (
            "RESULT_LOST",
            transitions.MAX_EMPTY_RESULTS,
        ),
        f'[[sandbox: {{"polls_without_url": {transitions.MAX_EMPTY_RESULTS - 1}, "take_seconds": 0}}]]': (
            "completed",
            transitions.MAX_EMPTY_RESULTS,
        ),
    }
    ends = await run_all(make, user, expected)
    assert {prompt: (one.outcome, len(polls(upstream, one.row))) for prompt, one in ends.items()} == expected
    assert await make.balance(user) == (70, 0)


@working
async def test_progress_is_see2ais_own_never_falls_and_keeps_100_for_the_end(
    make: Maker, upstream: Server, advance_sandbox: Callable[[float], None]
) -> None:
    """Each figure of SEE2AI lasts for 1000 seconds of the sandbox's clock."""
    user = await make.user(points=100)
    prompt = '[[sandbox: {"progress": [20, 60, 30, 100], "take_seconds": 4000}]]'
    seen = [(await make.submit(user, prompt)).json()["data"]]

    async def read() -> dict[str, Any]:
        seen.append(await make.task(user, seen[0]["taskNo"]))
        return seen[-1]

    async def shows(progress: int) -> bool:
        return bool((await read())["progress"] == progress)

    for progress in (20, 60):
        await until(f"{progress} %", lambda progress=progress: shows(progress))
        advance_sandbox(1000)
    row = await row_of(make.runtime, seen[0]["taskNo"])
    poll_entries = len(polls(upstream, row))
    await until("polled at 30 %", lambda: len(polls(upstream, row)) > poll_entries + 1)
    assert (await read())["progress"] == 60
    advance_sandbox(1000)
    await until("95 %", lambda: shows(95))
    advance_sandbox(1000)
    await until("100 %", lambda: shows(100))
    figures = [task["progress"] for task in seen]
    assert figures == sorted(figures)
    assert set(figures) == {0, 20, 60, 95, 100}
    assert {task["status"] for task in seen if task["progress"] == 100} == {"completed"}


# ------------------------------------------------------------------ the deadline


async def test_at_the_deadline_there_is_one_last_poll(
    make: Maker, upstream: Server, hurry: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transitions, "MIN_POLL_SECONDS", 1000.0)
    monkeypatch.setattr(transitions, "MAX_POLL_SECONDS", 1000.0)
    monkeypatch.setattr(breaker_state, "FIRST_PAUSE_SECONDS", 50.0)
    monkeypatch.setattr(client, "POLL_SECONDS", 5.0)
    user = await make.user(points=150)
    expected = {
        '[[sandbox: {"take_seconds": 1}]]': ("completed", 1),
        '[[sandbox: {"end": "never"}]]': ("TIMED_OUT", 1),
        directive({"where": "poll", "fail": 404}, {"take_seconds": 0}): ("TIMED_OUT", 1),
        directive({"where": "poll", "fault": "hang"}, {"take_seconds": 0}): ("TIMED_OUT", 1),
        directive({"where": "poll", "fail": 401}, {"take_seconds": 0}): ("TIMED_OUT", 1),
    }
    numbers = {prompt: await make.task_no(user, prompt) for prompt in expected}
    for task_no in numbers.values():
        await set_deadline(make.runtime, task_no, 15.0)
    began = asyncio.get_running_loop().time()
    async with stepping(make.runtime):
        ends = {prompt: await ended(make, user, task_no) for prompt, task_no in numbers.items()}
    assert {prompt: (one.outcome, len(polls(upstream, one.row))) for prompt, one in ends.items()} == expected
    assert asyncio.get_running_loop().time() - began >= 10
    for one in ends.values():
        assert one.task["errorMessage"] == (None if one.outcome == "completed" else "生成超时，积分已退还")
    assert await make.balance(user) == (120, 0)


@pytest.mark.full
async def test_a_poll_that_hung_across_the_deadline_is_not_the_last_one(
    make: Maker, upstream: Server, hurry: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The poll began before the deadline. The job is done by then and must not be lost because of one slow answer."""
    monkeypatch.setattr(client, "POLL_SECONDS", 18.0)
    user = await make.user(points=30)
    task_no = await make.task_no(user, directive({"where": "poll", "fault": "hang", "times": 1}, {"take_seconds": 0}))
    await set_deadline(make.runtime, task_no, 15.0)
    async with stepping(make.runtime):
        one = await ended(make, user, task_no)
    assert (one.outcome, len(polls(upstream, one.row))) == ("completed", 2)


@working
async def test_a_late_success_after_the_refund_changes_nothing(
    make: Maker, upstream: Server, advance_sandbox: Callable[[float], None]
) -> None:
    user = await make.user(points=30)
    task_no = await make.task_no(user, '[[sandbox: {"take_seconds": 600}]]')
    await until("accepted", lambda: submits(upstream, '[[sandbox: {"take_seconds": 600}]]', "accepted"))
    await set_deadline(make.runtime, task_no, 0.0)
    one = await ended(make, user, task_no)
    assert one.outcome == "TIMED_OUT"
    poll_entries = len(polls(upstream, one.row))
    advance_sandbox(600)  # SEE2AI has finished it by then
    await asyncio.sleep(0.5)
    assert len(polls(upstream, one.row)) == poll_entries
    assert (await row_of(make.runtime, task_no))["version"] == one.row["version"]
    assert await make.balance(user) == (30, 0)
