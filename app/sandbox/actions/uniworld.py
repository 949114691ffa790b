"""The UniWorld action: always asynchronous, states in lower case, progress as a list, one image in `image_url`."""

from typing import Annotated, Any

from pydantic import BaseModel, Field, StringConstraints

from app.sandbox.action_names import UNIWORLD
from app.sandbox.actions.action import Action, JobSnapshot, JobSpec, SubmitRequest
from app.sandbox.jobs.job import StateNames
from app.sandbox.media.images import ImageSpec
from app.sandbox.parsing import validate

COST_POINTS = 50_000
DEFAULT_SIDE, MAX_SIDE = 1024, 4096
STEPS = (
    (0, "plan", "Planning the scene"),
    (20, "layout", "Laying out the canvas"),
    (40, "diffusion", "Painting"),
    (75, "harmonize", "Harmonizing"),
    (95, "upload", "Storing the picture"),
)
"""The percentage at which each step begins, its name and its message."""

Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Style = Annotated[str, StringConstraints(max_length=255)]


class UniworldInput(BaseModel):
    """SEE2AI's published input; a blank prompt and a canvas without area or beyond the sandbox's limit are refused."""

    prompt: Annotated[str, StringConstraints(max_length=5_000, pattern=r"\S")]
    canvas_w: Side | None = None
    canvas_h: Side | None = None
    style: Style | None = None
    stylize: Style | None = None
    skip_diffusion: bool = False
    skip_harmonize: bool = False
    max_review_rounds: Annotated[int, Field(ge=0)] = 0
    hierarchical: bool = False


class Uniworld(Action):
    """Answers at once; a rule's `image_field` moves the image to another field."""

    name = UNIWORLD
    model = "see2ai-uniworld-2.5"
    state_names = StateNames("running", "running", "done")
    state_field = "status"
    has_image_fields = True
    has_result_list = False

    async def read(self, submit: SubmitRequest) -> JobSpec:
        fields = validate(UniworldInput, submit.parsed)
        size = (fields.canvas_w or DEFAULT_SIDE, fields.canvas_h or DEFAULT_SIDE)
        style = f" · {fields.style}" if fields.style else ""
        return JobSpec(fields.prompt, ImageSpec("", "", f"{size[0]} × {size[1]}{style}", size, "jpg"), COST_POINTS)

    def result(self, snapshot: JobSnapshot) -> dict[str, Any]:
        image_field = snapshot.job.scenario.image_field or "image_url"
        url = snapshot.urls[0] if snapshot.urls else None
        percent = snapshot.status.progress
        return {
            "image_url": url if image_field == "image_url" else None,
            "result": {image_field: url} if url and image_field != "image_url" else None,
            "progress": [
                {"step": step, "message": message, "percent": min(percent, until)}
                for (begins, step, message), until in zip(
                    STEPS, [begin for begin, *_ in STEPS[1:]] + [100], strict=True
                )
                if percent >= begins
            ],
        }
