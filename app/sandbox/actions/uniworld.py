"""The UniWorld action: always asynchronous, words in small letters, progress as a list, one picture in `image_url`."""

from typing import Annotated, Any

from pydantic import BaseModel, Field, StringConstraints

from app.sandbox.actions.action import Action, Arrival, Moment, Order
from app.sandbox.bodies import validate
from app.sandbox.jobs import Words
from app.sandbox.names import UNIWORLD
from app.sandbox.pictures import Picture

COST_POINTS = 50_000
DEFAULT_SIDE, LONGEST_SIDE = 1024, 4096
STEPS = (
    (0, "plan", "Planning the scene"),
    (20, "layout", "Laying out the canvas"),
    (40, "diffusion", "Painting"),
    (75, "harmonize", "Harmonizing"),
    (95, "upload", "Storing the picture"),
)
"""From which percentage on each step is under way, its name and its message."""

Side = Annotated[int, Field(ge=1, le=LONGEST_SIDE)]
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
    """Answers at once; a marker's `place` moves the picture to another field."""

    name = UNIWORLD
    model = "see2ai-uniworld-2.5"
    words = Words("running", "running", "done")
    field = "status"
    knows_places = True
    knows_images = False

    async def read(self, arrival: Arrival) -> Order:
        wanted = validate(UniworldInput, arrival.parsed)
        size = (wanted.canvas_w or DEFAULT_SIDE, wanted.canvas_h or DEFAULT_SIDE)
        style = f" · {wanted.style}" if wanted.style else ""
        picture = Picture("", "", f"{size[0]} × {size[1]}{style}", size, "jpg")
        return Order(wanted.prompt, picture, COST_POINTS)

    def result(self, moment: Moment) -> dict[str, Any]:
        place, url = moment.job.plan.place or "image_url", moment.urls[0] if moment.urls else None
        percent = moment.look.progress
        return {
            "image_url": url if place == "image_url" else None,
            "result": {place: url} if url and place != "image_url" else None,
            "progress": [
                {"step": step, "message": message, "percent": min(percent, until)}
                for (begins, step, message), until in zip(
                    STEPS, [begin for begin, *_ in STEPS[1:]] + [100], strict=True
                )
                if percent >= begins
            ],
        }
