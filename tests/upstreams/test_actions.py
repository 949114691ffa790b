"""The requests to SEE2AI fit its published Input Schemas, and its rules are checked before points are deducted."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import InvalidParameter
from app.upstreams.action import MAX_PARAMS, ActionInput, build_request, merge_params, params_schema
from app.upstreams.see2ai.actions import Action, actions_of
from tests.support.run import examples

SEEDS = Path(__file__).parents[1] / "seeds"
SEED, NEW = actions_of("seed"), actions_of("2026-04")
SCHEMAS = {
    "see2ai_image_generation_fast_v1": "fast_image",
    "see2ai_image_uniworld_v2": "uniworld",
    "see2ai_video_generation_v1": "video",
    "see2ai_image_normalize_v1": "normalize",
}
FAMILIES = [(action.name, task_type) for action in SEED.values() for task_type in action.params]
A, B, C = (f"https://example.com/{name}.jpg" for name in "abc")
VIDEO_URL, AUDIO = "https://example.com/a.mp4", "https://example.com/a.mp3"


def schema_of(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((SEEDS / f"{SCHEMAS[name]}_input.json").read_text())
    return loaded


def order(
    action: Action, task_type: str, references: tuple[str, ...] = (), prompt: str = "一只猫", **requested: Any
) -> dict[str, Any]:
    params = merge_params(action, task_type, {}, {}, requested)
    return build_request(action, ActionInput(task_type, prompt, references, params))


def values(rule: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a caller may set by the schema we publish, and a few others."""
    if "anyOf" in rule:
        return st.one_of(*(values(one) for one in rule["anyOf"]))
    if "enum" in rule:
        return st.sampled_from([*rule["enum"], "other"])
    if "const" in rule:
        return st.just(rule["const"])
    match rule.get("type"):
        case "null":
            return st.none()
        case "boolean":
            return st.booleans()
        case "integer":
            return st.integers(-2, 20_000)
        case "array":
            return st.lists(st.sampled_from([VIDEO_URL, AUDIO, A]), max_size=4)
    return st.sampled_from([A, B, "词" * 3, "词" * 256, ""])


@st.composite
def requests(draw: st.DrawFn, action: Action, task_type: str) -> tuple[str, tuple[str, ...], dict[str, Any]]:
    properties = params_schema(action.params[task_type], {})["properties"]
    names = draw(st.lists(st.sampled_from(sorted(properties)), unique=True, max_size=5))
    references = draw(st.lists(st.sampled_from([A, B, C]), max_size=min(action.max_references, 11)))
    prompt = draw(st.sampled_from(["a", "一只猫", "词" * 5000, "词" * 5001, "词" * 20_000]))
    return prompt, tuple(references), {name: draw(values(properties[name])) for name in names}


@pytest.mark.parametrize(("name", "task_type"), FAMILIES)
@settings(max_examples=examples(60, 300), deadline=None)
@given(data=st.data())
def test_whatever_is_sent_fits_the_printed_schema(name: str, task_type: str, data: st.DataObject) -> None:
    action, schema = SEED[name], schema_of(name)
    prompt, references, requested = data.draw(requests(action, task_type))
    try:
        request = order(action, task_type, references, prompt, **requested)
    except InvalidParameter as refused:
        payload = refused
    else:
        payload = None
    if payload is not None:
        assert payload.field.startswith(("params.", "prompt", "imageUrl"))
        assert payload.message.startswith(f"参数错误: {payload.field} ")
        return
    if request.get("aspect_ratio") == "auto":  # the worker sets it before the request
        request["aspect_ratio"] = "1:1"
    jsonschema.validate(request, schema)
    assert set(request) <= set(schema["properties"])


@pytest.mark.parametrize("task_type", ["text_to_video", "image_to_video"])
@settings(max_examples=examples(60, 300), deadline=None)
@given(data=st.data())
def test_the_later_form_never_contains_a_removed_field(task_type: str, data: st.DataObject) -> None:
    action = NEW["see2ai_video_generation_v1"]
    prompt, references, requested = data.draw(requests(action, task_type))
    try:
        request = order(action, task_type, references, prompt, **requested)
    except InvalidParameter:
        return
    retired = {"face_image_url", "non_face_image_url", "non_face_image_urls"}
    new = {"reference_image_url", "reference_image_urls", "reference_image_contains_real_face"}
    hints = {"first_frame_contains_real_face", "last_frame_contains_real_face"}
    known = set(schema_of(action.name)["properties"]) - retired | new | hints
    assert set(request) <= known
    assert request["sync"] is False


REACHED: dict[str, list[dict[str, Any]]] = {
    "see2ai_image_generation_fast_v1": [
        order(SEED["see2ai_image_generation_fast_v1"], "image_to_image", (A,), aspectRatio="1:1"),
    ],
    "see2ai_image_uniworld_v2": [
        order(
            SEED["see2ai_image_uniworld_v2"],
            "text_to_image",
            canvasW=1024,
            canvasH=768,
            style="水墨",
            stylize="淡",
            skipDiffusion=True,
            skipHarmonize=True,
            maxReviewRounds=2,
            hierarchical=True,
        )
    ],
    "see2ai_video_generation_v1": [
        order(SEED["see2ai_video_generation_v1"], "image_to_video", (A,), lastFrameUrl=B),
        order(
            SEED["see2ai_video_generation_v1"],
            "image_to_video",
            (A, B),
            imageRole="reference",
            faceImageUrl=C,
            videoUrls=[VIDEO_URL],
            audioUrls=[AUDIO],
        ),
        order(
            SEED["see2ai_video_generation_v1"],
            "image_to_video",
            (A,),
            imageRole="reference",
            videoUrls=[VIDEO_URL, VIDEO_URL],
            audioUrls=[AUDIO, AUDIO],
        ),
    ],
    "see2ai_image_normalize_v1": [order(SEED["see2ai_image_normalize_v1"], "image_normalize", (A,), profile="vlm")],
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_property_of_the_printed_schema_is_reachable(name: str) -> None:
    assert {field for request in REACHED[name] for field in request} == set(schema_of(name)["properties"])


def test_a_uniworld_request_says_what_was_requested() -> None:
    assert REACHED["see2ai_image_uniworld_v2"] == [
        {
            "prompt": "一只猫",
            "canvas_w": 1024,
            "canvas_h": 768,
            "style": "水墨",
            "stylize": "淡",
            "skip_diffusion": True,
            "skip_harmonize": True,
            "max_review_rounds": 2,
            "hierarchical": True,
        }
    ]


def test_frames_are_sent_alike_in_both_forms() -> None:
    seed = order(SEED["see2ai_video_generation_v1"], "image_to_video", (A,), lastFrameUrl=B, duration=-1)
    new = order(NEW["see2ai_video_generation_v1"], "image_to_video", (A,), lastFrameUrl=B, duration=-1)
    assert seed == new
    assert (seed["first_frame_url"], seed["last_frame_url"], seed["duration"], seed["sync"]) == (A, B, -1, False)


def test_references_are_spelt_by_the_form() -> None:
    requested: dict[str, Any] = {"imageRole": "reference", "faceImageUrl": C}
    seed = order(SEED["see2ai_video_generation_v1"], "image_to_video", (A, B), **requested)
    new = order(NEW["see2ai_video_generation_v1"], "image_to_video", (A, B), **requested)
    assert (seed["non_face_image_urls"], seed["face_image_url"]) == ([A, B], C)
    assert new["reference_image_urls"] == [A, B, C]
    assert new["reference_image_contains_real_face"] is True
    alone = order(NEW["see2ai_video_generation_v1"], "image_to_video", (A,), imageRole="reference")
    assert alone["reference_image_url"] == A
    assert "reference_image_contains_real_face" not in alone  # SEE2AI detects it by itself


def test_hints_and_1080p_belong_to_the_later_form() -> None:
    requested = {"resolution": "1080p", "firstFrameHasFace": True, "lastFrameHasFace": False, "lastFrameUrl": B}
    new = order(NEW["see2ai_video_generation_v1"], "image_to_video", (A,), **requested)
    assert (new["resolution"], new["first_frame_contains_real_face"], new["last_frame_contains_real_face"]) == (
        "1080p",
        True,
        False,
    )
    for name in ("resolution", "firstFrameHasFace"):
        with pytest.raises(InvalidParameter, match=f"params.{name}"):
            order(SEED["see2ai_video_generation_v1"], "image_to_video", (A,), **{name: requested[name]})


VIDEO = "see2ai_video_generation_v1"
REFERENCE: dict[str, Any] = {"imageRole": "reference"}


@pytest.mark.parametrize(
    ("name", "task_type", "references", "requested", "field"),
    [
        (VIDEO, "image_to_video", (), {}, "imageUrl"),
        (VIDEO, "image_to_video", (), {"lastFrameUrl": A}, "params.lastFrameUrl"),
        (VIDEO, "image_to_video", (A,), {**REFERENCE, "lastFrameUrl": B}, "params.lastFrameUrl"),
        (VIDEO, "image_to_video", (A, B), {}, "imageUrl"),
        (VIDEO, "image_to_video", (A,), {"faceImageUrl": B}, "params.faceImageUrl"),
        (VIDEO, "image_to_video", (A,), {"videoUrls": [VIDEO_URL]}, "params.videoUrls"),
        (VIDEO, "image_to_video", (A,), {"audioUrls": [AUDIO]}, "params.audioUrls"),
        (VIDEO, "image_to_video", (A,) * 10, REFERENCE, "imageUrl"),
        (VIDEO, "image_to_video", (A,) * 9, {**REFERENCE, "faceImageUrl": B}, "imageUrl"),
        (
            VIDEO,
            "image_to_video",
            (A,) * 9,
            {**REFERENCE, "videoUrls": [VIDEO_URL] * 2, "audioUrls": [AUDIO] * 2},
            "imageUrl",
        ),
        (VIDEO, "image_to_video", (A,), {**REFERENCE, "videoUrls": [VIDEO_URL] * 4}, "params.videoUrls"),
        (VIDEO, "image_to_video", (A,), {**REFERENCE, "audioUrls": [AUDIO] * 4}, "params.audioUrls"),
        (VIDEO, "text_to_video", (A,), {}, "imageUrl"),
        (VIDEO, "text_to_video", (), {"audioUrls": [AUDIO]}, "params.audioUrls"),
        (VIDEO, "text_to_video", (), {"faceImageUrl": A}, "params.faceImageUrl"),
        (VIDEO, "text_to_video", (), {"duration": 3}, "params.duration"),
        (VIDEO, "text_to_video", (), {"duration": 16}, "params.duration"),
        (VIDEO, "text_to_video", (), {"duration": 0}, "params.duration"),
        (VIDEO, "text_to_video", (), {"duration": "5"}, "params.duration"),
        (VIDEO, "text_to_video", (), {"duration": True}, "params.duration"),
        (VIDEO, "text_to_video", (), {"resolution": "4k"}, "params.resolution"),
        (VIDEO, "text_to_video", (), {"aspectRatio": "2:3"}, "params.aspectRatio"),
        (VIDEO, "text_to_video", (), {"watermark": "yes"}, "params.watermark"),
        (VIDEO, "text_to_video", (), {"sync": True}, "params.sync"),
        ("see2ai_image_uniworld_v2", "text_to_image", (A,), {}, "imageUrl"),
        ("see2ai_image_uniworld_v2", "text_to_image", (), {"canvasW": 1024}, "params.canvasH"),
        ("see2ai_image_uniworld_v2", "text_to_image", (), {"canvasW": 0, "canvasH": 1}, "params.canvasW"),
        ("see2ai_image_uniworld_v2", "text_to_image", (), {"canvasW": 16_384, "canvasH": 16_384}, "params.canvasW"),
        ("see2ai_image_uniworld_v2", "text_to_image", (), {"style": "词" * 256}, "params.style"),
        ("see2ai_image_uniworld_v2", "text_to_image", (), {"stylize": "词" * 256}, "params.stylize"),
        ("see2ai_image_uniworld_v2", "text_to_image", (), {"maxReviewRounds": -1}, "params.maxReviewRounds"),
        ("see2ai_image_uniworld_v2", "text_to_image", (), {"hierarchical": 1}, "params.hierarchical"),
        ("see2ai_image_normalize_v1", "image_normalize", (), {}, "imageUrl"),
        ("see2ai_image_normalize_v1", "image_normalize", (A,), {"profile": "other"}, "params.profile"),
        ("see2ai_image_generation_fast_v1", "image_to_image", (), {}, "imageUrl"),
        ("see2ai_image_generation_fast_v1", "image_to_image", (A,) * 15, {"aspectRatio": "1:1"}, "imageUrl"),
        ("see2ai_image_generation_fast_v1", "text_to_image", (), {"outputFormat": "webp"}, "params.outputFormat"),
    ],
)
@pytest.mark.parametrize("form", ["seed", "2026-04"])
def test_a_rule_is_reported_by_the_callers_own_field(
    form: str, name: str, task_type: str, references: tuple[str, ...], requested: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidParameter) as refusal:
        order(actions_of(form)[name], task_type, references, **requested)
    payload = refusal.value.field
    assert payload == field or payload.startswith((f"{field}.", f"{field}["))


@pytest.mark.parametrize(
    ("name", "task_type", "max_length"),
    [("see2ai_image_uniworld_v2", "text_to_image", 5000), ("see2ai_image_generation_fast_v1", "text_to_image", 20_000)],
)
def test_a_prompt_may_be_as_long_as_the_action_takes(name: str, task_type: str, max_length: int) -> None:
    assert order(SEED[name], task_type, prompt="词" * max_length)["prompt"] == "词" * max_length
    with pytest.raises(InvalidParameter, match=f"prompt 不能超过 {max_length} 个字符"):
        order(SEED[name], task_type, prompt="词" * (max_length + 1))


def test_uniworld_results_are_found_in_all_three_places() -> None:
    read = SEED["see2ai_image_uniworld_v2"].read_urls
    assert read({"image_url": A, "result": {"final_url": B}}) == (A,)
    assert read({"image_url": None, "result": {"final_url": B, "provider_final_url": C}}) == (B,)
    assert read({"image_url": "", "result": {"provider_final_url": C}}) == (C,)
    assert read({"result": "text"}) == read({"image_url": 5}) == read({}) == ()


@pytest.mark.parametrize(("name", "task_type"), FAMILIES)
def test_every_setting_has_an_end(name: str, task_type: str) -> None:
    """A task keeps the settings as they came, so none of them may be longer than it says."""
    for action in (SEED[name], NEW[name]):
        properties = params_schema(action.params[task_type], {})["properties"]
        assert len(properties) <= MAX_PARAMS
        for setting, rule in properties.items():
            for one in rule.get("anyOf", [rule]):
                assert is_bounded(one, is_url=setting in action.url_params), setting


def is_bounded(rule: dict[str, Any], *, is_url: bool) -> bool:
    match rule.get("type"):
        case "string":
            return "enum" in rule or "const" in rule or "maxLength" in rule or is_url
        case "integer":
            return "enum" in rule or {"minimum", "maximum"} <= set(rule)
        case "array":
            return "maxItems" in rule and is_bounded(rule["items"], is_url=is_url)
    return rule.get("type") in {"boolean", "null"}
