"""Schemathesis on our own OpenAPI document: no generated request causes an error of the gateway.

All operations with --all, else those of `SOME`. `FUZZ_EXAMPLES` is another number of requests for each operation, and
`FUZZ_CASES` a least number of all requests together (docs/development.md).
"""

import asyncio
import json
import os
from collections import Counter
from typing import Any

import httpx
import hypothesis
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck

from app.api.access import rate_limits
from app.main import create_app
from app.points.audit.checks import audit
from app.runtime import Runtime
from tests.support.makers import IMAGE_MODEL, TEXT_MODEL, Maker, User
from tests.support.responses import envelope, refusal
from tests.support.run import examples

pytestmark = [pytest.mark.anyio, pytest.mark.worlds("embedded")]
EXAMPLES = 15
SOME = (
    "POST /user/ai/tasks/submit",
    "GET /user/ai/tasks/{task_no}",
    "GET /user/ai/tasks/list",
    "POST /user/webhooks/endpoints",
    "POST /user/keys/{key_id}",
    "POST /admin/users/{user_id}/adjust",
)
MODES = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
HOOK = "https://receiver.example.com/hook"
REFUSALS = {
    (400, "INVALID_PARAMETER"),
    (400, "MODEL_NOT_FOUND"),
    (400, "CODE_NOT_REDEEMABLE"),
    (404, "NOT_FOUND"),
    (405, "METHOD_NOT_ALLOWED"),
    (409, "IDEMPOTENCY_CONFLICT"),
    (409, "NOT_CANCELLABLE"),
    (409, "TASK_RUNNING"),
    (409, "GRANT_CONFLICT"),
    (409, "ACTION_CONFLICT"),
    (402, "INSUFFICIENT_POINTS"),
    (413, "PAYLOAD_TOO_LARGE"),
    (415, "UNSUPPORTED_MEDIA"),
}
TAKEN = (409, "USERNAME_TAKEN")
LOG_IN_REFUSALS = {(401, "UNAUTHENTICATED"), (403, "FORBIDDEN"), TAKEN}
"""Of the routes of the log-in alone."""
ALSO = {"/admin/users": {TAKEN}}
"""By path: what no other route answers."""


@pytest.mark.settings(max_tasks_in_flight=10**6)
@pytest.mark.filterwarnings("ignore::UserWarning")
async def test_no_request_generated_from_the_document_breaks_the_api(
    make: Maker, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in rate_limits.FIXED_RATES:
        monkeypatch.setitem(rate_limits.FIXED_RATES, limit, rate_limits.Rate(10**6, rate_limits.HOUR))
    monkeypatch.setitem(rate_limits.USERNAME_RATES, "log-in-name", rate_limits.Rate(10**6, rate_limits.HOUR))
    user = await make.user(points=10**9, admin=True)
    known = await make.task_no(user)
    document = create_app(runtime.settings, runtime).openapi()
    if examples(1, 0):
        document["paths"] = some_of(document["paths"])
    count = examples_each(document)
    answered: Counter[tuple[str, int]] = Counter()
    loop = asyncio.get_running_loop()

    def send(case: Any) -> None:
        """Runs the request on the event loop of the API; Hypothesis runs in a thread."""
        requested = asyncio.run_coroutine_threadsafe(send_as(make, case, user, known), loop)
        answered[requested.result(60)] += 1

    for mode in MODES:
        await asyncio.to_thread(fuzz, document, mode, count, send)
    print(f"\n{answered.total()} requests: {dict(sorted(answered.items()))}")
    paths = {path for path, _ in answered}
    assert paths == {f"{method.upper()} {path}" for path, item in document["paths"].items() for method in item}
    assert answered["POST /user/ai/tasks/submit", 200]
    assert answered["POST /user/ai/tasks/submit", 400]
    assert answered["POST /user/webhooks/endpoints", 200]
    assert answered["GET /user/ai/tasks/list", 200]
    assert answered["GET /user/ai/tasks/list", 400]
    assert answered["GET /user/ai/tasks/{task_no}", 200]
    assert answered.total() >= max(count, int(os.environ.get("FUZZ_CASES", "0")))
    assert await audit(runtime.database) == []


def some_of(paths: dict[str, Any]) -> dict[str, Any]:
    """The operations of `SOME`."""
    chosen = {
        path: {method: operation for method, operation in item.items() if f"{method.upper()} {path}" in SOME}
        for path, item in paths.items()
    }
    return {path: item for path, item in chosen.items() if item}


def examples_each(document: dict[str, Any]) -> int:
    """How many requests each operation gets in each mode. One without parameters gets a single request.

    There are two modes, so `FUZZ_CASES` is reached as long as half of the operations have parameters.
    """
    if "FUZZ_CASES" in os.environ:
        operations = sum(len(item) for item in document["paths"].values())
        return -(-int(os.environ["FUZZ_CASES"]) // operations)
    return int(os.environ.get("FUZZ_EXAMPLES", EXAMPLES))


def fuzz(document: dict[str, Any], mode: Any, count: int, send: Any) -> None:
    schema = schemathesis.openapi.from_dict(document)
    for operation in schema.get_all_operations():
        strategy = operation.ok().as_strategy(generation_mode=mode)

        @hypothesis.settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @hypothesis.given(case=strategy)
        def one(case: Any) -> None:
            send(case)

        try:
            one()
        except hypothesis.errors.Unsatisfiable:  # without parameters no request can be invalid
            continue


OF_ANOTHER = {"/user/erase", "/user/auth/logout-all"}
"""Afterwards the token is worth nothing, so a new user sends these."""


async def send_as(make: Maker, case: Any, user: User, known: str) -> tuple[str, int]:
    """Sends one case as the user."""
    acting = await make.user() if case.operation.path in OF_ANOTHER else user
    return await send_request(make.api, case, acting, known)


async def send_request(api: httpx.AsyncClient, case: Any, user: User, known: str) -> tuple[str, int]:
    """Sends one case as its user. Returns (operation, status) after checking the answer."""
    is_log_in = case.operation.path.startswith("/user/auth/")
    prepared = requests.Request(**case.as_transport_kwargs(base_url="http://gateway.test")).prepare()
    url = str(prepared.url)
    if "{task_no}" in case.operation.path and len(url) % 3 and case.method == "GET":  # else no number would exist
        url = f"http://gateway.test{case.operation.path.replace('{task_no}', known)}"
    body = prepared.body.encode() if isinstance(prepared.body, str) else prepared.body or b""
    body = with_real_names(body, case.operation.path)
    secret = {"authorization", "x-api-key", "content-length"}
    headers = {name: value for name, value in prepared.headers.items() if name.lower() not in secret}
    answer = await api.request(case.method, url, content=body, headers=headers | user.headers)
    said = f"{case.method} {url[:300]} {body[:300]!r} -> {answer.status_code} {answer.text[:300]}"
    assert answer.status_code < 500, said
    if answer.status_code == 200 and answer.headers["content-type"].startswith("text/csv"):
        assert answer.content.startswith(b"\xef\xbb\xbf"), said
    elif answer.status_code == 200:
        envelope(answer)
    else:
        also = LOG_IN_REFUSALS if is_log_in else ALSO.get(case.operation.path, set())
        assert refusal(answer)[:2] in REFUSALS | also, said
    return f"{case.operation.method.upper()} {case.operation.path}", answer.status_code


def with_real_names(body: bytes, path: str) -> bytes:
    """Most bodies get an existing model and valid URLs. Otherwise nearly all would fail at the first check."""
    try:
        fields = json.loads(body)
    except ValueError:
        return body
    if isinstance(fields, dict) and isinstance(fields.get("modelName"), str) and len(body) % 4:
        fields["modelName"] = IMAGE_MODEL if len(body) % 2 else TEXT_MODEL
        if isinstance(fields.get("callbackUrl"), str):
            fields["callbackUrl"] = HOOK
        if len(body) % 3 == 0:  # the most frequent mistake
            fields = {name: value for name, value in fields.items() if name not in {"imageUrl", "params"}}
            fields |= {"modelName": TEXT_MODEL, "prompt": fields.get("prompt") or "猫"}
        return json.dumps(fields).encode()
    if isinstance(fields, dict) and isinstance(fields.get("url"), str) and "/endpoints" in path and len(body) % 4:
        return json.dumps(fields | {"url": HOOK}).encode()
    return body
