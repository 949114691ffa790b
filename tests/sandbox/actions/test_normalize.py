"""Normalize: its sizes, profiles and images, its refusals, and rules in its image URL."""

import io
import json
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pillow_heif
import pytest
from PIL import Image

from app.sandbox.actions.normalize import MAX_SIDES
from tests.support.run import full
from tests.support.sandbox_server import NORMALIZE, UPLOAD, VIDEO, Server, url_with_rules

INPUT = json.loads((Path(__file__).parents[2] / "seeds" / "normalize_input.json").read_text("utf-8"))
PROFILES = INPUT["properties"]["profile"]["enum"]
URL = "https://example.com/a.jpg"


def uploaded(sandbox: Server, content: bytes, name: str = "cat.png") -> str:
    return sandbox.client.post(UPLOAD, files={"file": (name, content)}).json()["url"]


def image(size: tuple[int, int], kind: str = "PNG", mode: str = "RGB", **how: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, "teal").save(file, kind, **how)
    return file.getvalue()


def read_result(answer: dict[str, Any]) -> Image.Image:
    content = httpx.get(answer["normalized_url"], timeout=60).content
    image = Image.open(io.BytesIO(content))
    image.load()
    assert (image.format, image.mode) == ("JPEG", "RGB")
    assert answer["normalized_bytes"] == len(content)
    assert (answer["normalized_width"], answer["normalized_height"]) == image.size
    return image


@pytest.mark.parametrize("profile", [PROFILES[0], *full(*PROFILES[1:])])
def test_an_upload_becomes_a_smaller_jpeg(sandbox: Server, outputs: dict[str, Any], profile: str) -> None:
    source = image((5000, 2500))
    url = uploaded(sandbox, source)
    answer = sandbox.post(NORMALIZE, image_url=url, profile=profile).json()
    jsonschema.validate(answer, outputs["normalize"])
    side = MAX_SIDES[profile]
    assert read_result(answer).size == (side, side // 2)
    assert (answer["original_url"], answer["profile"], answer["method"]) == (url, profile, "pillow")
    assert (answer["original_bytes"], answer["original_width"], answer["original_height"]) == (len(source), 5000, 2500)
    assert not {"task_id", "status", "state"} & set(answer)


def test_kinds_of_images(sandbox: Server) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    heif = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (64, 32), "teal")).save(heif)
    for content, size in (
        (image((64, 32), "JPEG"), (64, 32)),
        (image((64, 32), mode="RGBA"), (64, 32)),
        (image((64, 32), "GIF"), (64, 32)),
        (image((64, 32), "JPEG", exif=turned), (32, 64)),
        (heif.getvalue(), (64, 32)),
    ):
        answer = sandbox.post(NORMALIZE, image_url=uploaded(sandbox, content, "cat.bin")).json()
        assert read_result(answer).size == size
        assert (answer["original_width"], answer["original_height"]) == size


def test_a_result_of_the_sandbox(sandbox: Server) -> None:
    url = sandbox.finish('一只猫 [[sandbox: {"take_seconds": 0}]]', resolution="2K")["result_urls"][0]
    answer = sandbox.post(NORMALIZE, image_url=url).json()
    assert read_result(answer).size == (1024, 1024)
    assert (answer["original_width"], answer["warnings"]) == (2048, None)
    again = sandbox.post(NORMALIZE, image_url=answer["normalized_url"], profile="vlm").json()
    assert read_result(again).size == (1024, 1024)
    video = sandbox.make(VIDEO, prompt='a [[sandbox: {"take_seconds": 0}]]', sync=False, resolution="480p")
    assert sandbox.post(NORMALIZE, image_url=video["result_urls"][0]).status_code == 422
    for dead in (url.replace("signature=", "signature=0"), f"{sandbox.origin}/uploads/nothing.jpg"):
        refused = sandbox.post(NORMALIZE, image_url=dead)
        assert (refused.status_code, refused.json()["detail"][0]["msg"]) == (500, "Image download failed")


def test_a_foreign_image_is_not_fetched_but_drawn(sandbox: Server, outputs: dict[str, Any]) -> None:
    answer = sandbox.post(NORMALIZE, image_url=URL).json()
    jsonschema.validate(answer, outputs["normalize"])
    assert read_result(answer).size == (1024, 768)
    assert (answer["profile"], answer["original_bytes"]) == ("face_detection", None)
    assert "fetches no foreign URL" in answer["warnings"][0]


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({}, "image_url"),
        ({"image_url": None}, "image_url"),
        ({"image_url": URL, "profile": "huge"}, "profile"),
        ({"image_url": URL, "profile": None}, "profile"),
        ({"image_url": url_with_rules(URL, {"fial": 500})}, "image_url"),
        ({"image_url": url_with_rules(URL, {"size_bytes": 1000})}, "image_url"),
        ({"image_url": url_with_rules(URL, {"approval_seconds": 1})}, "image_url"),
        ({"image_url": url_with_rules(URL, {"where": "poll", "fail": 503})}, "image_url"),
    ],
)
def test_refused_inputs(sandbox: Server, body: dict[str, Any], where: str) -> None:
    answer = sandbox.post(NORMALIZE, **body)
    assert (answer.status_code, answer.json()["detail"][0]["loc"][:2]) == (422, ["body", where])
    assert sandbox.journal(outcome="accepted") == []


@pytest.mark.parametrize(
    "url", ["", "cat.jpg", "ftp://example.com/a.jpg", "file:///etc/passwd", "https://", "http://[x"]
)
def test_unsafe_urls(sandbox: Server, url: str) -> None:
    answer = sandbox.post(NORMALIZE, image_url=url)
    assert (answer.status_code, answer.json()["detail"][0]["msg"]) == (422, "URL is unsafe")


def test_a_file_that_is_not_an_image_is_refused(sandbox: Server) -> None:
    for content in (b"hello", image((64, 64))[:60], b"<svg/>"):
        assert sandbox.post(NORMALIZE, image_url=uploaded(sandbox, content)).status_code == 422


def test_rules_in_the_query_of_the_image_url(sandbox: Server) -> None:
    url = url_with_rules(URL, {"where": "submit", "fail": 503, "times": 1, "retry_after": 2}, {"take_seconds": 0})
    assert [sandbox.post(NORMALIZE, image_url=url).status_code for _ in range(2)] == [503, 200]
    wrapped = sandbox.post(NORMALIZE, image_url=url_with_rules(URL, {"fault": "wrapped"}))
    assert "data" in wrapped.json()
    failed = sandbox.post(NORMALIZE, image_url=url_with_rules(URL, {"end": "failed", "text": "no luck"}))
    assert (failed.status_code, failed.json()) == (500, {"detail": "no luck"})
    private = sandbox.post(NORMALIZE, image_url=url_with_rules(URL, {"result_url": "http://10.0.0.1/x.jpg"}))
    assert private.json()["normalized_url"] == "http://10.0.0.1/x.jpg"
    endless = {"image_url": url_with_rules(URL, {"end": "never"})}
    with pytest.raises(httpx.ReadTimeout):
        sandbox.client.post(NORMALIZE, json=endless, timeout=httpx.Timeout(60, read=0.3))


def test_faults_of_a_normalized_image(sandbox: Server) -> None:
    faults = ({"where": "result", "fail": 404}, {"fault": "not-an-image"}, {"fault": "webp"})
    url = url_with_rules(URL, {"take_seconds": 0}, *(fault | {"times": 1} for fault in faults))
    answer = sandbox.post(NORMALIZE, image_url=url).json()
    assert sandbox.fetch(answer["normalized_url"]).status_code == 404
    assert sandbox.fetch(answer["normalized_url"]).text.startswith("<!doctype html>")
    assert sandbox.fetch(answer["normalized_url"]).content.startswith(b"RIFF")
    assert read_result(answer).size == (1024, 768)


def test_it_is_counted_and_has_no_status(sandbox: Server) -> None:
    before = sandbox.client.get("/api/v1/usage").json()["actions"].get("see2ai_image_normalize_v1", {})
    sandbox.post(NORMALIZE, image_url=URL, profile="vlm")
    after = sandbox.client.get("/api/v1/usage").json()["actions"]["see2ai_image_normalize_v1"]
    assert after["cost_points"] - before.get("cost_points", 0) == 500
    (entry,) = sandbox.journal(outcome="accepted", action="see2ai_image_normalize_v1")
    assert entry["body"] == {"image_url": URL, "profile": "vlm"}
    assert sandbox.poll_action(NORMALIZE, entry["task_id"]).status_code == 404


@pytest.mark.parametrize(
    "rule",
    [
        {"state": "dreaming"},
        {"progress": [10, 40]},
        {"result_count": 2},
        {"fault": "no-task-id"},
        {"fault": "reuse-task-id"},
        {"fault": "wrong-task-id"},
    ],
)
def test_a_rule_without_effect_here_is_refused(sandbox: Server, rule: dict[str, Any]) -> None:
    answer = sandbox.post(NORMALIZE, image_url=url_with_rules(URL, rule))
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["msg"].startswith("sandbox directive: ")
