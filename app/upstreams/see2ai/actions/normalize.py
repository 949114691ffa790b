"""`see2ai_image_normalize_v1`: one picture made fit for a purpose. It answers at once and has nothing to poll."""

from typing import Annotated, Any, Literal

from pydantic import Field

from app.upstreams.action import (
    IMAGE_URL,
    Action,
    ActionInput,
    CallerParams,
    UpstreamRequest,
    as_urls,
    require_reference_images,
)

Profile = Literal[
    "face_detection",
    "vlm",
    "video_reference",
    "storage_canonical",
    "video_seedance_reference",
    "video_kling_reference",
    "image_generation_reference",
]
MAX_NOTE_LENGTH = 1000


class NormalizeParams(CallerParams):
    """The use for which the image is normalized."""

    profile: Annotated[Profile, Field(description="标准化用途")] = "face_detection"


class NormalizeRequest(UpstreamRequest):
    """The Input Schema `ImageNormalizeInput`."""

    image_url: Annotated[str, Field(min_length=1)]
    profile: Profile


def build(action_input: ActionInput) -> dict[str, Any]:
    """A prompt is only the caller's note: SEE2AI has no field for it."""
    require_reference_images(action_input)
    return NormalizeRequest(image_url=action_input.references[0], **action_input.params.model_dump()).model_dump()


def read_urls(body: dict[str, Any]) -> tuple[str, ...]:
    return as_urls(body.get("normalized_url"))[:1]


NORMALIZE = Action(
    name="see2ai_image_normalize_v1",
    params={"image_normalize": NormalizeParams},
    submit_path="/api/v1/actions/see2ai_image_normalize_v1",
    status_path=None,
    build=build,
    read_urls=read_urls,
    media="image",
    typical_seconds=5,
    max_references=1,
    max_prompt_length=MAX_NOTE_LENGTH,
    needs_prompt=False,
    image_url_fields=("image_url",),
    caller_field_names={"image_url": IMAGE_URL},
)
