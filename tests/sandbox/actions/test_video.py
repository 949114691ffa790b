"""The video action: sync or not, its states over time, approval and repair, its MP4s and their faults."""

import io
import time
from collections.abc import Callable
from typing import Any

import av
import httpx
import jsonschema
import pytest

from tests.support.sandbox_server import VIDEO, Server, directive

SMALL = {"sync": False, "resolution": "480p", "aspect_ratio": "1:1", "duration": 4}


def made(sandbox: Server, *rules: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """The output of a job that takes no time."""
    prompt = f"一只猫 {directive({'take_seconds': 0}, *rules)}"
    return sandbox.make(VIDEO, **SMALL | {"prompt": prompt} | fields)


def test_a_job_from_submit_to_success(
    sandbox: Server, outputs: dict[str, Any], advance_sandbox: Callable[[float], None]
) -> None:
    first = sandbox.post(VIDEO, **SMALL, prompt='a cat [[sandbox: {"take_seconds": 60}]]').json()
    jsonschema.validate(first, outputs["video"])
    assert (first["state"], "status" in first) == ("running", False)
    running = sandbox.poll_action(VIDEO, first["task_id"]).json()
    assert (running["state"], running["result_urls"], "progress" in running) == ("running", [], False)
    advance_sandbox(60)
    done = sandbox.poll_action(VIDEO, first["task_id"]).json()
    jsonschema.validate(done, outputs["video"])
    assert (done["state"], done["cost_time"], done["cost_points"]) == ("success", 60_000, 120_000)
    assert done["model"] == "doubao-seedance-2-0-260128"


def test_the_later_form_ends_with_succeeded(later: Server) -> None:
    done = made(later, model_name="see2ai-video-v2-fast")
    assert (done["state"], done["model"], done["cost_points"]) == ("succeeded", "see2ai-video-v2-fast", 96_000)


def test_without_sync_false_it_blocks(sandbox: Server, outputs: dict[str, Any]) -> None:
    started = time.monotonic()
    done = sandbox.post(VIDEO, prompt='a cat [[sandbox: {"take_seconds": 0.3}]]').json()
    assert time.monotonic() - started >= 0.3
    jsonschema.validate(done, outputs["video"])
    assert (done["state"], len(done["result_urls"])) == ("success", 1)
    failed = sandbox.post(VIDEO, prompt='a [[sandbox: {"take_seconds": 0, "end": "failed", "text": "no luck"}]]')
    assert failed.json() == {"detail": "no luck"}


@pytest.mark.parametrize(
    ("fields", "seconds", "size", "audio_streams"),
    [
        ({}, 4, (480, 480), 1),
        ({"duration": 15, "aspect_ratio": "9:16", "generate_audio": False}, 15, (480, 854), 0),
        ({"duration": -1, "resolution": None, "aspect_ratio": None, "generate_audio": None}, 5, (1280, 720), 1),
    ],
)
def test_the_mp4_is_as_requested(
    sandbox: Server, fields: dict[str, Any], seconds: int, size: tuple[int, int], audio_streams: int
) -> None:
    answer = sandbox.fetch(made(sandbox, **fields)["result_urls"][0])
    assert answer.headers["content-type"] == "video/mp4"
    with av.open(io.BytesIO(answer.content)) as container:
        video = container.streams.video[0]
        assert ((video.width, video.height), len(container.streams.audio)) == (size, audio_streams)
        assert abs(container.duration / av.time_base - seconds) < 0.05


def test_a_video_without_a_prompt(sandbox: Server) -> None:
    frame = {"prompt": None, "first_frame_url": "https://example.com/a.png"}
    url = sandbox.make(VIDEO, **SMALL | frame)["result_urls"][0]
    assert sandbox.fetch(url).content[4:8] == b"ftyp"


def test_several_videos_differ(sandbox: Server) -> None:
    urls = made(sandbox, {"result_count": 2})["result_urls"]
    assert all(".mp4?" in url for url in urls)
    assert len({sandbox.fetch(url).content for url in urls}) == 2


def test_a_job_that_waits_for_approval_and_expires(sandbox: Server, advance_sandbox: Callable[[float], None]) -> None:
    body = SMALL | {"prompt": 'a face [[sandbox: {"approval_seconds": 60, "take_seconds": 0}]]'}
    first = sandbox.post(VIDEO, **body)
    waiting = sandbox.poll_action(VIDEO, first.json()["task_id"])
    for answer in (first, waiting):
        output = answer.json()
        assert (answer.status_code, output["state"]) == (200, "awaiting_user_approval")
        assert 0 < output["expires_in_s"] <= 60
        assert output["approval_id"] in output["approval_urls"]["approve"]
    advance_sandbox(60)
    expired = sandbox.poll_action(VIDEO, first.json()["task_id"]).json()
    assert (expired["state"], expired["error_message"]) == ("expired", "The approval expired.")
    assert "approval_id" not in expired


def test_an_approved_job_goes_on(sandbox: Server) -> None:
    prompt = 'a face [[sandbox: {"approval_seconds": 2, "approved": true, "take_seconds": 2}]]'
    task_id = sandbox.post(VIDEO, **SMALL | {"prompt": prompt, "sync": True}).json()["task_id"]
    states = set()
    while "success" not in states:
        states.add(sandbox.poll_action(VIDEO, task_id).json()["state"])
        time.sleep(0.05)
    assert states == {"awaiting_user_approval", "running", "success"}


def test_an_approval_without_a_task_id(sandbox: Server) -> None:
    prompt = "a face " + directive({"approval_seconds": 60}, {"fault": "no-task-id"})
    output = sandbox.post(VIDEO, **SMALL, prompt=prompt).json()
    assert (output["state"], "task_id" in output) == ("awaiting_user_approval", False)
    assert (output["expires_in_s"], "approval_id" in output) == (60, True)
    assert len(sandbox.journal(outcome="accepted")) == 1


@pytest.mark.parametrize("word", ["needs_repair", "NEEDS_REPAIR"])
def test_a_poll_that_says_needs_repair(sandbox: Server, word: str) -> None:
    body = SMALL | {"prompt": f'a cat [[sandbox: {{"take_seconds": 0, "end": "{word}", "text": "no famous faces"}}]]'}
    polled = sandbox.poll_action(VIDEO, sandbox.post(VIDEO, **body).json()["task_id"])
    blocked = sandbox.post(VIDEO, **body | {"sync": True})
    for answer in (polled, blocked):
        assert (answer.status_code, answer.json()["state"]) == (422, word)
        assert answer.json()["user_facing_message"] == "no famous faces"
        assert answer.json()["issues"][0]["message"] == "no famous faces"


def test_repair_guidance_is_a_form_of_error_for_submit_and_poll(sandbox: Server) -> None:
    prompt = "a " + directive(
        {"take_seconds": 0},
        {"where": "submit", "fail": 422, "times": 1, "detail": "needs-repair", "text": "not so"},
        {"where": "poll", "fail": 422, "times": 1, "detail": "needs-repair"},
    )
    body = SMALL | {"prompt": prompt}
    refused = sandbox.post(VIDEO, **body)
    assert (refused.status_code, refused.json()["state"]) == (422, "needs_repair")
    assert refused.json()["user_facing_message"] == "not so"
    task_id = sandbox.post(VIDEO, **body).json()["task_id"]
    answers = [sandbox.poll_action(VIDEO, task_id) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [422, 200]
    assert answers[0].json()["state"] == "needs_repair"


@pytest.mark.parametrize(
    ("rule", "media_type", "start"),
    [
        ({"fault": "not-an-image"}, "text/html", b"<!doctype html>"),
        ({"where": "result", "fault": "html"}, "text/html; charset=utf-8", b"<!doctype html>"),
        ({"fault": "svg"}, "image/svg+xml", b"<svg"),
        ({"fault": "webp"}, "image/webp", b"RIFF"),
        ({"fault": "pixel-bomb"}, "image/png", b"\x89PNG"),
        ({"fault": "empty"}, "video/mp4", b""),
        ({"fault": "content-type", "media_type": "text/html"}, "text/html", b"\x00\x00\x00"),
    ],
)
def test_faulty_videos(sandbox: Server, rule: dict[str, Any], media_type: str, start: bytes) -> None:
    answer = sandbox.fetch(made(sandbox, rule)["result_urls"][0])
    assert (answer.status_code, answer.headers["content-type"]) == (200, media_type)
    assert answer.content.startswith(start)


def test_videos_are_cut_short_redirected_and_refused_and_expire(sandbox: Server) -> None:
    faults = (
        {"fault": "truncated"},
        {"fault": "lies-about-length", "claimed_bytes": 50},
        {"where": "result", "fault": "redirect", "url": "http://10.0.0.1/x"},
        {"where": "result", "fail": 404},
    )
    url = made(sandbox, *(fault | {"times": 1} for fault in faults))["result_urls"][0]
    with pytest.raises(httpx.RemoteProtocolError, match="without sending complete"):
        sandbox.fetch(url)
    assert len(sandbox.fetch(url).content) == 50
    assert [sandbox.fetch(url).status_code for _ in range(3)] == [302, 404, 200]
    short_lived = made(sandbox, {"result_lifetime_seconds": 0.1})["result_urls"][0]
    time.sleep(0.15)
    assert sandbox.fetch(short_lived).status_code == 403
    assert made(sandbox, {"result_url": "http://10.0.0.1/x.jpg"})["result_urls"] == ["http://10.0.0.1/x.jpg"]


def test_a_large_video_is_streamed_and_whole(sandbox: Server) -> None:
    url, received = made(sandbox, {"size_bytes": 40_000_000})["result_urls"][0], bytearray()
    assert httpx.head(url, timeout=60).headers["content-length"] == "40000000"
    with httpx.stream("GET", url, timeout=60) as answer:
        assert answer.headers["content-length"] == "40000000"
        for chunk in answer.iter_raw():
            received += chunk
    assert len(received) == 40_000_000
    with av.open(io.BytesIO(received)) as container:
        assert len(list(container.decode(video=0))) == 32


def test_a_large_video_can_hang_and_break_off(sandbox: Server) -> None:
    hang = {"where": "result", "fault": "hang", "seconds": 0.2, "times": 1}
    url = made(sandbox, {"size_bytes": 9_000_000}, hang, {"fault": "truncated", "times": 1})["result_urls"][0]
    started = time.monotonic()
    assert len(sandbox.fetch(url).content) == 9_000_000
    assert time.monotonic() - started >= 0.2
    with pytest.raises(httpx.RemoteProtocolError):
        sandbox.fetch(url)


def test_progress_only_where_a_rule_asks_for_it(sandbox: Server) -> None:
    assert made(sandbox, {"progress": [10, 100]})["progress"] == 100
    assert made(sandbox, {"state_field": "both"})["status"] == "success"
