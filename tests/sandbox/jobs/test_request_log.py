"""The request log: the content of an entry, what it hides, and its size limit."""

import time

from app.sandbox.request_log import RequestLog
from tests.support.sandbox_server import UNIWORLD, Server

SCOPE = {"method": "POST", "path": "/x", "headers": [(b"authorization", b"Bearer secret"), (b"x-a", b"1")]}


def test_it_names_the_action(sandbox: Server) -> None:
    sandbox.submit("a cat")
    prompt = 'a city [[sandbox: {"take_seconds": 0}]]'
    done = sandbox.make(UNIWORLD, prompt=prompt)
    sandbox.post(UNIWORLD, prompt="")
    sandbox.fetch(done["image_url"])
    (entry,) = sandbox.journal(outcome="accepted", action="see2ai_image_uniworld_v2")
    assert entry["body"] == {"prompt": prompt}
    outcomes = [entry["outcome"] for entry in sandbox.journal(action="see2ai_image_uniworld_v2")]
    assert (outcomes[0], outcomes[-2:]) == ("accepted", ["refused", "served"])
    assert set(outcomes[1:-2]) == {"polled"}


def test_it_contains_everything_except_the_key(sandbox: Server) -> None:
    task_id = sandbox.submit("一只猫").json()["task_id"]
    sandbox.poll(task_id)
    submitted, polled = sandbox.journal()
    assert submitted["body"] == {"prompt": "一只猫", "aspect_ratio": "1:1"}
    assert (submitted["outcome"], submitted["task_id"], submitted["status"]) == ("accepted", task_id, 200)
    assert (polled["method"], polled["outcome"], polled["body"]) == ("GET", "polled", None)
    assert submitted["has_authorization"]
    assert "authorization" not in submitted["headers"]
    assert "sk-sandbox" not in str(sandbox.journal())
    assert abs(submitted["monotonic"] - time.monotonic()) < 60
    assert abs(submitted["time"] - time.time()) < 60
    assert len(sandbox.journal(task_id=task_id)) == 2
    sandbox.client.delete("/journal")
    assert sandbox.journal() == []


def test_requests_about_the_account_are_logged(sandbox: Server) -> None:
    sandbox.client.get("/api/v1/me")
    sandbox.client.get("/api/v1/usage")
    assert [entry["outcome"] for entry in sandbox.journal()] == ["reported", "reported"]


def test_it_is_bounded_in_length_and_bytes() -> None:
    log = RequestLog(max_entries=3, max_bytes=100)
    for _ in range(5):
        log.record(SCOPE, b"1")
    assert [entry["number"] for entry in log.read()] == [3, 4, 5]
    log.record(SCOPE, bytes(99))
    assert [entry["number"] for entry in log.read()] == [5, 6]
    assert log.read()[0]["headers"] == {"x-a": "1"}
