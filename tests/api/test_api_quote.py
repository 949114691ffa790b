"""The quote equals the price that submit takes, for every action. Both refuse the same with the same message."""

import json
from typing import Any

import pytest

from app.catalog.models import set_model
from app.runtime import Runtime
from tests.support.makers import IMAGE_MODEL, TEXT_MODEL, Maker, User
from tests.support.responses import SUBMIT, data, refusal
from tests.support.worlds import execute

pytestmark = pytest.mark.anyio
QUOTE = "/user/ai/tasks/quote"
A, B = "https://example.com/a.jpg", "https://example.com/b.jpg"
VIDEO_URL = "https://example.com/a.mp4"


def requested(model: str, *urls: str, prompt: str = "猫", **params: Any) -> dict[str, Any]:
    return {"modelName": model, "prompt": prompt, "imageUrl": list(urls), "params": params}


PRICES = {
    "a text": (requested(TEXT_MODEL), 30),
    "2K costs what 1K does": (requested(TEXT_MODEL, resolution="2K"), 30),
    "references cost nothing more": (requested(IMAGE_MODEL, A, B), 35),
    "UniWorld": (requested("sc_uniworld_text_16x9", style="水墨"), 80),
    "a video of 5 s by default": (requested("sc_video_text_standard"), 400),
    "4 s": (requested("sc_video_text_standard", duration=4), 320),
    "15 s": (requested("sc_video_text_standard", duration=15), 1200),
    "SEE2AI chooses: as the longest": (requested("sc_video_text_standard", duration=-1), 1200),
    "480p": (requested("sc_video_text_standard", resolution="480p"), 180),
    "480p, rounded up": (requested("sc_video_text_fast", resolution="480p", duration=7), 202),  # 64 × 7 × 0.45 = 201.6
    "fast": (requested("sc_video_img2video_fast", A, duration=10), 640),
    "forced asset upload": (requested("sc_video_text_fast", forceAssetUpload=True), 640),
    "frames": (requested("sc_video_img2video_standard", A, lastFrameUrl=B), 400),
    "references": (requested("sc_video_img2video_standard", A, B, imageRole="reference", videoUrls=[VIDEO_URL]), 400),
    "normalize": (requested("sc_image_normalize", A, prompt="", profile="vlm"), 1),
}


async def standing(make: Maker, user: User) -> Any:
    listed = data(await make.api.get("/user/ai/tasks/list", headers=user.headers))
    return await make.balance(user), listed["total"]


async def test_the_quote_is_what_submit_takes(make: Maker) -> None:
    user = await make.user(points=10_000)
    balance = 10_000
    for name, (body, points) in PRICES.items():
        payload = data(await make.api.post(QUOTE, json=body, headers=user.headers))
        assert payload == {"modelName": body["modelName"], "pointsCost": points, "balance": balance}, name
        stored = data(await make.api.post(SUBMIT, json=body, headers=user.headers))
        balance -= points
        assert (stored["pointsCost"], stored["balance"]) == (points, balance), name
    assert await standing(make, user) == ((balance, 10_000 - balance), len(PRICES))


@pytest.mark.settings(see2ai_video_fields="2026-04")
async def test_1080p_is_sold_where_the_later_form_is_spoken(make: Maker) -> None:
    user = await make.user(points=10_000)
    body = requested("sc_video_text_standard", resolution="1080p")
    assert data(await make.api.post(QUOTE, json=body, headers=user.headers))["pointsCost"] == 900
    assert data(await make.api.post(SUBMIT, json=body, headers=user.headers))["pointsCost"] == 900


REFUSED = {
    "no such model": requested("nothing"),
    "no prompt": requested(TEXT_MODEL, prompt=""),
    "a blank prompt": requested("sc_video_text_fast", prompt="  "),
    "a picture for a text": requested(TEXT_MODEL, A),
    "no picture": requested("sc_video_img2video_fast"),
    "nothing to normalize": requested("sc_image_normalize"),
    "two to normalize": requested("sc_image_normalize", A, B),
    "a private link": requested("sc_video_img2video_fast", "http://10.0.0.1/a.jpg"),
    "a private last frame": requested("sc_video_img2video_fast", A, lastFrameUrl="http://localhost/b.jpg"),
    "a private film": requested("sc_video_text_fast", videoUrls=[VIDEO_URL, "http://192.168.0.1/a.mp4"]),
    "a private sound": requested("sc_video_text_fast", videoUrls=[VIDEO_URL], audioUrls=["file:///etc/passwd"]),
    "an empty link": requested("sc_video_text_fast", videoUrls=[""]),
    "a last frame alone": requested("sc_video_img2video_fast", lastFrameUrl=B),
    "frames and references": requested("sc_video_img2video_fast", A, faceImageUrl=B),
    "sound alone": requested("sc_video_text_fast", audioUrls=["https://example.com/a.mp3"]),
    "1080p in the seed form": requested("sc_video_text_fast", resolution="1080p"),
    "what the row fixes": requested("sc_video_text_fast", version="standard"),
    "a canvas of one's own": requested("sc_uniworld_text_1x1", canvasW=4096),
    "too long for UniWorld": requested("sc_uniworld_text_1x1", prompt="词" * 5001),
    "what only rows may say": requested(IMAGE_MODEL, A, normalizeReferences=True),
    "sync": requested("sc_video_text_fast", sync=True),
}


async def test_what_is_refused_is_refused_alike_and_costs_nothing(make: Maker) -> None:
    user = await make.user(points=10_000)
    before = await standing(make, user)
    for name, body in REFUSED.items():
        quoted = refusal(await make.api.post(QUOTE, json=body, headers=user.headers))
        submitted = refusal(await make.api.post(SUBMIT, json=body, headers=user.headers))
        assert quoted == submitted, name
        assert quoted[0] == 400, name
    assert await standing(make, user) == before
    field = refusal(await make.api.post(QUOTE, json=REFUSED["a private film"], headers=user.headers))[2]
    assert field.startswith("参数错误: params.videoUrls[1] ")


async def test_a_quote_needs_no_points_and_deducts_none(make: Maker) -> None:
    poor = await make.user()
    payload = data(await make.api.post(QUOTE, json=requested("sc_video_text_standard"), headers=poor.key_headers))
    assert (payload["pointsCost"], payload["balance"]) == (400, 0)
    assert (await make.api.post(QUOTE, json=requested(TEXT_MODEL))).status_code == 401


async def test_rules_of_every_kind_are_quoted_and_charged(make: Maker, runtime: Runtime) -> None:
    rules = [
        {"param": "resolution", "points": {"1K": 10, "2K": 25}},
        {"param": "references", "each": 3},
        {"param": "outputFormat", "times": {"jpg": 1, "jpeg": 1, "png": "1.5"}},
    ]
    await set_model(runtime.database, IMAGE_MODEL, {"price_rules": rules})
    user = await make.user(points=100)
    body = requested(IMAGE_MODEL, A, B, resolution="2K", outputFormat="png")
    assert data(await make.api.post(QUOTE, json=body, headers=user.headers))["pointsCost"] == 47  # 31 × 1.5 = 46.5
    stored = data(await make.api.post(SUBMIT, json=body, headers=user.headers))
    assert (stored["pointsCost"], stored["balance"]) == (47, 53)
    shown = data(await make.api.get("/user/ai/models", headers=user.headers))
    model = next(model for model in shown if model["modelName"] == IMAGE_MODEL)
    assert (model["pointsCost"], model["priceRules"]) == (13, rules)


async def test_images_are_counted_in_every_field(make: Maker, runtime: Runtime) -> None:
    rules = [{"param": "references", "each": 50}]
    await set_model(runtime.database, "sc_video_img2video_fast", {"points_cost": 100, "price_rules": rules})
    user = await make.user()
    for body, points in (
        (requested("sc_video_img2video_fast", A), 150),
        (requested("sc_video_img2video_fast", A, lastFrameUrl=B), 200),
        (requested("sc_video_img2video_fast", A, imageRole="reference", faceImageUrl=B), 200),
        (requested("sc_video_img2video_fast", faceImageUrl=B), 150),
        (requested("sc_video_img2video_fast", A, B, imageRole="reference"), 200),
    ):
        assert data(await make.api.post(QUOTE, json=body, headers=user.headers))["pointsCost"] == points


@pytest.mark.parametrize(
    ("column", "text"),
    [
        ("price_rules", '{"a":1}'),
        ("price_rules", '["x"]'),
        ("price_rules", '[{"param":"resolution"}]'),
        ("price_rules", "7"),
        ("task_type", "other"),
        ("params", "[]"),
        ("defaults", "7"),
    ],
)
async def test_an_invalid_row_hides_only_its_own_model(make: Maker, runtime: Runtime, column: str, text: str) -> None:
    row = f"UPDATE points_config SET {column} = :text WHERE model_name = :model"
    await execute(runtime, row, text=text, model=TEXT_MODEL)
    user = await make.user(points=100)
    shown = [model["modelName"] for model in data(await make.api.get("/user/ai/models", headers=user.headers))]
    assert TEXT_MODEL not in shown
    assert IMAGE_MODEL in shown
    answer = await make.api.post(SUBMIT, json=requested(TEXT_MODEL), headers=user.headers)
    assert answer.status_code >= 400
    assert await make.balance(user) == (100, 0)


async def test_an_invalid_body_is_reported_by_its_field(make: Maker) -> None:
    user = await make.user()
    headers = user.headers | {"content-type": "application/json"}
    for content in (b"", b"{", b"[]", b'"x"', json.dumps({"prompt": "猫"}).encode(), b'{"modelName": 5}'):
        assert refusal(await make.api.post(QUOTE, content=content, headers=headers))[0] == 400
