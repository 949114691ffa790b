"""The pictures: what they are, who may read them for how long, and how they disappoint."""

import io
from collections.abc import Callable

import httpx
import pytest
from PIL import Image

from app.sandbox.pictures import FONT, Picture, draw, measure
from tests.support.sandbox_server import ACTION, Server

RATIOS = ["1:1", "1:4", "1:8", "2:3", "3:2", "3:4", "4:1", "4:3", "4:5", "5:4", "8:1", "9:16", "16:9", "21:9"]


def finished(sandbox: Server, clauses: str) -> str:
    """The URL of a finished job's first picture."""
    return sandbox.finish(f"一只猫 [[sandbox: take 0; {clauses}]]")["result_urls"][0]


@pytest.mark.parametrize("ratio", RATIOS)
def test_sizes_have_the_exact_ratio_and_about_a_megapixel(ratio: str) -> None:
    width, height = measure(ratio, "1K")
    across, down = (int(part) for part in ratio.split(":"))
    assert width * down == height * across
    assert 0.85 < width * height / 1024**2 < 1.15
    assert measure(ratio, "2K") == (2 * width, 2 * height)


@pytest.mark.parametrize(
    ("output_format", "kind", "media_type"),
    [("jpg", "JPEG", "image/jpeg"), ("jpeg", "JPEG", "image/jpeg"), ("png", "PNG", "image/png")],
)
def test_a_real_picture(sandbox: Server, output_format: str, kind: str, media_type: str) -> None:
    url = sandbox.finish("一只猫", aspect_ratio="16:9", output_format=output_format)["result_urls"][0]
    answer = sandbox.fetch(url)
    picture = Image.open(io.BytesIO(answer.content))
    picture.load()
    assert (picture.format, picture.size) == (kind, (1408, 792))
    assert answer.headers["content-type"] == media_type
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert sandbox.fetch(url).content == answer.content
    assert f".{output_format}?" in url


def test_pictures_of_one_job_differ(sandbox: Server) -> None:
    urls = sandbox.finish("一只猫 [[sandbox: take 0; images 3]]")["result_urls"]
    assert len({sandbox.fetch(url).content for url in urls}) == 3


def test_chinese_is_drawn_with_glyphs_of_its_own() -> None:
    """Two different characters give different pictures; were both missing, both would be the same box."""
    cat, dog, emoji, other_emoji = (
        draw(Picture(text, "d", "label", (512, 512), "png")) for text in ("猫", "狗", "😀", "🚀")
    )
    assert cat != dog
    assert emoji == other_emoji
    assert FONT.with_name("WenQuanYiMicroHei-LICENSE.txt").exists()


def test_any_text_can_be_drawn() -> None:
    for text in ("", "\n\n", "a" * 400, "猫" * 20_000, "a\tb\r\nc", "\u202e\u0000x", "\ud800"):
        for ratio in ("1:8", "8:1"):
            assert draw(Picture(text, "d", "x" * 90, measure(ratio, "1K"), "jpg"))


def test_head_tells_the_length(sandbox: Server) -> None:
    url = finished(sandbox, "images 1")
    assert int(httpx.head(url, timeout=60).headers["content-length"]) == len(sandbox.fetch(url).content)


@pytest.mark.parametrize(
    ("was", "becomes"), [("signature=", "signature=0"), ("expires=1", "expires=2"), ("-0.", "-1.")]
)
def test_a_changed_url_is_refused(sandbox: Server, was: str, becomes: str) -> None:
    assert sandbox.fetch(finished(sandbox, "images 1").replace(was, becomes)).status_code == 403


def test_a_bare_url_is_refused(sandbox: Server) -> None:
    assert sandbox.fetch(finished(sandbox, "images 1").partition("?")[0]).status_code == 403


def test_urls_expire_and_a_new_look_signs_anew(sandbox: Server, advance_sandbox: Callable[[float], None]) -> None:
    first = sandbox.finish("一只猫 [[sandbox: take 0; result expires 60]]")
    url = first["result_urls"][0]
    assert sandbox.fetch(url).status_code == 200
    advance_sandbox(60.1)
    assert sandbox.fetch(url).status_code == 403
    assert sandbox.fetch(sandbox.poll(first["task_id"]).json()["result_urls"][0]).status_code == 200


def test_a_refused_result_runs_out(sandbox: Server) -> None:
    url = finished(sandbox, "result 404 once; result 500 once")
    assert [sandbox.fetch(url).status_code for _ in range(3)] == [404, 500, 200]


def test_results_need_no_key_and_the_journal_shows_whether_one_came(sandbox: Server) -> None:
    url = finished(sandbox, "images 1")
    sandbox.fetch(url)
    sandbox.client.get(url)
    served = sandbox.journal(outcome="served")
    assert [entry["has_authorization"] for entry in served] == [False, True]
    assert "signature" not in str(served)


def test_redirects_and_private_urls(sandbox: Server) -> None:
    answer = sandbox.fetch(finished(sandbox, "result redirect http://10.0.0.1/x.jpg"))
    assert (answer.status_code, answer.headers["location"]) == (302, "http://10.0.0.1/x.jpg")
    assert finished(sandbox, "result private") == "http://169.254.169.254/x.jpg"
    assert finished(sandbox, "result url http://localhost:1/x.jpg") == "http://localhost:1/x.jpg"


@pytest.mark.parametrize(
    ("clause", "media_type", "start"),
    [
        ("not-an-image", "text/html", b"<!doctype html>"),
        ("svg", "image/svg+xml", b"<svg"),
        ("html", "text/html; charset=utf-8", b"<!doctype html>"),
        ("webp", "image/webp", b"RIFF"),
        ("empty", "image/jpeg", b""),
        ("content-type text/html", "text/html", b"\xff\xd8"),
        ("pixel-bomb", "image/png", b"\x89PNG"),
    ],
)
def test_false_pictures(sandbox: Server, clause: str, media_type: str, start: bytes) -> None:
    url = finished(sandbox, f"result {clause}")
    answer = sandbox.fetch(url)
    assert ".jpg?" in url
    assert (answer.status_code, answer.headers["content-type"]) == (200, media_type)
    assert answer.content.startswith(start)
    assert (answer.content == b"") == (clause == "empty")


def test_the_pixel_bomb_is_small_and_claims_much(sandbox: Server) -> None:
    content = sandbox.fetch(finished(sandbox, "result pixel-bomb")).content
    assert len(content) < 100
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(content))


def test_urls_of_a_given_origin(serving) -> None:
    with serving(public_url="https://pictures.example/") as sandbox:
        body = {"prompt": "a [[sandbox: take 0]]", "aspect_ratio": "1:1"}
        url = sandbox.client.post(ACTION, json=body).json()["result_urls"][0]
    assert url.startswith("https://pictures.example/results/")
