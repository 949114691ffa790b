"""`see2ai_image_uniworld_v2`: elaborate images from text on a canvas of a given size. It takes no references."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from app.errors import InvalidParameter
from app.upstreams.action import (
    Action,
    ActionInput,
    CallerParams,
    UpstreamRequest,
    as_urls,
    require_reference_images,
)

MAX_PROMPT_LENGTH = 5000
MAX_STYLE_LENGTH = 255
MAX_PIXELS = 64_000_000  # the gateway could not rehost a larger result

Edge = Annotated[int, Field(ge=1, le=16_384, description="画布边长（像素）")]
Style = Annotated[str, Field(max_length=MAX_STYLE_LENGTH)]


class UniworldParams(CallerParams):
    """Params of a UniWorld image, as a caller writes them. Models usually fix the canvas."""

    canvas_w: Edge | None = None
    canvas_h: Edge | None = None
    style: Annotated[Style | None, Field(description="风格提示词")] = None
    stylize: Annotated[Style | None, Field(description="风格化提示词")] = None
    skip_diffusion: Annotated[bool, Field(description="跳过精修阶段")] = False
    skip_harmonize: Annotated[bool, Field(description="跳过整体协调阶段")] = False
    max_review_rounds: Annotated[int, Field(ge=0, le=100, description="最多审查轮数")] = 0
    hierarchical: Annotated[bool, Field(description="启用分层规划")] = False


class UniworldRequest(UpstreamRequest):
    """The Input Schema `ImageUniworldV2Input`. Both canvas sides or none."""

    prompt: Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_LENGTH)]
    canvas_w: Edge | None
    canvas_h: Edge | None
    style: Style | None
    stylize: Style | None
    skip_diffusion: bool
    skip_harmonize: bool
    max_review_rounds: Annotated[int, Field(ge=0)]
    hierarchical: bool

    @model_validator(mode="after")
    def has_both_sides(self) -> "UniworldRequest":
        if (self.canvas_w is None) != (self.canvas_h is None):
            missing = "params.canvasW" if self.canvas_w is None else "params.canvasH"
            raise InvalidParameter(missing, "画布宽高须同时设置")
        if (self.canvas_w or 0) * (self.canvas_h or 0) > MAX_PIXELS:
            raise InvalidParameter("params.canvasW", f"画布最多 {MAX_PIXELS // 10**6} 百万像素")
        return self


def build(action_input: ActionInput) -> dict[str, Any]:
    require_reference_images(action_input)
    request = UniworldRequest(prompt=action_input.prompt, **action_input.params.model_dump())
    return request.model_dump(exclude_none=True)


def read_urls(body: dict[str, Any]) -> tuple[str, ...]:
    """`image_url`; else `result.final_url`; else `result.provider_final_url`."""
    result = body.get("result")
    nested = result if isinstance(result, dict) else {}
    for place in (body.get("image_url"), nested.get("final_url"), nested.get("provider_final_url")):
        if urls := as_urls(place):
            return urls[:1]
    return ()


UNIWORLD = Action(
    name="see2ai_image_uniworld_v2",
    params={"text_to_image": UniworldParams},
    submit_path="/api/v1/actions/see2ai_image_uniworld_v2",
    status_path="/api/v1/actions/see2ai_image_uniworld_v2/status/{task_id}",
    build=build,
    read_urls=read_urls,
    media="image",
    typical_seconds=120,
    max_references=0,
    max_prompt_length=MAX_PROMPT_LENGTH,
    caller_field_names={"prompt": "prompt"},
)
