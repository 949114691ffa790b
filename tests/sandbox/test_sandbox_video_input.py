"""The video action's rules in both forms: a sandbox must refuse whatever SEE2AI would."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.support.sandbox_server import VIDEO, Server

INPUT = json.loads((Path(__file__).parents[1] / "seeds" / "video_input.json").read_text("utf-8"))
PICTURE, FILM, SOUND = "https://example.com/a.png", "https://example.com/a.mp4", "https://example.com/a.mp3"

BROKEN_RULES = [
    ({"prompt": None}, "prompt"),
    ({"prompt": " "}, "prompt"),
    ({"duration": 3}, "duration"),
    ({"duration": 16}, "duration"),
    ({"duration": 0}, "duration"),
    ({"last_frame_url": PICTURE}, "first frame"),
    ({"first_frame_url": PICTURE, "video_url": FILM}, "exclude"),
    ({"first_frame_url": PICTURE, "audio_urls": [SOUND]}, "exclude"),
    ({"audio_url": SOUND}, "audio"),
    ({"video_url": FILM, "video_urls": [FILM] * 3}, "3 reference videos"),
    ({"video_url": FILM, "audio_urls": [SOUND] * 4}, "3 reference audios"),
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
    ({"video_urls": FILM}, "video_urls"),
]


def wanted(**fields: Any) -> dict[str, Any]:
    return {"prompt": "a cat", "sync": False} | fields


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        *BROKEN_RULES,
        ({"first_frame_url": PICTURE, "face_image_url": PICTURE}, "exclude"),
        ({"first_frame_url": PICTURE, "last_frame_url": PICTURE, "non_face_image_url": PICTURE}, "exclude"),
        ({"first_frame_url": PICTURE, "non_face_image_urls": [PICTURE]}, "exclude"),
        ({"face_image_url": PICTURE, "non_face_image_urls": [PICTURE] * 9}, "9 reference images"),
        (
            {"non_face_image_urls": [PICTURE] * 9, "video_urls": [FILM] * 3, "audio_urls": [SOUND]},
            "12 references in all",
        ),
    ],
)
def test_a_broken_rule_is_a_400_in_the_seeds_form(sandbox: Server, fields: dict[str, Any], told: str) -> None:
    answer = sandbox.post(VIDEO, **wanted(**fields))
    assert answer.status_code == 400
    assert told in answer.json()["detail"]
    assert sandbox.journal(outcome="accepted") == []


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        *BROKEN_SCHEMA,
        ({"resolution": "1080p"}, "resolution"),
        ({"model_name": "see2ai-video-v2"}, "model_name"),
        ({"reference_image_url": PICTURE}, "reference_image_url"),
        ({"reference_image_urls": None}, "reference_image_urls"),
        ({"first_frame_contains_real_face": False}, "first_frame_contains_real_face"),
        ({"prompt": "[[sandbox: place final_url]]"}, "prompt"),
    ],
)
def test_a_broken_schema_is_a_422_in_the_seeds_form(sandbox: Server, fields: dict[str, Any], where: str) -> None:
    answer = sandbox.post(VIDEO, **wanted(**fields))
    assert answer.status_code == 422
    assert {fault["loc"][1] for fault in answer.json()["detail"]} == {where}
    assert sandbox.journal(outcome="accepted") == []


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        *BROKEN_RULES,
        *BROKEN_SCHEMA,
        ({"face_image_url": PICTURE}, "face_image_url"),
        ({"non_face_image_url": None}, "non_face_image_url"),
        ({"non_face_image_urls": [PICTURE]}, "non_face_image_urls"),
        ({"first_frame_url": PICTURE, "reference_image_url": PICTURE}, "exclude"),
        ({"reference_image_url": PICTURE, "reference_image_urls": [PICTURE] * 9}, "9 reference images"),
        ({"reference_image_contains_real_face": "yes"}, "reference_image_contains_real_face"),
    ],
)
def test_everything_wrong_needs_repair_in_the_later_form(later: Server, fields: dict[str, Any], told: str) -> None:
    answer = later.post(VIDEO, **wanted(**fields))
    guidance = answer.json()
    assert answer.status_code == 422
    assert set(guidance) == {"state", "error_code", "repair_summary", "user_facing_message", "issues"}
    assert (guidance["state"], guidance["error_code"]) == ("needs_repair", "video_request_invalid")
    assert told in str(guidance["issues"])
    assert guidance["user_facing_message"] == guidance["issues"][0]["message"]
    assert later.journal(outcome="accepted") == []


def test_all_issues_are_told_at_once(later: Server) -> None:
    fields = {"duration": 99, "audio_url": SOUND, "last_frame_url": PICTURE}
    issues = later.post(VIDEO, **wanted(**fields)).json()["issues"]
    assert [issue["field"] for issue in issues] == ["duration", "last_frame_url", "first_frame_url", "audio_url"]


def test_a_body_that_is_no_json_is_no_matter_of_repair(later: Server) -> None:
    assert later.client.post(VIDEO, content=b"{").json()["detail"][0]["type"] == "json_invalid"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"prompt": None, "first_frame_url": PICTURE, "last_frame_url": PICTURE},
        {"face_image_url": PICTURE, "non_face_image_url": PICTURE, "non_face_image_urls": [PICTURE] * 7},
        {"non_face_image_urls": [PICTURE] * 6, "video_urls": [FILM] * 3, "audio_urls": [SOUND] * 3},
        {"audio_url": SOUND, "video_url": FILM, "duration": -1},
        {name: None for name in INPUT["properties"] if name not in {"prompt", "model_name", "sync"}},
        {"model_name": "doubao-seedance-2-0-fast-260128", "duration": 4, "resolution": "480p", "aspect_ratio": "21:9"},
    ],
)
def test_what_the_published_schema_and_rules_allow_is_accepted(sandbox: Server, fields: dict[str, Any]) -> None:
    jsonschema.validate(wanted(**fields), INPUT)
    assert sandbox.post(VIDEO, **wanted(**fields)).json()["state"] == "running"


@pytest.mark.parametrize(
    "fields",
    [
        {"reference_image_url": PICTURE, "reference_image_urls": [PICTURE] * 8},
        {"first_frame_url": PICTURE, "last_frame_url": PICTURE, "first_frame_contains_real_face": True},
        {"reference_image_urls": [PICTURE], "reference_image_contains_real_face": False, "audio_url": SOUND},
        {"model_name": "see2ai-video-v2", "resolution": "1080p"},
        {"model_name": "see2ai-video-v2-fast"},
        {"model_name": "doubao-seedance-2-0-260128"},
    ],
)
def test_what_the_later_form_allows_is_accepted(later: Server, fields: dict[str, Any]) -> None:
    assert later.post(VIDEO, **wanted(**fields)).json()["state"] == "running"
