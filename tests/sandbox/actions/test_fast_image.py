"""The fast-image action over HTTP: what it accepts, refuses and answers."""

from typing import Any

import httpx
import jsonschema
import pytest

from app.sandbox.error_responses import DETAIL_FORMS
from tests.support.sandbox_server import ACTION, KEY, Server, directive


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", f"Basic {KEY}", KEY, "Bearer ключ"])
@pytest.mark.parametrize("path", [f"{ACTION}/status/x", "/api/v1/me", "/api/v1/usage", "/journal", "/control"])
def test_a_key_is_needed(sandbox: Server, path: str, authorization: str | None) -> None:
    headers = {} if authorization is None else {"authorization": authorization.encode()}
    answer = httpx.get(sandbox.origin + path, headers=headers)
    assert (answer.status_code, answer.json()) == (401, {"detail": "Invalid API key"})


def test_submitting_without_a_key_makes_no_job(sandbox: Server) -> None:
    answer = httpx.post(f"{sandbox.origin}{ACTION}/async", json={"prompt": "x", "aspect_ratio": "1:1"})
    assert answer.status_code == 401
    assert [entry["outcome"] for entry in sandbox.journal()] == ["refused"]


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": " \n"}, "prompt"),
        ({"prompt": "猫" * 20_001}, "prompt"),
        ({"aspect_ratio": None}, "aspect_ratio"),
        ({"aspect_ratio": "auto"}, "aspect_ratio"),
        ({"aspect_ratio": "7:5"}, "aspect_ratio"),
        ({"resolution": "4K"}, "resolution"),
        ({"output_format": "webp"}, "output_format"),
        ({"image_input": ["https://example.com/a.png"] * 15}, "image_input"),
        ({"image_input": "https://example.com/a.png"}, "image_input"),
        ({"prompt": '[[sandbox: {"fial": 400}]]'}, "prompt"),
    ],
)
def test_refused_inputs(sandbox: Server, fields: dict[str, Any], where: str) -> None:
    answer = sandbox.submit(**{"prompt": "a cat"} | fields)
    assert answer.status_code == 422
    assert [error["loc"][:2] for error in answer.json()["detail"]] == [["body", where]]
    assert sandbox.journal(outcome="accepted") == []


@pytest.mark.parametrize("missing", ["prompt", "aspect_ratio"])
def test_required_fields(sandbox: Server, missing: str) -> None:
    body = {"prompt": "a cat", "aspect_ratio": "1:1"}
    del body[missing]
    answer = sandbox.client.post(f"{ACTION}/async", json=body)
    assert answer.json()["detail"][0] == {"type": "missing", "loc": ["body", missing], "msg": "Field required"}


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b"[" * 100_000])
def test_bodies_that_are_no_object(sandbox: Server, body: bytes) -> None:
    answer = sandbox.client.post(f"{ACTION}/async", content=body)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body"]


def test_a_body_that_is_too_large(sandbox: Server) -> None:
    assert sandbox.client.post(f"{ACTION}/async", content=bytes(3 << 20)).status_code == 413


def test_inputs_that_the_schema_allows_are_accepted(sandbox: Server, input_schema: dict[str, Any]) -> None:
    for ratio in input_schema["properties"]["aspect_ratio"]["enum"]:
        for resolution in input_schema["properties"]["resolution"]["enum"]:
            body = {"prompt": "猫" * 20_000, "aspect_ratio": ratio, "resolution": resolution, "image_input": None}
            jsonschema.validate(body, input_schema)
            assert sandbox.client.post(f"{ACTION}/async", json=body).status_code == 200


def test_a_body_wrapped_once(sandbox: Server) -> None:
    body = {"data": {"prompt": "a cat", "aspect_ratio": "1:1", "image_input": []}}
    assert "task_id" in sandbox.client.post(f"{ACTION}/async", json=body).json()


def test_a_job_from_submit_to_success(sandbox: Server, output_schema: dict[str, Any]) -> None:
    first = sandbox.submit('a cat [[sandbox: {"take_seconds": 1.5}]]').json()
    assert (first["status"], first["state"]) == ("PENDING", "pending")
    seen = []
    while not seen or seen[-1]["status"] != "SUCCESS":
        answer = sandbox.poll(first["task_id"]).json()
        jsonschema.validate(answer, output_schema)
        seen.append(answer)
    assert list(dict.fromkeys(answer["status"] for answer in [first, *seen])) == ["PENDING", "RUNNING", "SUCCESS"]
    assert all(answer["result_urls"] == [] for answer in seen[:-1])
    assert len(seen[-1]["result_urls"]) == 1
    assert seen[-1]["cost_time"] == 1500
    assert seen[-1]["task_id"] == first["task_id"]


def test_a_blocking_submit(sandbox: Server, output_schema: dict[str, Any]) -> None:
    answer = sandbox.client.post(ACTION, json={"prompt": "a cat", "aspect_ratio": "1:1"})
    jsonschema.validate(answer.json(), output_schema)
    assert answer.json()["state"] == "success"
    assert sandbox.fetch(answer.json()["result_urls"][0]).status_code == 200


@pytest.mark.parametrize(("word", "code"), [("failed", 500), ("timeout", 504), ("rejected", 400)])
def test_a_blocking_submit_of_a_failed_job(sandbox: Server, word: str, code: int) -> None:
    prompt = f'a cat [[sandbox: {{"take_seconds": 0, "end": "{word}", "text": "no luck"}}]]'
    answer = sandbox.client.post(ACTION, json={"prompt": prompt, "aspect_ratio": "1:1"})
    assert (answer.status_code, answer.json()) == (code, {"detail": "no luck"})


def test_a_failed_job_says_why_and_costs_nothing(sandbox: Server, output_schema: dict[str, Any]) -> None:
    answer = sandbox.finish('a cat [[sandbox: {"take_seconds": 0, "end": "FAILED", "text": "no luck"}]]')
    jsonschema.validate(answer, output_schema)
    assert (answer["status"], answer["error_message"]) == ("FAILED", "no luck")
    assert (answer["result_urls"], answer["cost_points"]) == ([], None)


@pytest.mark.parametrize(("field", "absent"), [("state", "status"), ("status", "state")])
def test_the_state_in_one_field_only(sandbox: Server, field: str, absent: str) -> None:
    first = sandbox.submit(f'a cat [[sandbox: {{"take_seconds": 0, "state_field": "{field}"}}]]').json()
    later = sandbox.poll(first["task_id"]).json()
    assert field in first
    assert absent not in first
    assert field in later
    assert absent not in later


def test_success_without_url_for_a_while(sandbox: Server) -> None:
    task_id = sandbox.submit('a cat [[sandbox: {"take_seconds": 0, "polls_without_url": 2}]]').json()["task_id"]
    assert [len(sandbox.poll(task_id).json()["result_urls"]) for _ in range(3)] == [0, 0, 1]


def test_an_unknown_task(sandbox: Server) -> None:
    answer = sandbox.poll("0" * 32)
    assert (answer.status_code, answer.json()) == (404, {"detail": "Task not found."})


@pytest.mark.parametrize("code", [400, 401, 402, 403, 404, 422, 429, 500, 502, 503, 504])
def test_failing_submits_make_no_job_and_end_after_their_number(sandbox: Server, code: int) -> None:
    prompt = "a cat " + directive({"where": "submit", "fail": code, "times": 2, "retry_after": 3})
    answers = [sandbox.submit(prompt) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [code, code, 200]
    assert answers[0].headers["retry-after"] == "3"
    assert len(sandbox.journal(outcome="accepted")) == 1
    assert sandbox.journal()[0]["fault"] == f"submit fail {code}"


@pytest.mark.parametrize("form", DETAIL_FORMS)
def test_error_texts_come_in_every_form(sandbox: Server, form: str) -> None:
    answer = sandbox.submit("a cat " + directive({"where": "submit", "fail": 400, "detail": form, "text": "太暗了"}))
    assert answer.status_code == 400
    assert "太暗了" in answer.text
    if form in {"not-json", "html"}:
        with pytest.raises(ValueError):
            answer.json()
    else:
        places = {"string": "detail", "list": "detail", "error.message": "error"}
        assert next(iter(answer.json())) == {**places, "needs-repair": "state"}.get(form, form)


def test_faults_of_a_submit_answer(sandbox: Server) -> None:
    earlier = sandbox.submit("an earlier cat").json()["task_id"]
    assert sandbox.submit('a [[sandbox: {"fault": "reuse-task-id"}]]').json()["task_id"] == earlier
    assert "task_id" not in sandbox.submit('a [[sandbox: {"fault": "no-task-id"}]]').json()
    assert "task_id" in sandbox.submit('a [[sandbox: {"where": "submit", "fault": "wrapped"}]]').json()["data"]
    assert sandbox.submit('a [[sandbox: {"where": "submit", "fault": "html"}]]').text.startswith("<!doctype html>")
    with pytest.raises(ValueError):
        sandbox.submit('a [[sandbox: {"where": "submit", "fault": "malformed"}]]').json()
    assert len(sandbox.journal(outcome="accepted")) == 6


def test_faults_of_a_poll_answer_end_after_their_number(sandbox: Server) -> None:
    faults = [{"fail": 404}, *({"fault": name} for name in ("malformed", "html", "wrong-task-id", "wrapped"))]
    rules = [{"where": "poll", "times": 1} | fault for fault in faults]
    task_id = sandbox.submit("a cat " + directive({"take_seconds": 0}, *rules)).json()["task_id"]
    answers = [sandbox.poll(task_id) for _ in range(6)]
    assert [answer.status_code for answer in answers] == [404, 200, 200, 200, 200, 200]
    for unreadable in answers[1:3]:
        with pytest.raises(ValueError):
            unreadable.json()
    assert answers[3].json()["task_id"] != task_id
    assert answers[4].json()["data"]["task_id"] == task_id
    assert answers[5].json()["task_id"] == task_id


def test_a_submit_can_be_redirected(sandbox: Server) -> None:
    answer = sandbox.submit("a cat " + directive({"where": "submit", "fault": "redirect", "url": "http://10.0.0.1/"}))
    assert (answer.status_code, answer.headers["location"]) == (302, "http://10.0.0.1/")


def test_balance_and_usage(sandbox: Server) -> None:
    before, used_before = (sandbox.client.get(f"/api/v1/{path}").json() for path in ("me", "usage"))
    sandbox.submit("a cat", resolution="2K")
    after, used_after = (sandbox.client.get(f"/api/v1/{path}").json() for path in ("me", "usage"))
    assert before["balance"] - after["balance"] == 40_000
    assert used_after["requests"] - used_before["requests"] == 1
