"""Trouble without prompts, and the journal."""

import time

import httpx
import pytest

from app.sandbox.journal import Journal
from tests.support.sandbox_server import NORMALIZE, UNIWORLD, VIDEO, Server

SCOPE = {"method": "POST", "path": "/x", "headers": [(b"authorization", b"Bearer secret"), (b"x-a", b"1")]}


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


def test_the_purse_is_empty(sandbox: Server) -> None:
    sandbox.control({"balance": "empty"})
    answer = sandbox.submit("a cat")
    assert (answer.status_code, answer.json()) == (401, {"detail": "余额不足，请充值"})
    assert sandbox.client.get("/api/v1/me").json()["balance"] == 0
    sandbox.control()
    assert sandbox.client.get("/api/v1/me").json()["balance"] > 0


def test_markers_for_everyone(sandbox: Server) -> None:
    sandbox.control({"marker": "submit reset once"}, {"marker": "poll malformed", "times": 1})
    with pytest.raises(httpx.ReadError):
        sandbox.submit("a cat")
    task_id = sandbox.submit("a cat").json()["task_id"]
    with pytest.raises(ValueError):
        sandbox.poll(task_id).json()
    assert sandbox.poll(task_id).json()["task_id"] == task_id


def test_a_rule_for_one_action_only(sandbox: Server) -> None:
    done = sandbox.make(UNIWORLD, prompt="a city [[sandbox: take 0]]")
    sandbox.control({"fail": 503, "action": "see2ai_image_uniworld_v2"})
    codes = [sandbox.submit("a").status_code, sandbox.post(VIDEO, prompt="a", sync=False).status_code]
    assert codes == [200, 200]
    codes = [sandbox.post(UNIWORLD, prompt="a").status_code, sandbox.look(UNIWORLD, done["task_id"]).status_code]
    assert [*codes, sandbox.fetch(done["image_url"]).status_code] == [503, 503, 503]
    sandbox.control({"marker": "submit 429 once", "action": "see2ai_image_normalize_v1"}, {"balance": "empty"})
    stranger = {"image_url": "https://example.com/a.jpg"}
    assert [sandbox.post(NORMALIZE, **stranger).status_code for _ in range(2)] == [429, 401]


def test_the_journal_names_the_action(sandbox: Server) -> None:
    sandbox.submit("a cat")
    done = sandbox.make(UNIWORLD, prompt="a city [[sandbox: take 0]]")
    sandbox.post(UNIWORLD, prompt="")
    sandbox.fetch(done["image_url"])
    (entry,) = sandbox.journal(outcome="accepted", action="see2ai_image_uniworld_v2")
    assert entry["body"] == {"prompt": "a city [[sandbox: take 0]]"}
    outcomes = [entry["outcome"] for entry in sandbox.journal(action="see2ai_image_uniworld_v2")]
    assert (outcomes[0], outcomes[-2:]) == ("accepted", ["refused", "served"])
    assert set(outcomes[1:-2]) == {"looked"}


def test_usage_by_action(sandbox: Server) -> None:
    def used() -> dict[str, int]:
        return sandbox.client.get("/api/v1/usage").json()["actions"].get(UNIWORLD.rpartition("/")[2], {})

    before = used()
    sandbox.post(UNIWORLD, prompt="a city")
    sandbox.post(UNIWORLD, prompt="a city [[sandbox: end failed]]")
    assert used()["requests"] - before.get("requests", 0) == 2
    assert used()["cost_points"] - before.get("cost_points", 0) == 50_000


def test_delays_and_shares(sandbox: Server) -> None:
    sandbox.control({"delay_seconds": 0.2, "where": "submit", "times": 1}, {"fail": 500, "share": 0.0})
    started = time.monotonic()
    assert sandbox.submit("a cat").status_code == 200
    assert time.monotonic() - started >= 0.2
    sandbox.control({"fail": 500, "share": 0.5})
    codes = {sandbox.submit("a cat").status_code for _ in range(60)}
    assert codes == {200, 500}


@pytest.mark.parametrize(
    "rule",
    [{"fial": 1}, {"fail": 200}, {"marker": "poll nonsense"}, {"share": 2}, {"where": "x"}, {"action": "x"}, 1, "x"],
)
def test_a_rule_with_a_typo_is_refused(sandbox: Server, rule: object) -> None:
    assert sandbox.client.post("/control", json=rule).status_code == 422
    assert sandbox.client.get("/control").json() == []


def test_rules_in_force_are_shown(sandbox: Server) -> None:
    sandbox.client.post("/control", json={"fail": 503, "times": 2})
    sandbox.submit("a cat")
    (rule,) = sandbox.client.get("/control").json()
    assert (rule["fail"], rule["times"]) == (503, 1)


def test_the_journal_tells_everything_but_the_key(sandbox: Server) -> None:
    task_id = sandbox.submit("一只猫").json()["task_id"]
    sandbox.poll(task_id)
    submitted, looked = sandbox.journal()
    assert submitted["body"] == {"prompt": "一只猫", "aspect_ratio": "1:1"}
    assert (submitted["outcome"], submitted["task_id"], submitted["status"]) == ("accepted", task_id, 200)
    assert (looked["method"], looked["outcome"], looked["body"]) == ("GET", "looked", None)
    assert submitted["has_authorization"]
    assert "authorization" not in submitted["headers"]
    assert "sk-sandbox" not in str(sandbox.journal())
    assert abs(submitted["monotonic"] - time.monotonic()) < 60
    assert abs(submitted["time"] - time.time()) < 60
    assert len(sandbox.journal(task_id=task_id)) == 2
    sandbox.client.delete("/journal")
    assert sandbox.journal() == []


def test_the_journal_is_bounded_in_length_and_bytes() -> None:
    journal = Journal(length=3, most_bytes=100)
    for _ in range(5):
        journal.write(SCOPE, b"1")
    assert [entry["number"] for entry in journal.read()] == [3, 4, 5]
    journal.write(SCOPE, bytes(99))
    assert [entry["number"] for entry in journal.read()] == [5, 6]
    assert journal.read()[0]["headers"] == {"x-a": "1"}
