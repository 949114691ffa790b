"""The normalize action: a smaller JPEG of an image of the sandbox. Other URLs are not fetched but get a drawn image."""

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

from app.sandbox.action_names import NORMALIZE
from app.sandbox.actions.action import Action, JobSnapshot, JobSpec, SubmitRequest
from app.sandbox.error_responses import field_error
from app.sandbox.jobs.job import StateNames
from app.sandbox.jobs.result_urls import ResultUnavailable, get_result
from app.sandbox.media.images import ImageSpec, draw_image
from app.sandbox.media.render import StoredImage, render
from app.sandbox.parsing import InputError, validate
from app.sandbox.state import SandboxState, get_origin, get_state

COST_POINTS = 500
YEAR_SECONDS = 365 * 86_400.0
JPEG_QUALITY = 85
MAX_SIDES = {
    "face_detection": 1024,
    "vlm": 1536,
    "video_reference": 1920,
    "storage_canonical": 4096,
    "video_seedance_reference": 1920,
    "video_kling_reference": 1920,
    "image_generation_reference": 2048,
}
"""The longer side of each profile. The sandbox's own limits; SEE2AI does not publish any."""
NOT_FETCHED = "The sandbox fetches no foreign URL: this is a drawn image."


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
    """Blocks for a moment. It has no prompt: the query parameter `sandbox` of `image_url` holds the rules."""

    name = NORMALIZE
    model = "see2ai-image-normalize"
    state_names = StateNames("running", "running", "success")
    typical_seconds = (0.2, 0.5)
    url_lifetime_seconds = YEAR_SECONDS
    directive_field = "image_url"
    has_status_path = False
    has_result_list = False

    async def read(self, submit: SubmitRequest) -> JobSpec:
        fields = validate(NormalizeInput, submit.parsed)
        url, max_side = fields.image_url, MAX_SIDES[fields.profile]
        directives = "".join(f" [[sandbox: {rules}]]" for rules in _rules_in(url))
        state = get_state(submit.request)
        content = await _read_own(submit.request, url)
        if content is None:
            size = (max_side, max_side * 3 // 4)
            image = ImageSpec(url, url, f"{fields.profile} · {NOT_FETCHED}", size, "jpg")
            jpeg = await anyio.to_thread.run_sync(draw_image, image, limiter=state.draw_limiter)
            original: dict[str, Any] = {"warnings": [NOT_FETCHED]}
        else:
            normalized = await anyio.to_thread.run_sync(_normalize, content, max_side, limiter=state.draw_limiter)
            jpeg, size, (width, height) = normalized.jpeg, normalized.size, normalized.original_size
            original = {"original_bytes": len(content), "original_width": width, "original_height": height}
        path = await anyio.to_thread.run_sync(state.file_store.put, io.BytesIO(jpeg), ".jpg")
        extra_fields = {
            "original_url": url,
            "profile": fields.profile,
            "original_bytes": None,
            "original_width": None,
            "original_height": None,
            "normalized_bytes": len(jpeg),
            "normalized_width": size[0],
            "normalized_height": size[1],
            "method": "pillow",
            **original,
        }
        media = StoredImage(path, size, "", "", fields.profile)
        return JobSpec(url + directives, media, COST_POINTS, blocks=True, extra_fields=extra_fields)

    def result(self, snapshot: JobSnapshot) -> dict[str, Any]:
        return {"normalized_url": snapshot.urls[0] if snapshot.urls else None}

    def answer(self, snapshot: JobSnapshot) -> dict[str, Any]:
        """The result and no field of a job, because there is no task to poll."""
        common_fields = self.common_fields(snapshot.job, snapshot.status)
        return {**common_fields, **self.result(snapshot), **snapshot.job.extra_fields}


def _rules_in(url: str) -> list[str]:
    """The `sandbox` parameters of the URL. Raises InputError where it is neither http nor https."""
    try:
        parts = urlsplit(url)
        if parts.scheme in {"http", "https"} and parts.hostname:
            return parse_qs(parts.query).get("sandbox", [])
    except ValueError:
        pass
    raise _image_error("URL is unsafe")


async def _read_own(request: Request, url: str) -> bytes | None:
    """The file behind a URL of this sandbox; None for any other URL. Raises InputError where there is no such file."""
    parts, state = urlsplit(url), get_state(request)
    if f"{parts.scheme}://{parts.netloc}" not in {get_origin(request), str(request.base_url).rstrip("/")}:
        return None
    if parts.path.startswith("/results/"):
        content = await _read_result(state, url)
    else:
        path = state.file_store.find(parts.path.rpartition("/")[2])
        content = await anyio.to_thread.run_sync(Path.read_bytes, path) if path else None
    if content is None:
        raise _image_error("Image download failed", 500)
    return content


async def _read_result(state: SandboxState, url: str) -> bytes | None:
    """The result behind this URL, without any fault; None where there is none."""
    parts = urlsplit(url)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    name, expires, signature = parts.path.rpartition("/")[2], query.get("expires", ""), query.get("signature", "")
    try:
        job, index = get_result(state.jobs, state.signing_secret, name, expires, signature)
        return await anyio.to_thread.run_sync(render, job.media, index, limiter=state.draw_limiter)
    except (ResultUnavailable, FileNotFoundError):
        return None


def _normalize(content: bytes, max_side: int) -> _Normalized:
    """The image upright, in RGB, no longer than `max_side`, as JPEG. Raises InputError where it is no image."""
    try:
        with _open_image(content) as opened:
            image = ImageOps.exif_transpose(opened)
            original_size = image.size
            image.thumbnail((max_side, max_side))
            image = image.convert("RGBA")
            opaque = Image.new("RGB", image.size, "white")
            opaque.paste(image, mask=image.getchannel("A"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise _image_error("Image is unsupported or cannot be normalized within provider limits") from None
    file = io.BytesIO()
    opaque.save(file, "JPEG", quality=JPEG_QUALITY)
    return _Normalized(file.getvalue(), opaque.size, original_size)


def _open_image(content: bytes) -> Image.Image:
    """Pillow's image. HEIC is opened directly: a registered opener would change Pillow for the whole process."""
    if pillow_heif.is_supported(io.BytesIO(content)):
        return pillow_heif.open_heif(io.BytesIO(content)).to_pillow()
    return Image.open(io.BytesIO(content))


def _image_error(reason: str, code: int = 422) -> InputError:
    return InputError([field_error("value_error", ["body", "image_url"], reason)], code)
