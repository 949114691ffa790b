"""Each key of a rule has the same effect in a prompt and by /control."""

import itertools
import re
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from app.sandbox.rules.rule import FaultRule, JobRule
from tests.support.run import full
from tests.support.sandbox_server import ACTION, UNIWORLD, VIDEO, Server, directive

IMAGE_NAME, UNIWORLD_NAME = "see2ai_image_generation_fast_v1", "see2ai_image_uniworld_v2"
MAX_SUBMITS = 3
_numbers = itertools.count(1)

Seen = list[tuple[Any, ...]]


@dataclass(frozen=True)
class Case:
    """A rule that shows the effect of `key`. If `effective` is false, the key stops the rule from applying."""

    key: str
    rule: dict[str, Any]
    action: str = ACTION
    job: dict[str, Any] = field(default_factory=lambda: {"take_seconds": 0})
    effective: bool = True
    min_seconds: float = 0.0


RUNNING = {"take_seconds": 600}
CASES = (
    Case("fail", {"fail": 503}),
    Case("times", {"fail": 503, "times": 2}),
    Case("times", {"where": "poll", "fail": 404, "times": 1}),
    Case("times", {"end": "failed", "times": 1}),
    Case("times", {"fail": 503, "times": 0}, effective=False),
    Case("where", {"where": "poll", "fail": 502}),
    Case("where", {"where": "result", "fail": 502}),
    Case("action", {"fail": 503, "action": IMAGE_NAME}),
    Case("action", {"fail": 503, "action": UNIWORLD_NAME}, effective=False),
    Case("action", {"end": "failed", "action": UNIWORLD_NAME}, action=UNIWORLD),
    Case("probability", {"fail": 503, "probability": 1}),
    Case("probability", {"fail": 503, "probability": 0}, effective=False),
    Case("probability", {"end": "failed", "probability": 0.0}, effective=False),
    Case("delay_seconds", {"where": "submit", "delay_seconds": 0.3}, effective=False, min_seconds=0.3),
    Case("delay_seconds", {"where": "poll", "delay_seconds": 0.3, "fail": 500}, min_seconds=0.6),
    Case("retry_after", {"fail": 429, "retry_after": 7}),
    Case("detail", {"fail": 400, "detail": "error.message"}),
    Case("text", {"fail": 400, "text": "太暗了"}),
    Case("balance", {"balance": "empty"}),
    Case("fault", {"fault": "no-task-id"}),
    Case("fault", {"where": "poll", "fault": "malformed"}),
    Case("fault", {"where": "result", "fault": "reset"}),
    Case("fault", {"fault": "svg"}),
    Case("seconds", {"where": "poll", "fault": "hang", "seconds": 0.3}, min_seconds=0.3),
    Case("url", {"where": "submit", "fault": "redirect", "url": "http://10.0.0.1/x"}),
    Case("media_type", {"fault": "content-type", "media_type": "text/plain"}),
    Case("claimed_bytes", {"fault": "lies-about-length", "claimed_bytes": 50}),
    Case("take_seconds", RUNNING),
    Case("approval_seconds", {"approval_seconds": 600}),
    Case("approved", {"approval_seconds": 0, "approved": True}),
    Case("end", {"end": "CANCELLED"}),
    Case("end", {"end": "never"}),
    Case("text", {"end": "failed", "text": "no luck"}),
    Case("state", {"state": "Dreaming"}, job=RUNNING),
    Case("state_field", {"state_field": "status"}),
    Case("progress", {"progress": [42]}, job=RUNNING),
    Case("image_field", {"image_field": "final_url"}, action=UNIWORLD),
    Case("polls_without_url", {"polls_without_url": 1}),
    Case("polls_without_url", {"polls_without_url": "always"}),
    Case("result_count", {"result_count": 3}),
    Case("result_url", {"result_url": "http://10.0.0.1/x.jpg"}),
    Case("result_lifetime_seconds", {"result_lifetime_seconds": 0}),
    Case("size_bytes", {"size_bytes": 2_000_000}, action=VIDEO),
)


def test_every_key_has_a_case() -> None:
    assert {case.key for case in CASES} == set(FaultRule.model_fields) | set(JobRule.model_fields)
    assert all(case.key in case.rule for case in CASES)


@pytest.mark.parametrize(
    "case",
    [*CASES[::5], *full(*(case for number, case in enumerate(CASES) if number % 5))],
    ids=lambda case: directive(case.rule),
)
def test_a_rule_does_the_same_in_a_prompt_and_by_control(sandbox: Server, case: Case) -> None:
    nothing = observe(sandbox, case, case.job)
    in_prompt = observe(sandbox, case, case.rule, case.job)
    in_prompt_seconds = seconds(sandbox)
    sandbox.control(case.rule)
    by_control = observe(sandbox, case, case.job)
    assert in_prompt == by_control
    assert (by_control != nothing) == case.effective
    assert min(in_prompt_seconds, seconds(sandbox)) >= case.min_seconds


def test_a_probability_is_drawn_each_time(sandbox: Server) -> None:
    rule = {"fail": 500, "probability": 0.5}
    in_prompt = {sandbox.submit(f"a cat {directive(rule)}").status_code for _ in range(60)}
    sandbox.control(rule)
    by_control = {sandbox.submit("a cat").status_code for _ in range(60)}
    assert in_prompt == by_control == {200, 500}


# ------------------------------------------------------------------ what a client sees


def observe(sandbox: Server, case: Case, *rules: dict[str, Any]) -> Seen:
    """Submits until a job is made, polls twice and fetches the first result. Returns answers and the request log."""
    sandbox.client.delete("/journal")
    body: dict[str, Any] = {"prompt": f"a cat {next(_numbers)} {directive(*rules)}"}
    body |= {ACTION: {"aspect_ratio": "1:1"}, VIDEO: {"sync": False, "resolution": "480p", "duration": 4}}.get(
        case.action, {}
    )
    path = case.action + ("/async" if case.action == ACTION else "")
    seen: Seen = []
    for _ in range(MAX_SUBMITS):
        seen.append(ask(sandbox, "POST", path, json=body))
        if sandbox.journal(outcome="accepted"):
            break
    task_ids = [entry["task_id"] for entry in sandbox.journal(outcome="accepted")]
    urls = []
    for _ in range(2 if task_ids else 0):
        seen.append(ask(sandbox, "GET", f"{case.action}/status/{task_ids[0]}"))
        urls += re.findall(rf'"({sandbox.origin}/results/[^"]+)"', seen[-1][-1])
    if urls:
        seen.append(ask(sandbox, "GET", urls[0]))
    seen.append(tuple((entry["outcome"], entry["status"], entry["fault"]) for entry in sandbox.journal()))
    return [tuple(hide_ids(one) for one in step) for step in seen]


def ask(sandbox: Server, method: str, url: str, **body: Any) -> tuple[Any, ...]:
    """Status, some headers, and the body: its text, or the length of an image or a video."""
    try:
        answer = sandbox.client.request(method, url, **body)
    except httpx.TransportError as error:
        return (type(error).__name__,)
    headers = [answer.headers.get(name) for name in ("retry-after", "location", "content-type")]
    is_media = len(answer.content) > 10_000
    length = len(answer.content) if len(answer.content) >= 2_000_000 else "some"
    is_cut = answer.headers.get("content-length") == "50"
    return (answer.status_code, *headers, f"{length} bytes" if is_media or is_cut else answer.text)


def hide_ids(value: Any) -> Any:
    """The same answer without the parts that differ in every job."""
    if not isinstance(value, str):
        return value
    value = re.sub(r"[0-9a-f]{32}", "ID", value)
    return re.sub(r'(expires|signature)=[^&"]*|"(cost_time|expires_in_s)":\d+|cat \d+', "", value)


def seconds(sandbox: Server) -> float:
    """Seconds from the first request of the log to now, by the monotonic clock."""
    first = sandbox.journal()[0]["monotonic"]
    sandbox.client.get("/api/v1/me")
    return float(sandbox.journal()[-1]["monotonic"]) - float(first)
