"""The fast-image action: its published input, and what SEE2AI refuses beyond it (a blank prompt, `auto`, webp)."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints

from app.sandbox.action_names import FAST_IMAGE
from app.sandbox.actions.action import Action, JobSnapshot, JobSpec, SubmitRequest
from app.sandbox.jobs.job import StateNames
from app.sandbox.media.images import ImageSpec, image_size
from app.sandbox.parsing import validate

COST_POINTS = {"1K": 25_000, "2K": 40_000}
"""The sandbox's own prices in platform tokens; SEE2AI only says that they depend on the resolution."""

AspectRatio = Literal[
    "1:1", "1:4", "1:8", "2:3", "3:2", "3:4", "4:1", "4:3", "4:5", "5:4", "8:1", "9:16", "16:9", "21:9"
]


class FastImageInput(BaseModel):
    """SEE2AI's published input, and narrower where SEE2AI is."""

    prompt: Annotated[str, StringConstraints(max_length=20_000, pattern=r"\S")]
    image_input: Annotated[list[str], Field(max_length=14)] | None = None
    aspect_ratio: AspectRatio
    resolution: Literal["1K", "2K"] = "1K"
    output_format: Literal["jpg", "jpeg", "png"] | None = "jpg"


class FastImage(Action):
    """Blocks at the plain path, answers at once at `/async`."""

    name = FAST_IMAGE
    model = "see2ai-image-fast"
    state_names = StateNames("pending", "running", "success", uppercase=True)
    has_async_path = True

    async def read(self, submit: SubmitRequest) -> JobSpec:
        fields = validate(FastImageInput, submit.parsed)
        output_format = fields.output_format or "jpg"
        references = f" · {len(fields.image_input)} ref" if fields.image_input else ""
        label = f"{fields.aspect_ratio} · {fields.resolution} · {output_format}{references}"
        image = ImageSpec("", "", label, image_size(fields.aspect_ratio, fields.resolution), output_format)
        return JobSpec(fields.prompt, image, COST_POINTS[fields.resolution], blocks=True)

    def result(self, snapshot: JobSnapshot) -> dict[str, Any]:
        return {"result_urls": snapshot.urls, "progress": snapshot.status.progress}
