"""The images of the sandbox: their content, who may read them and for how long, and their faults."""

import io
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from PIL import Image

from app.sandbox.media.images import FONT, ImageSpec, draw_image, image_size
from tests.support.sandbox_server import ACTION, Server, directive

RATIOS = ["1:1", "1:4", "1:8", "2:3", "3:2", "3:4", "4:1", "4:3", "4:5", "5:4", "8:1", "9:16", "16:9", "21:9"]


def finished(sandbox: Server, *rules: dict[str, Any]) -> str:
    """The URL of a finished job's first image."""
    return sandbox.finish(f"一只猫 {directive({'take_seconds': 0}, *rules)}")["result_urls"][0]


@pytest.mark.parametrize("ratio", RATIOS)
def test_sizes_have_the_exact_ratio_and_about_a_megapixel(ratio: str) -> None:
    width, height = image_size(ratio, "1K")
    across, down = (int(part) for part in ratio.split(":"))
    assert width * down == height * across
    assert 0.85 < width * height / 1024**2 < 1.15
    assert image_size(ratio, "2K") == (2 * width, 2 * height)


@pytest.mark.parametrize(
    ("output_format", "kind", "media_type"),
    [("jpg", "JPEG", "image/jpeg"), ("jpeg", "JPEG", "image/jpeg"), ("png", "PNG", "image/png")],
)
def test_a_real_image(sandbox: Server, output_format: str, kind: str, media_type: str) -> None:
    url = sandbox.finish("一只猫", aspect_ratio="16:9", output_format=output_format)["result_urls"][0]
    answer = sandbox.fetch(url)
    image = Image.open(io.BytesIO(answer.content))
    image.load()
    assert (image.format, image.size) == (kind, (1408, 792))
    assert answer.headers["content-type"] == media_type
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert sandbox.fetch(url).content == answer.content
    assert f".{output_format}?" in url


def test_images_of_one_job_differ(sandbox: Server) -> None:
    urls = sandbox.finish('一只猫 [[sandbox: {"take_seconds": 0, "result_count": 3}]]')["result_urls"]
    assert len({sandbox.fetch(url).content for url in urls}) == 3


def test_chinese_is_drawn_with_glyphs_of_its_own() -> None:
    """Two different characters give different images. If both were missing, both would be the same box."""
    cat, dog, emoji, other_emoji = (
        draw_image(ImageSpec(text, "d", "label", (512, 512), "png")) for text in ("猫", "狗", "😀", "🚀")
    )
    assert cat != dog
    assert emoji == other_emoji
    assert FONT.with_name("WenQuanYiMicroHei-LICENSE.txt").exists()


def test_any_text_can_be_drawn() -> None:
    for text in ("", "\n\n", "a" * 400, "猫" * 20_000, "a\tb\r\nc", "\u202e\u0000x", "\ud800"):
        for ratio in ("1:8", "8:1"):
            assert draw_image(ImageSpec(text, "d", "x" * 90, image_size(ratio, "1K"), "jpg"))


def test_head_has_the_length(sandbox: Server) -> None:
    url = finished(sandbox)
    assert int(httpx.head(url, timeout=60).headers["content-length"]) == len(sandbox.fetch(url).content)


@pytest.mark.parametrize(
    ("was", "becomes"), [("signature=", "signature=0"), ("expires=1", "expires=2"), ("-0.", "-1.")]
)
def test_a_changed_url_is_refused(sandbox: Server, was: str, becomes: str) -> None:
    assert sandbox.fetch(finished(sandbox).replace(was, becomes)).status_code == 403


def test_a_url_without_its_signature_is_refused(sandbox: Server) -> None:
    assert sandbox.fetch(finished(sandbox).partition("?")[0]).status_code == 403


def test_urls_expire_and_a_new_poll_signs_anew(sandbox: Server, advance_sandbox: Callable[[float], None]) -> None:
    first = sandbox.finish('一只猫 [[sandbox: {"take_seconds": 0, "result_lifetime_seconds": 60}]]')
    url = first["result_urls"][0]
    assert sandbox.fetch(url).status_code == 200
    advance_sandbox(60.1)
    assert sandbox.fetch(url).status_code == 403
    assert sandbox.fetch(sandbox.poll(first["task_id"]).json()["result_urls"][0]).status_code == 200


def test_a_refused_result_ends_after_its_number(sandbox: Server) -> None:
    url = finished(sandbox, {"where": "result", "fail": 404, "times": 1}, {"where": "result", "fail": 500, "times": 1})
    assert [sandbox.fetch(url).status_code for _ in range(3)] == [404, 500, 200]


def test_results_need_no_key_and_the_request_log_shows_whether_one_came(sandbox: Server) -> None:
    url = finished(sandbox)
    sandbox.fetch(url)
    sandbox.client.get(url)
    served = sandbox.journal(outcome="served")
    assert [entry["has_authorization"] for entry in served] == [False, True]
    assert "signature" not in str(served)


def test_redirects_and_private_urls(sandbox: Server) -> None:
    answer = sandbox.fetch(finished(sandbox, {"where": "result", "fault": "redirect", "url": "http://10.0.0.1/x.jpg"}))
    assert (answer.status_code, answer.headers["location"]) == (302, "http://10.0.0.1/x.jpg")
    assert finished(sandbox, {"result_url": "http://169.254.169.254/x.jpg"}) == "http://169.254.169.254/x.jpg"
    assert finished(sandbox, {"result_url": "http://localhost:1/x.jpg"}) == "http://localhost:1/x.jpg"


@pytest.mark.parametrize(
    ("rule", "media_type", "start"),
    [
        ({"fault": "not-an-image"}, "text/html", b"<!doctype html>"),
        ({"fault": "svg"}, "image/svg+xml", b"<svg"),
        ({"where": "result", "fault": "html"}, "text/html; charset=utf-8", b"<!doctype html>"),
        ({"fault": "webp"}, "image/webp", b"RIFF"),
        ({"fault": "empty"}, "image/jpeg", b""),
        ({"fault": "content-type", "media_type": "text/html"}, "text/html", b"\xff\xd8"),
        ({"fault": "pixel-bomb"}, "image/png", b"\x89PNG"),
    ],
)
def test_faulty_images(sandbox: Server, rule: dict[str, Any], media_type: str, start: bytes) -> None:
    url = finished(sandbox, rule)
    answer = sandbox.fetch(url)
    assert ".jpg?" in url
    assert (answer.status_code, answer.headers["content-type"]) == (200, media_type)
    assert answer.content.startswith(start)
    assert (answer.content == b"") == (rule["fault"] == "empty")


def test_the_pixel_bomb_is_small_and_claims_much(sandbox: Server) -> None:
    content = sandbox.fetch(finished(sandbox, {"fault": "pixel-bomb"})).content
    assert len(content) < 100
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(content))


def test_urls_of_a_given_origin(serving) -> None:
    with serving(public_url="https://images.example/") as sandbox:
        body = {"prompt": 'a [[sandbox: {"take_seconds": 0}]]', "aspect_ratio": "1:1"}
        url = sandbox.client.post(ACTION, json=body).json()["result_urls"][0]
    assert url.startswith("https://images.example/results/")
