"""Random directives and bodies of /control: the sandbox always answers and never fails with an error of its own."""

import json
from typing import Any
from urllib.parse import quote

import anyio
import httpx
from hypothesis import given, settings
from hypothesis import strategies as st

from app.sandbox import create_sandbox
from app.sandbox.action_names import FAST_IMAGE, NORMALIZE, UNIWORLD, VIDEO
from app.sandbox.error_responses import DETAIL_FORMS
from app.sandbox.jobs.result_urls import sign_urls
from app.sandbox.rules.directives import parse_prompt, visible_text
from app.sandbox.rules.parse import RuleError, parse_rules
from app.sandbox.rules.rule import FAULTS, FaultRule, JobRule
from app.sandbox.rules.scenario import FAILURE_STATES, SUCCESS_STATES
from tests.support.run import examples

EXAMPLES = settings(max_examples=examples(20, 200), deadline=None)
KEYS = sorted(set(FaultRule.model_fields) | set(JobRule.model_fields))
STREAMED = {"huge", "gzip-bomb"}  # a gigabyte each
WORDS = (
    *set(FAULTS) - STREAMED,
    *DETAIL_FORMS,
    *(*FAILURE_STATES, *SUCCESS_STATES, "never", "always"),
    *("submit", "poll", "result", "upload", "all", "empty", "state", "status", "both", "image_url", "final_url"),
)
texts = st.text(max_size=20) | st.text('\ud800\n\r猫"]:a', max_size=4) | st.sampled_from(WORDS)
numbers = st.integers(-1, 600) | st.integers() | st.floats(allow_nan=True, allow_infinity=True)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
anything = st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=8), values, max_size=4)
when = {"times": st.integers(0, 3), "where": st.sampled_from(["submit", "poll", "result", "upload", "all"])}
faults = st.one_of(
    st.fixed_dictionaries({"fail": st.integers(400, 599)}, optional=when | {"text": texts}),
    st.fixed_dictionaries({"fault": st.sampled_from(sorted(set(FAULTS) - STREAMED))}, optional=when),
    st.fixed_dictionaries({"fault": st.just("content-type"), "media_type": texts}),
    st.fixed_dictionaries({"fault": st.just("redirect"), "url": texts}, optional=when),
    st.fixed_dictionaries({"fault": st.just("lies-about-length"), "claimed_bytes": st.integers(0, 10**16)}),
)
jobs = st.fixed_dictionaries(
    {"take_seconds": st.sampled_from([0, 0.01, 600])},
    optional={
        "end": st.sampled_from([*FAILURE_STATES, *SUCCESS_STATES, "never"]),
        "state": texts,
        "progress": st.lists(st.integers(0, 999), min_size=1, max_size=3),
        "polls_without_url": st.integers(0, 2) | st.just("always"),
        "result_count": st.integers(0, 20),
        "result_url": texts,
        "result_lifetime_seconds": numbers,
        "approval_seconds": st.sampled_from([0, 600]),
        "state_field": st.sampled_from(["state", "status", "both"]),
    },
)
rules = st.lists(anything | faults | jobs, max_size=3)


@EXAMPLES
@given(st.text(max_size=30), st.text(max_size=60), st.text(max_size=30))
def test_any_text_in_a_directive_is_parsed_or_refused(before: str, inside: str, after: str) -> None:
    for prompt in (f"{before}[[sandbox: {inside}]]{after}", f"{before}[[sandbox{inside}", f"[[SANDBOX:{inside}]]]]"):
        assert isinstance(parse(prompt), list)


@EXAMPLES
@given(rules)
def test_any_json_is_parsed_alike_in_a_prompt_and_by_control(given_rules: list[dict[str, Any]]) -> None:
    text = json.dumps(given_rules)
    by_control: list[Any]
    try:
        by_control = list(parse_rules(json.loads(text)))
    except RuleError as error:
        by_control = [one["loc"] for one in error.errors]
    assert parse(f"a cat [[sandbox: {text}]]") == by_control


def parse(prompt: str) -> list[Any]:
    """The rules of a prompt, or the places of its errors."""
    try:
        rules = parse_prompt(prompt)
        visible_text(prompt)
    except RuleError as error:
        json.dumps(error.errors, ensure_ascii=False).encode()  # as a response carries it
        return [one["loc"] for one in error.errors]
    return list(rules)


@EXAMPLES
@given(rules, st.sampled_from([FAST_IMAGE, UNIWORLD, VIDEO, NORMALIZE]), st.booleans())
def test_any_rules_are_served(given_rules: list[dict[str, Any]], action: str, by_control: bool) -> None:
    anyio.run(serve, given_rules, action, by_control)


async def serve(given_rules: list[dict[str, Any]], action: str, by_control: bool) -> None:
    """A submit, a poll and a result. An exception inside the sandbox is raised here. Only a reset may be raised."""
    sandbox = create_sandbox(api_key="k", seconds_scale=0.01)
    transport = httpx.ASGITransport(sandbox)
    headers = {"authorization": "Bearer k"}
    async with httpx.AsyncClient(transport=transport, base_url="http://sandbox", headers=headers) as client:
        if by_control:
            answer = await client.post("/control", content=json.dumps(given_rules))
            assert answer.status_code in {200, 422}
            assert (await client.get("/control")).status_code == 200
        text = "[]" if by_control else json.dumps(given_rules)
        prompt = f"a cat [[sandbox: {text}]]"
        body: dict[str, Any] = {"prompt": prompt, "aspect_ratio": "1:1"}
        if action == UNIWORLD:
            body = {"prompt": prompt, "canvas_w": 16, "canvas_h": 16}
        if action == VIDEO:
            body = {"prompt": prompt, "sync": False}
        if action == NORMALIZE:
            body = {"image_url": f"https://example.com/a.jpg?sandbox={quote(text)}"}
        path = f"/api/v1/actions/{action}" + ("/async" if action == FAST_IMAGE else "")
        await ask(client, "POST", path, content=json.dumps(body))
        for entry in (await client.get("/journal?outcome=accepted")).json():
            await ask(client, "GET", f"/api/v1/actions/{action}/status/{entry['task_id']}")
            job = sandbox.state.sandbox.jobs.find(entry["task_id"])
            secret = sandbox.state.sandbox.signing_secret
            for url in sign_urls(job, 60, origin="http://sandbox", secret=secret)[:1]:
                if url.startswith("http://sandbox/"):
                    await ask(client, "GET", url)
        assert (await client.get("/journal")).status_code == 200


async def ask(client: httpx.AsyncClient, method: str, path: str, **body: Any) -> None:
    """Waits for a short time, because some faults never end."""
    try:
        with anyio.move_on_after(0.1):
            answer = await client.request(method, path, **body)
            if answer.status_code == 422:
                assert answer.json()
    except* ConnectionResetError:  # a reset or a wrong length, which need a socket
        pass
    except* httpx.RemoteProtocolError as group:  # a redirect to something that is no URL
        if "Invalid URL in location header" not in str(group.exceptions[0]):
            raise
