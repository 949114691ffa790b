"""The normalize action: a smaller JPEG of a picture of ours; for a stranger's, never fetched, a drawn one stands in."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

import anyio
import anyio.to_thread
import pillow_heif
from fastapi import Request
from PIL import Image, ImageOps
from pydantic import BaseModel

from app.sandbox.actions.action import Action, Arrival, Moment, Order
from app.sandbox.bodies import InputError, validate
from app.sandbox.desk import get_desk, get_origin
from app.sandbox.jobs import Words
from app.sandbox.names import NORMALIZE
from app.sandbox.pictures import Picture, draw
from app.sandbox.refusals import fault
from app.sandbox.results import read_own_result
from app.sandbox.works import Stored

COST_POINTS = 500
YEAR_SECONDS = 365 * 86_400.0
QUALITY = 85
LONGEST_SIDES = {
    "face_detection": 1024,
    "vlm": 1536,
    "video_reference": 1920,
    "storage_canonical": 4096,
    "video_seedance_reference": 1920,
    "video_kling_reference": 1920,
    "image_generation_reference": 2048,
}
"""The sandbox's own limits; SEE2AI does not publish any."""
NOT_FETCHED = "The sandbox fetches no foreign URL: a drawn picture stands in for it."


class NormalizeInput(BaseModel):
    """SEE2AI's published input."""

    image_url: str
    profile: Literal[
        "face_detection",
        "vlm",
        "video_reference",
        "storage_canonical",
        "video_seedance_reference",
        "video_kling_reference",
        "image_generation_reference",
    ] = "face_detection"


@dataclass(frozen=True, slots=True)
class _Normalized:
    jpeg: bytes
    size: tuple[int, int]
    original_size: tuple[int, int]


class Normalize(Action):
    """Blocks for a moment. Its markers stand in the query of `image_url`: `?sandbox=submit%20503%20once`."""

    name = NORMALIZE
    model = "see2ai-image-normalize"
    words = Words("running", "running", "success")
    usual_seconds = (0.2, 0.5)
    urls_live_seconds = YEAR_SECONDS
    marker_field = "image_url"
    has_status_path = False
    knows_images = False

    async def read(self, arrival: Arrival) -> Order:
        wanted = validate(NormalizeInput, arrival.parsed)
        url, side = wanted.image_url, LONGEST_SIDES[wanted.profile]
        markers = "".join(f" [[sandbox: {inside}]]" for inside in _markers_in(url))
        desk = get_desk(arrival.request)
        source = await _read_own(arrival.request, url)
        if source is None:
            size = (side, side * 3 // 4)
            picture = Picture(url, url, f"{wanted.profile} · {NOT_FETCHED}", size, "jpg")
            jpeg = await anyio.to_thread.run_sync(draw, picture, limiter=desk.pens)
            original: dict[str, Any] = {"warnings": [NOT_FETCHED]}
        else:
            made = await anyio.to_thread.run_sync(_shrink, source, side, limiter=desk.pens)
            jpeg, size, (width, height) = made.jpeg, made.size, made.original_size
            original = {"original_bytes": len(source), "original_width": width, "original_height": height}
        path = await anyio.to_thread.run_sync(desk.shelf.put, io.BytesIO(jpeg), ".jpg")
        facts = {
            "original_url": url,
            "profile": wanted.profile,
            "original_bytes": None,
            "original_width": None,
            "original_height": None,
            "normalized_bytes": len(jpeg),
            "normalized_width": size[0],
            "normalized_height": size[1],
            "method": "pillow",
            **original,
        }
        work = Stored(path, size, "", "", wanted.profile)
        return Order(url + markers, work, COST_POINTS, blocks=True, facts=facts)

    def result(self, moment: Moment) -> dict[str, Any]:
        return {"normalized_url": moment.urls[0] if moment.urls else None}

    def answer(self, moment: Moment) -> dict[str, Any]:
        """The result and nothing of a job: there is no task to ask about."""
        return {**self.envelope(moment.job, moment.look), **self.result(moment), **moment.job.facts}


def _markers_in(url: str) -> list[str]:
    """The `sandbox` parameters of the URL. Raises InputError where it is none of http or https."""
    try:
        parts = urlsplit(url)
        if parts.scheme in {"http", "https"} and parts.hostname:
            return parse_qs(parts.query).get("sandbox", [])
    except ValueError:
        pass
    raise _objection("URL is unsafe")


async def _read_own(request: Request, url: str) -> bytes | None:
    """The file behind a URL of this sandbox; None for a stranger's. Raises InputError where ours gives nothing."""
    parts, desk = urlsplit(url), get_desk(request)
    if f"{parts.scheme}://{parts.netloc}" not in {get_origin(request), str(request.base_url).rstrip("/")}:
        return None
    if parts.path.startswith("/results/"):
        content = await read_own_result(desk, url)
    else:
        path = desk.shelf.find(parts.path.rpartition("/")[2])
        content = await anyio.to_thread.run_sync(Path.read_bytes, path) if path else None
    if content is None:
        raise _objection("Image download failed", 500)
    return content


def _shrink(source: bytes, side: int) -> _Normalized:
    """The picture upright, in RGB, no longer than `side`, as JPEG. Raises InputError for what is no picture."""
    try:
        with _open(source) as opened:
            picture = ImageOps.exif_transpose(opened)
            original_size = picture.size
            picture.thumbnail((side, side))
            picture = picture.convert("RGBA")
            flat = Image.new("RGB", picture.size, "white")
            flat.paste(picture, mask=picture.getchannel("A"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise _objection("Image is unsupported or cannot be normalized within provider limits") from None
    file = io.BytesIO()
    flat.save(file, "JPEG", quality=QUALITY)
    return _Normalized(file.getvalue(), flat.size, original_size)


def _open(source: bytes) -> Image.Image:
    """Pillow's picture. HEIC is opened by hand: a registered opener would change Pillow for the whole process."""
    if pillow_heif.is_supported(io.BytesIO(source)):
        return pillow_heif.open_heif(io.BytesIO(source)).to_pillow()
    return Image.open(io.BytesIO(source))


def _objection(reason: str, code: int = 422) -> InputError:
    return InputError([fault("value_error", ["body", "image_url"], reason)], code)
