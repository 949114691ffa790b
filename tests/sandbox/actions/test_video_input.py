"""The input rules of the video action in both forms. The sandbox must refuse all that SEE2AI refuses."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.support.sandbox_server import VIDEO, Server

INPUT = json.loads((Path(__file__).parents[2] / "seeds" / "video_input.json").read_text("utf-8"))
IMAGE_URL, VIDEO_URL, AUDIO_URL = "https://example.com/a.png", "https://example.com/a.mp4", "https://example.com/a.mp3"

BROKEN_RULES = [
    ({"prompt": None}, "prompt"),
    ({"prompt": " "}, "prompt"),
    ({"duration": 3}, "duration"),
    ({"duration": 16}, "duration"),
    ({"duration": 0}, "duration"),
    ({"last_frame_url": IMAGE_URL}, "first frame"),
    ({"first_frame_url": IMAGE_URL, "video_url": VIDEO_URL}, "exclude"),
    ({"first_frame_url": IMAGE_URL, "audio_urls": [AUDIO_URL]}, "exclude"),
    ({"audio_url": AUDIO_URL}, "audio"),
    ({"video_url": VIDEO_URL, "video_urls": [VIDEO_URL] * 3}, "3 reference videos"),
    ({"video_url": VIDEO_URL, "audio_urls": [AUDIO_URL] * 4}, "3 reference audios"),
    ({"video_url": "file:///etc/passwd"}, "http"),
    ({"first_frame_url": "cat.png"}, "http"),
]
BROKEN_SCHEMA = [
    ({"prompt": 5}, "prompt"),
    ({"duration": "5"}, "duration"),
    ({"duration": 5.0}, "duration"),
    ({"duration": True}, "duration"),
    ({"resolution": "4k"}, "resolution"),
    ({"aspect_ratio": "3:2"}, "aspect_ratio"),
    ({"aspect_ratio": "auto"}, "aspect_ratio"),
    ({"model_name": "sora"}, "model_name"),
    ({"model_name": None}, "model_name"),
    ({"sync": None}, "sync"),
    ({"sync": "false"}, "sync"),
    ({"generate_audio": 1}, "generate_audio"),
    ({"video_urls": VIDEO_URL}, "video_urls"),
]


def video_input(**fields: Any) -> dict[str, Any]:
    return {"prompt": "a cat", "sync": False} | fields


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        *BROKEN_RULES,
        ({"first_frame_url": IMAGE_URL, "face_image_url": IMAGE_URL}, "exclude"),
        ({"first_frame_url": IMAGE_URL, "last_frame_url": IMAGE_URL, "non_face_image_url": IMAGE_URL}, "exclude"),
        ({"first_frame_url": IMAGE_URL, "non_face_image_urls": [IMAGE_URL]}, "exclude"),
        ({"face_image_url": IMAGE_URL, "non_face_image_urls": [IMAGE_URL] * 9}, "9 reference images"),
        (
            {"non_face_image_urls": [IMAGE_URL] * 9, "video_urls": [VIDEO_URL] * 3, "audio_urls": [AUDIO_URL]},
            "12 references in all",
        ),
    ],
)
def test_a_broken_rule_is_a_400_in_the_seeds_form(sandbox: Server, fields: dict[str, Any], message: str) -> None:
    answer = sandbox.post(VIDEO, **video_input(**fields))
    assert answer.status_code == 400
    assert message in answer.json()["detail"]
    assert sandbox.journal(outcome="accepted") == []


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        *BROKEN_SCHEMA,
        ({"resolution": "1080p"}, "resolution"),
        ({"model_name": "see2ai-video-v2"}, "model_name"),
        ({"reference_image_url": IMAGE_URL}, "reference_image_url"),
        ({"reference_image_urls": None}, "reference_image_urls"),
        ({"first_frame_contains_real_face": False}, "first_frame_contains_real_face"),
        ({"prompt": '[[sandbox: {"image_field": "final_url"}]]'}, "prompt"),
    ],
)
def test_a_broken_schema_is_a_422_in_the_seeds_form(sandbox: Server, fields: dict[str, Any], where: str) -> None:
    answer = sandbox.post(VIDEO, **video_input(**fields))
    assert answer.status_code == 422
    assert {error["loc"][1] for error in answer.json()["detail"]} == {where}
    assert sandbox.journal(outcome="accepted") == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        *BROKEN_RULES,
        *BROKEN_SCHEMA,
        ({"face_image_url": IMAGE_URL}, "face_image_url"),
        ({"non_face_image_url": None}, "non_face_image_url"),
        ({"non_face_image_urls": [IMAGE_URL]}, "non_face_image_urls"),
        ({"first_frame_url": IMAGE_URL, "reference_image_url": IMAGE_URL}, "exclude"),
        ({"reference_image_url": IMAGE_URL, "reference_image_urls": [IMAGE_URL] * 9}, "9 reference images"),
        ({"reference_image_contains_real_face": "yes"}, "reference_image_contains_real_face"),
    ],
)
def test_everything_wrong_needs_repair_in_the_later_form(later: Server, fields: dict[str, Any], message: str) -> None:
    answer = later.post(VIDEO, **video_input(**fields))
    guidance = answer.json()
    assert answer.status_code == 422
    assert set(guidance) == {"state", "error_code", "repair_summary", "user_facing_message", "issues"}
    assert (guidance["state"], guidance["error_code"]) == ("needs_repair", "video_request_invalid")
    assert message in str(guidance["issues"])
    assert guidance["user_facing_message"] == guidance["issues"][0]["message"]
    assert later.journal(outcome="accepted") == []


def test_all_issues_are_in_one_answer(later: Server) -> None:
    fields = {"duration": 99, "audio_url": AUDIO_URL, "last_frame_url": IMAGE_URL}
    issues = later.post(VIDEO, **video_input(**fields)).json()["issues"]
    assert [issue["field"] for issue in issues] == ["duration", "last_frame_url", "first_frame_url", "audio_url"]


def test_invalid_json_needs_no_repair(later: Server) -> None:
    assert later.client.post(VIDEO, content=b"{").json()["detail"][0]["type"] == "json_invalid"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"prompt": None, "first_frame_url": IMAGE_URL, "last_frame_url": IMAGE_URL},
        {"face_image_url": IMAGE_URL, "non_face_image_url": IMAGE_URL, "non_face_image_urls": [IMAGE_URL] * 7},
        {"non_face_image_urls": [IMAGE_URL] * 6, "video_urls": [VIDEO_URL] * 3, "audio_urls": [AUDIO_URL] * 3},
        {"audio_url": AUDIO_URL, "video_url": VIDEO_URL, "duration": -1},
        {name: None for name in INPUT["properties"] if name not in {"prompt", "model_name", "sync"}},
        {"model_name": "doubao-seedance-2-0-fast-260128", "duration": 4, "resolution": "480p", "aspect_ratio": "21:9"},
    ],
)
def test_inputs_that_the_published_schema_and_rules_allow_are_accepted(sandbox: Server, fields: dict[str, Any]) -> None:
    jsonschema.validate(video_input(**fields), INPUT)
    assert sandbox.post(VIDEO, **video_input(**fields)).json()["state"] == "running"


@pytest.mark.parametrize(
    "fields",
    [
        {"reference_image_url": IMAGE_URL, "reference_image_urls": [IMAGE_URL] * 8},
        {"first_frame_url": IMAGE_URL, "last_frame_url": IMAGE_URL, "first_frame_contains_real_face": True},
        {"reference_image_urls": [IMAGE_URL], "reference_image_contains_real_face": False, "audio_url": AUDIO_URL},
        {"model_name": "see2ai-video-v2", "resolution": "1080p"},
        {"model_name": "see2ai-video-v2-fast"},
        {"model_name": "doubao-seedance-2-0-260128"},
    ],
)
def test_inputs_that_the_later_form_allows_are_accepted(later: Server, fields: dict[str, Any]) -> None:
    assert later.post(VIDEO, **video_input(**fields)).json()["state"] == "running"
