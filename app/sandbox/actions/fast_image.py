"""The fast-image action: its published input, and what SEE2AI refuses beyond it (a blank prompt, `auto`, webp)."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints

from app.sandbox.actions.action import Action, Arrival, Moment, Order
from app.sandbox.bodies import validate
from app.sandbox.jobs import Words
from app.sandbox.names import FAST_IMAGE
from app.sandbox.pictures import Picture, measure

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
    words = Words("pending", "running", "success", shouts=True)
    has_async_path = True

    async def read(self, arrival: Arrival) -> Order:
        wanted = validate(FastImageInput, arrival.parsed)
        output_format = wanted.output_format or "jpg"
        references = f" · {len(wanted.image_input)} ref" if wanted.image_input else ""
        label = f"{wanted.aspect_ratio} · {wanted.resolution} · {output_format}{references}"
        size = measure(wanted.aspect_ratio, wanted.resolution)
        picture = Picture("", "", label, size, output_format)
        return Order(wanted.prompt, picture, COST_POINTS[wanted.resolution], blocks=True)

    def result(self, moment: Moment) -> dict[str, Any]:
        return {"result_urls": moment.urls, "progress": moment.look.progress}
