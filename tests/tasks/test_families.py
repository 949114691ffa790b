"""One task of every action ends with a stored result, in both worlds. Also what is special to each action."""

import io
from typing import Any, get_args

import av
import httpx
import pytest
from PIL import Image

from app.catalog.models import set_model
from app.runtime import Runtime
from app.upstreams.see2ai.actions.normalize import Profile
from tests.support.makers import IMAGE_MODEL, Maker
from tests.support.run import full
from tests.support.sandbox_server import Server, directive, url_with_rules
from tests.support.task_rows import ended

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("working")]
A, B, C = (f"https://example.com/{name}.jpg" for name in "abc")
VIDEO_URL, AUDIO = "https://example.com/a.mp4", "https://example.com/a.mp3"
UNIWORLD, VIDEO, NORMALIZE, UPLOAD = (
    f"see2ai_{name}" for name in ("image_uniworld_v2", "video_generation_v1", "image_normalize_v1", "storage_upload_v1")
)


def bodies(upstream: Server, action: str) -> list[dict[str, Any]]:
    """The bodies that SEE2AI got for an action, oldest first."""
    entries = upstream.journal()
    return [e["body"] for e in entries if e["method"] == "POST" and e["path"].partition(action)[1]]


async def fetched(runtime: Runtime, url: str) -> bytes:
    """A stored result by its link. The bucket of the tests needs signatures, which a browser does not send."""
    key = runtime.store.key_from_url(url)
    assert key is not None, url
    found = await runtime.store.open(key)
    assert found is not None, url
    return b"".join([chunk async for chunk in found.content])


# ------------------------------------------------------------------ pictures


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("2x3", (832, 1248)),
        ("16x9", (1344, 756)),
        *full(("1x1", (1024, 1024)), ("3x2", (1248, 832)), ("9x16", (756, 1344))),
    ],
)
async def test_a_uniworld_image_has_the_canvas_of_its_model(
    make: Maker, upstream: Server, shape: str, size: tuple[int, int]
) -> None:
    user = await make.user(points=100)
    model = f"sc_uniworld_text_{shape}"
    task_no = await make.task_no(user, model=model, params={"style": "水墨", "maxReviewRounds": 1})
    task = await make.ended(user, task_no)
    assert (task["status"], task["taskType"]) == ("completed", "text_to_image")
    assert Image.open(io.BytesIO(await fetched(make.runtime, task["resultUrl"]))).size == size
    [sent] = bodies(upstream, UNIWORLD)
    assert (sent["canvas_w"], sent["canvas_h"], sent["style"], sent["max_review_rounds"]) == (*size, "水墨", 1)
    assert await make.balance(user) == (20, 0)


@pytest.mark.parametrize("place", ["image_url", "final_url", "provider_final_url"])
async def test_a_uniworld_result_is_found_in_every_field(make: Maker, place: str) -> None:
    user = await make.user(points=100)
    prompt = f'[[sandbox: {{"image_field": "{place}", "take_seconds": 0}}]]'
    task = await make.ended(user, await make.task_no(user, prompt, model="sc_uniworld_text_1x1"))
    assert task["status"] == "completed"


@pytest.mark.full
async def test_every_profile_normalizes(make: Maker, upstream: Server) -> None:
    user = await make.user(points=100)
    profiles = get_args(Profile)
    assert len(profiles) == 7
    for profile in profiles:
        task_no = await make.task_no(user, "", model="sc_image_normalize", imageUrl=A, params={"profile": profile})
        task = await make.ended(user, task_no)
        assert (task["status"], task["taskType"], task["prompt"]) == ("completed", "image_normalize", "")
        assert Image.open(io.BytesIO(await fetched(make.runtime, task["resultUrl"]))).format == "JPEG"
    assert [body["profile"] for body in bodies(upstream, NORMALIZE)] == list(profiles)
    assert await make.balance(user) == (93, 0)


async def test_a_normalization_that_is_refused_or_unclear_is_refunded_and_sent_once(
    make: Maker, upstream: Server
) -> None:
    user = await make.user(points=10)
    for rule, outcome, orphan in (
        ({"fail": 422}, "UPSTREAM_REJECTED", False),
        ({"where": "submit", "fault": "malformed"}, "UPSTREAM_UNCERTAIN", True),
    ):
        upstream.client.delete("/journal")
        task_no = await make.task_no(
            user, model="sc_image_normalize", imageUrl=url_with_rules("https://example.com/a.jpg", rule)
        )
        one = await ended(make, user, task_no)
        assert (one.outcome, one.row["suspected_orphan"]) == (outcome, orphan)
        assert len(bodies(upstream, NORMALIZE)) == 1
    assert await make.balance(user) == (10, 0)


# ------------------------------------------------------------------ videos


async def test_a_video_from_text_is_stored_with_its_size_type_and_length(make: Maker, upstream: Server) -> None:
    user = await make.user(points=1000)
    params = {"duration": 4, "resolution": "480p", "aspectRatio": "9:16", "generateAudio": False}
    task_no = await make.task_no(user, "海浪", model="sc_video_text_standard", params=params)
    task = await make.ended(user, task_no)
    assert task["status"] == "completed", task
    [result] = task["results"]
    assert (result["url"], result["type"]) == (task["resultUrl"], "video/mp4")
    assert task["resultUrl"].endswith(".mp4")
    assert task["thumbnailUrls"] == []
    video = await fetched(make.runtime, task["resultUrl"])
    assert result["bytes"] == len(video)
    with av.open(io.BytesIO(video)) as opened:
        stream = opened.streams.video[0]
        assert (stream.width, stream.height) == (result["width"], result["height"])
        assert stream.height > stream.width
        assert opened.streams.audio == ()
        assert result["durationSeconds"] == pytest.approx(4, abs=0.3)
    [sent] = bodies(upstream, VIDEO)
    assert sent["sync"] is False
    assert (sent["model_name"], sent["duration"]) == ("doubao-seedance-2-0-260128", 4)
    assert await make.balance(user) == (1000 - 144, 0)


SHORT = {"duration": 4, "resolution": "480p"}
SENT: dict[str, tuple[list[str], dict[str, Any], dict[str, Any]]] = {
    "a first frame": ([A], {}, {"first_frame_url": A}),
    "two frames": ([A], {"lastFrameUrl": B}, {"first_frame_url": A, "last_frame_url": B}),
    "a reference": ([A], {"imageRole": "reference"}, {"non_face_image_url": A}),
    "references of all kinds": (
        [A, B],
        {"imageRole": "reference", "faceImageUrl": C, "videoUrls": [VIDEO_URL, VIDEO_URL], "audioUrls": [AUDIO]},
        {"non_face_image_urls": [A, B], "face_image_url": C, "video_urls": [VIDEO_URL, VIDEO_URL], "audio_url": AUDIO},
    ),
    "a face alone": ([], {"faceImageUrl": C}, {"face_image_url": C}),
}


@pytest.mark.parametrize(
    "case", ["two frames", "references of all kinds", *full("a first frame", "a reference", "a face alone")]
)
async def test_a_video_from_images(make: Maker, upstream: Server, case: str) -> None:
    urls, params, fields = SENT[case]
    user = await make.user(points=1000)
    model = "sc_video_img2video_fast"
    task = await make.ended(user, await make.task_no(user, "转动", model=model, imageUrl=urls, params=SHORT | params))
    assert (task["status"], task["taskType"]) == ("completed", "image_to_video")
    [sent] = bodies(upstream, VIDEO)
    assert {name: value for name, value in sent.items() if name.endswith(("_url", "_urls"))} == fields
    assert sent["model_name"] == "doubao-seedance-2-0-fast-260128"


async def test_an_approval_nobody_gives_is_waited_for_and_reported(make: Maker) -> None:
    user = await make.user(points=1000)
    model = "sc_video_text_fast"
    lost = await make.task_no(
        user, '[[sandbox: {"approval_seconds": 0.5, "take_seconds": 0}]]', model=model, params=SHORT
    )
    given = await make.task_no(
        user, directive({"approval_seconds": 0.5, "approved": True, "take_seconds": 0}), model=model, params=SHORT
    )
    task = await make.ended(user, lost)
    assert (task["errorCode"], task["pointsRefunded"]) == ("APPROVAL_EXPIRED", 116)  # 64 × 4 × 0.45 = 115.2
    assert "授权" in task["errorMessage"]
    assert (await make.ended(user, given))["status"] == "completed"


async def test_a_video_that_needs_repair_is_refused_with_a_reason_for_the_operator(make: Maker) -> None:
    user = await make.user(points=1000)
    task_no = await make.task_no(
        user, '[[sandbox: {"end": "needs_repair", "take_seconds": 0}]]', model="sc_video_text_fast", params=SHORT
    )
    one = await ended(make, user, task_no)
    assert one.outcome == "UPSTREAM_REJECTED"
    assert one.row["operator_note"].startswith("needs_repair")


async def test_a_result_that_is_no_video_is_refunded(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=1000)
    task_no = await make.task_no(
        user,
        directive({"fault": "truncated", "times": 1}, {"take_seconds": 0}),
        model="sc_video_text_fast",
        params=SHORT,
    )
    assert (await make.ended(user, task_no))["status"] == "completed"
    runtime.settings.__dict__["hosting_deadline_seconds"] = 1
    task_no = await make.task_no(
        user, directive({"fault": "not-an-image"}, {"take_seconds": 0}), model="sc_video_text_fast", params=SHORT
    )
    assert (await make.ended(user, task_no))["errorCode"] == "RESULT_LOST"


# ------------------------------------------------------------------ calls before the submit


async def test_references_are_normalized_first_if_the_row_says_so(
    make: Maker, runtime: Runtime, upstream: Server
) -> None:
    fixed = {"aspectRatio": "1:1", "normalizeReferences": True}
    await set_model(runtime.database, IMAGE_MODEL, {"params": fixed})
    user = await make.user(points=100)
    task = await make.ended(user, await make.task_no(user, model=IMAGE_MODEL, imageUrl=[A, B, A]))
    assert (task["status"], task["imageUrl"]) == ("completed", [A, B, A])
    requested = bodies(upstream, NORMALIZE)
    assert [body["image_url"] for body in requested] == [A, B]
    assert {body["profile"] for body in requested} == {"image_generation_reference"}
    [sent] = bodies(upstream, "see2ai_image_generation_fast_v1")
    first, second, third = sent["image_input"]
    assert first == third != second
    assert not {first, second} & {A, B}
    assert await make.balance(user) == (65, 0)


async def test_frames_of_a_video_are_normalized_for_it(make: Maker, runtime: Runtime, upstream: Server) -> None:
    fixed = {"version": "fast", "normalizeReferences": True}
    await set_model(runtime.database, "sc_video_img2video_fast", {"params": fixed})
    user = await make.user(points=1000)
    params = SHORT | {"lastFrameUrl": B}
    task_no = await make.task_no(user, model="sc_video_img2video_fast", imageUrl=A, params=params)
    assert (await make.ended(user, task_no))["status"] == "completed"
    assert [(b["image_url"], b["profile"]) for b in bodies(upstream, NORMALIZE)] == [
        (A, "video_seedance_reference"),
        (B, "video_seedance_reference"),
    ]


@pytest.mark.parametrize(
    ("rule", "outcome"),
    [
        ({"fail": 503, "times": 2}, "completed"),
        ({"where": "submit", "fault": "malformed", "times": 1}, "completed"),
        ({"fail": 429, "times": 1}, "completed"),
        ({"fail": 503}, "UPSTREAM_UNAVAILABLE"),
        ({"fail": 422}, "UPSTREAM_REJECTED"),
    ],
)
async def test_a_normalize_call_before_the_submit_may_be_repeated(
    make: Maker, runtime: Runtime, upstream: Server, rule: dict[str, Any], outcome: str
) -> None:
    fixed = {"aspectRatio": "1:1", "normalizeReferences": True}
    await set_model(runtime.database, IMAGE_MODEL, {"params": fixed})
    user = await make.user(points=35)
    url = url_with_rules("https://example.com/a.jpg", rule)
    one = await ended(make, user, await make.task_no(user, model=IMAGE_MODEL, imageUrl=url))
    assert (one.outcome, one.row["suspected_orphan"]) == (outcome, False)
    assert len(bodies(upstream, "see2ai_image_generation_fast_v1")) == (outcome == "completed")
    assert await make.balance(user) == ((0, 0) if outcome == "completed" else (35, 0))


async def uploaded(make: Maker, user: Any, kind: str = "PNG") -> str:
    file = io.BytesIO()
    Image.new("RGB", (300, 200), "navy").save(file, kind)
    answer = await make.api.post(
        "/user/files/upload", files={"file": ("参考.png", file.getvalue())}, headers=user.headers
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["data"]["url"])


@pytest.mark.settings(see2ai_uploads="always")
async def test_a_stored_file_is_uploaded_if_see2ai_cannot_fetch_it(make: Maker, upstream: Server) -> None:
    user = await make.user(points=100)
    url = await uploaded(make, user, "WEBP")
    task_no = await make.task_no(user, model="sc_soraimg_img2img_auto", imageUrl=[url, A])
    task = await make.ended(user, task_no)
    assert (task["status"], task["imageUrl"]) == ("completed", [url, A])
    [sent] = bodies(upstream, "see2ai_image_generation_fast_v1")
    given, kept = sent["image_input"]
    assert kept == A
    assert given.startswith(upstream.origin)
    assert sent["aspect_ratio"] == "3:2"  # read from the stored file itself
    assert Image.open(io.BytesIO(httpx.get(given, timeout=60).content)).size == (300, 200)
    result = await make.task_no(user, model=IMAGE_MODEL, imageUrl=task["resultUrl"])  # the result as the next reference
    assert (await make.ended(user, result))["status"] == "completed"


@pytest.mark.settings(see2ai_uploads="never")
async def test_a_stored_file_is_sent_as_a_link_if_that_is_public(make: Maker, upstream: Server) -> None:
    user = await make.user(points=100)
    url = await uploaded(make, user)
    task_no = await make.task_no(user, model=IMAGE_MODEL, imageUrl=url)
    assert (await make.ended(user, task_no))["status"] == "completed"
    assert bodies(upstream, "see2ai_image_generation_fast_v1")[0]["image_input"] == [url]
    assert bodies(upstream, UPLOAD) == []


@pytest.mark.settings(see2ai_uploads="always")
async def test_trouble_with_handing_over(make: Maker, runtime: Runtime, upstream: Server) -> None:
    user = await make.user(points=105)
    url = await uploaded(make, user)
    upstream.control({"fail": 503, "where": "upload", "times": 2})
    task_no = await make.task_no(user, model=IMAGE_MODEL, imageUrl=url)
    assert (await make.ended(user, task_no))["status"] == "completed"
    gone = runtime.store.public_url("uploads/2026/01/fedcba9876543210fedcba9876543210.png")
    one = await ended(make, user, await make.task_no(user, model=IMAGE_MODEL, imageUrl=gone))
    assert one.outcome == "UPSTREAM_REJECTED"
    upstream.control({"fail": 413, "where": "upload"})
    one = await ended(make, user, await make.task_no(user, model=IMAGE_MODEL, imageUrl=url))
    assert one.outcome == "UPSTREAM_REJECTED"
    assert await make.balance(user) == (70, 0)
