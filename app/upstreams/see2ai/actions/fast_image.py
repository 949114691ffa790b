"""`see2ai_image_generation_fast_v1`: fast images from text and up to 14 reference images.

SEE2AI has no `auto` ratio. For text it becomes 1:1 at submit. With references it stays `auto` in the stored request
until the worker has read the size of the first reference (`SIZE_RULE`).
"""

from math import log
from typing import Annotated, Any, Literal

from pydantic import Field

from app.upstreams.action import (
    IMAGE_URL,
    Action,
    ActionInput,
    CallerParams,
    Size,
    SizeRule,
    UpstreamRequest,
    as_urls,
    require_reference_images,
)

AUTO = "auto"
SQUARE = "1:1"
MAX_PROMPT_LENGTH = 20_000
MAX_REFERENCES = 14
MAX_RESULTS = 16

Ratio = Literal["1:1", "1:4", "1:8", "2:3", "3:2", "3:4", "4:1", "4:3", "4:5", "5:4", "8:1", "9:16", "16:9", "21:9"]
RequestedRatio = Literal[
    "auto",
    "1:1",
    "1:4",
    "1:8",
    "2:3",
    "3:2",
    "3:4",
    "4:1",
    "4:3",
    "4:5",
    "5:4",
    "8:1",
    "9:16",
    "16:9",
    "21:9",
]
RATIOS: tuple[str, ...] = Ratio.__args__  # type: ignore[attr-defined]


class FastImageParams(CallerParams):
    """Settings of a fast image, as a caller writes them."""

    aspect_ratio: Annotated[RequestedRatio, Field(description="宽高比；auto 为自动")] = "auto"
    resolution: Annotated[Literal["1K", "2K"], Field(description="输出分辨率")] = "1K"
    output_format: Annotated[Literal["jpg", "jpeg", "png"], Field(description="输出图片格式")] = "jpg"


class FastImageRequest(UpstreamRequest):
    """The Input Schema `ImageGenerationInput`. `image_input` is sent also when empty."""

    prompt: Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_LENGTH)]
    image_input: Annotated[list[str], Field(max_length=MAX_REFERENCES)]
    aspect_ratio: Ratio
    resolution: Literal["1K", "2K"]
    output_format: Literal["jpg", "jpeg", "png"]


def build(action_input: ActionInput) -> dict[str, Any]:
    """The body for SEE2AI; `aspect_ratio` may still be `auto` where references decide it."""
    require_reference_images(action_input)
    params = action_input.params
    assert isinstance(params, FastImageParams)  # noqa: S101 (for the type checker: the registry pairs them)
    is_auto = params.aspect_ratio == AUTO
    request = FastImageRequest(
        prompt=action_input.prompt,
        image_input=list(action_input.references),
        aspect_ratio=SQUARE if is_auto else params.aspect_ratio,  # type: ignore[arg-type]
        resolution=params.resolution,
        output_format=params.output_format,
    ).model_dump()
    if is_auto and action_input.references:
        request["aspect_ratio"] = AUTO
    return request


def read_urls(body: dict[str, Any]) -> tuple[str, ...]:
    return as_urls(body.get("result_urls"))[:MAX_RESULTS]


def resolve_ratio(size: Size | None) -> str:
    """The nearest allowed ratio; 1:1 for an unknown size. By logarithms 2:1 and 1:2 are equally far from 1:1."""
    if size is None or min(size) <= 0:
        return SQUARE
    wanted = log(size[0] / size[1])
    return min(RATIOS, key=lambda ratio: abs(wanted - _log_of(ratio)))


def _log_of(ratio: str) -> float:
    width, height = ratio.split(":")
    return log(int(width) / int(height))


SIZE_RULE = SizeRule(
    is_needed=lambda request: request["aspect_ratio"] == AUTO,
    apply=lambda request, size: request | {"aspect_ratio": resolve_ratio(size)},
    reference_field="image_input",
)

FAST_IMAGE = Action(
    name="see2ai_image_generation_fast_v1",
    params={"text_to_image": FastImageParams, "image_to_image": FastImageParams},
    submit_path="/api/v1/actions/see2ai_image_generation_fast_v1/async",
    status_path="/api/v1/actions/see2ai_image_generation_fast_v1/status/{task_id}",
    build=build,
    read_urls=read_urls,
    media="image",
    typical_seconds=60,
    max_references=MAX_REFERENCES,
    max_prompt_length=MAX_PROMPT_LENGTH,
    image_url_fields=("image_input",),
    size_rule=SIZE_RULE,
    normalize_profile="image_generation_reference",
    caller_field_names={"prompt": "prompt", "image_input": IMAGE_URL},
)
