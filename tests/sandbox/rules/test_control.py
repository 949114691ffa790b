"""Rules for all callers, by POST /control."""

import json
import time

import httpx
import pytest

from tests.support.sandbox_server import NORMALIZE, UNIWORLD, VIDEO, Server


def test_a_number_of_failing_submits(sandbox: Server) -> None:
    sandbox.control({"fail": 503, "times": 2, "where": "submit", "retry_after": 2, "detail": "message"})
    answers = [sandbox.submit("a cat") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [503, 503, 200]
    assert (answers[0].headers["retry-after"], list(answers[0].json())) == ("2", ["message"])
    assert len(sandbox.journal(outcome="accepted")) == 1


def test_everything_fails_until_cleared(sandbox: Server) -> None:
    done = sandbox.finish("a cat")
    sandbox.control({"fail": 502})
    codes = [sandbox.submit("a").status_code, sandbox.poll(done["task_id"]).status_code]
    assert [*codes, sandbox.fetch(done["result_urls"][0]).status_code] == [502, 502, 502]
    sandbox.client.delete("/control")
    assert sandbox.submit("a").status_code == 200


def test_the_balance_is_empty(sandbox: Server) -> None:
    sandbox.control({"balance": "empty"})
    answer = sandbox.submit("a cat")
    assert (answer.status_code, answer.json()) == (401, {"detail": "余额不足，请充值"})
    assert sandbox.client.get("/api/v1/me").json()["balance"] == 0
    sandbox.control()
    assert sandbox.client.get("/api/v1/me").json()["balance"] > 0


def test_the_rules_of_one_place_form_a_queue(sandbox: Server) -> None:
    sandbox.control(
        {"where": "submit", "fault": "reset", "times": 1}, {"where": "poll", "fault": "malformed", "times": 1}
    )
    with pytest.raises(httpx.ReadError):
        sandbox.submit("a cat")
    task_id = sandbox.submit("a cat").json()["task_id"]
    with pytest.raises(ValueError):
        sandbox.poll(task_id).json()
    assert sandbox.poll(task_id).json()["task_id"] == task_id


def test_a_rule_for_one_action_only(sandbox: Server) -> None:
    done = sandbox.make(UNIWORLD, prompt='a city [[sandbox: {"take_seconds": 0}]]')
    sandbox.control({"fail": 503, "action": "see2ai_image_uniworld_v2"})
    codes = [sandbox.submit("a").status_code, sandbox.post(VIDEO, prompt="a", sync=False).status_code]
    assert codes == [200, 200]
    codes = [sandbox.post(UNIWORLD, prompt="a").status_code, sandbox.poll_action(UNIWORLD, done["task_id"]).status_code]
    assert [*codes, sandbox.fetch(done["image_url"]).status_code] == [503, 503, 503]
    sandbox.control(
        {"where": "submit", "fail": 429, "times": 1, "action": "see2ai_image_normalize_v1"}, {"balance": "empty"}
    )
    foreign = {"image_url": "https://example.com/a.jpg"}
    assert [sandbox.post(NORMALIZE, **foreign).status_code for _ in range(2)] == [429, 401]


def test_a_rule_shapes_the_jobs_of_everyone(sandbox: Server) -> None:
    sandbox.control({"end": "failed", "text": "no luck", "times": 1}, {"take_seconds": 0})
    ends = [sandbox.finish("a cat") for _ in range(2)]
    assert [(end["status"], end.get("error_message")) for end in ends] == [("failed", "no luck"), ("SUCCESS", None)]
    (ended, timed) = sandbox.client.get("/control").json()
    assert (ended["times"], timed) == (0, {"take_seconds": 0})


def test_a_rule_without_effect_on_an_action_waits_for_another(sandbox: Server) -> None:
    sandbox.control({"image_field": "final_url", "times": 1}, {"size_bytes": 1_000_000}, {"take_seconds": 0})
    image = sandbox.fetch(sandbox.finish("a cat")["result_urls"][0])
    assert len(image.content) < 1_000_000
    assert sandbox.make(UNIWORLD, prompt="a city")["result"].keys() == {"final_url"}


def test_a_rule_of_control_goes_before_those_of_the_prompt(sandbox: Server) -> None:
    sandbox.control({"where": "submit", "fail": 503, "times": 1}, {"end": "done"})
    prompt = 'a cat [[sandbox: [{"where": "submit", "fail": 429, "times": 1}, {"take_seconds": 0, "end": "failed"}]]]'
    assert [sandbox.submit(prompt).status_code for _ in range(2)] == [503, 429]
    assert sandbox.finish(prompt)["status"] == "done"


def test_usage_by_action(sandbox: Server) -> None:
    def used() -> dict[str, int]:
        return sandbox.client.get("/api/v1/usage").json()["actions"].get(UNIWORLD.rpartition("/")[2], {})

    before = used()
    sandbox.post(UNIWORLD, prompt="a city")
    sandbox.post(UNIWORLD, prompt='a city [[sandbox: {"end": "failed"}]]')
    assert used()["requests"] - before.get("requests", 0) == 2
    assert used()["cost_points"] - before.get("cost_points", 0) == 50_000


def test_a_rule_without_a_fault_only_delays(sandbox: Server) -> None:
    sandbox.control({"delay_seconds": 0.2, "where": "submit", "times": 1}, {"fail": 500, "probability": 0.0})
    started = time.monotonic()
    assert sandbox.submit("a cat").status_code == 200
    assert time.monotonic() - started >= 0.2


@pytest.mark.parametrize(
    "rule",
    [
        *({"fial": 1}, {"fail": 200}, {"fault": "nonsense"}, {"probability": 2}, {"where": "x"}, {"action": "x"}),
        *({}, {"where": "poll"}, {"times": 1}, {"end": "failed", "times": -1}, 1, "x", None, [[]], {"\ud800": 1}),
    ],
)
def test_a_rule_with_a_mistake_is_refused(sandbox: Server, rule: object) -> None:
    answer = sandbox.client.post("/control", content=json.dumps(rule))
    assert answer.status_code == 422
    assert [set(error) for error in answer.json()["detail"]] == [{"type", "loc", "msg"}]
    assert sandbox.client.get("/control").json() == []


def test_all_mistakes_of_a_list_are_in_one_answer(sandbox: Server) -> None:
    answer = sandbox.client.post("/control", json=[{"fail": 503}, {"fail": 200}, {"fault": "svg", "seconds": 1}])
    assert [error["loc"] for error in answer.json()["detail"]] == [[1, "fail"], [2]]
    assert sandbox.client.get("/control").json() == []


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000])
def test_a_body_that_is_not_json_is_refused(sandbox: Server, body: bytes) -> None:
    answer = sandbox.client.post("/control", content=body)
    assert (answer.status_code, answer.json()["detail"][0]["type"]) == (422, "json_invalid")


def test_rules_in_force_are_shown(sandbox: Server) -> None:
    assert sandbox.client.post("/control", json={"fail": 503, "times": 2}).json() == [{"fail": 503, "times": 2}]
    sandbox.submit("a cat")
    assert sandbox.client.get("/control").json() == [{"fail": 503, "times": 1}]
