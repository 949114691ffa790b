"""The video action's input in its two forms, with its fields and rules. It finds errors and refuses nothing."""

from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel

from app.sandbox.error_responses import field_error

VideoFields = Literal["seed", "2026-04"]
MIN_SECONDS, MAX_SECONDS, ANY_DURATION = 4, 15, -1
MAX_IMAGES, MAX_VIDEOS, MAX_AUDIOS, MAX_REFERENCES = 9, 3, 3, 12

Errors = list[dict[str, Any]]
AspectRatio = Literal["adaptive", "16:9", "9:16", "1:1", "21:9", "4:3", "3:4"]


class VideoInput(BaseModel):
    """What both forms have in common."""

    model_name: str = "doubao-seedance-2-0-260128"
    prompt: str | None = None
    video_url: str | None = None
    video_urls: list[str] | None = None
    audio_url: str | None = None
    audio_urls: list[str] | None = None
    first_frame_url: str | None = None
    last_frame_url: str | None = None
    duration: int | None = 5
    resolution: str | None = "720p"
    aspect_ratio: AspectRatio | None = "adaptive"
    watermark: bool | None = False
    generate_audio: bool | None = True
    enable_web_search: bool | None = False
    force_asset_upload: bool | None = False
    sync: bool = True

    @property
    def images(self) -> list[str]:
        """The reference images; first and last frame are not among them."""
        return []

    @property
    def videos(self) -> list[str]:
        return _all(self.video_url, self.video_urls)

    @property
    def audios(self) -> list[str]:
        return _all(self.audio_url, self.audio_urls)

    @property
    def frames(self) -> list[str]:
        return _all(self.first_frame_url, None) + _all(self.last_frame_url, None)


class SeedInput(VideoInput):
    """The form of the published schema: images with and without a real face have fields of their own."""

    model_name: Literal["doubao-seedance-2-0-260128", "doubao-seedance-2-0-fast-260128"] = "doubao-seedance-2-0-260128"
    resolution: Literal["480p", "720p"] | None = "720p"
    non_face_image_url: str | None = None
    non_face_image_urls: list[str] | None = None
    face_image_url: str | None = None

    @property
    def images(self) -> list[str]:
        return _all(self.face_image_url, None) + _all(self.non_face_image_url, self.non_face_image_urls)


class LaterInput(VideoInput):
    """The form since April 2026: one kind of reference image, hints about faces, 1080p, two model names more."""

    model_name: Literal[
        "doubao-seedance-2-0-260128", "doubao-seedance-2-0-fast-260128", "see2ai-video-v2", "see2ai-video-v2-fast"
    ] = "doubao-seedance-2-0-260128"
    resolution: Literal["480p", "720p", "1080p"] | None = "720p"
    reference_image_url: str | None = None
    reference_image_urls: list[str] | None = None
    first_frame_contains_real_face: bool | None = None
    last_frame_contains_real_face: bool | None = None
    reference_image_contains_real_face: bool | None = None

    @property
    def images(self) -> list[str]:
        return _all(self.reference_image_url, self.reference_image_urls)


FORMS: dict[VideoFields, type[VideoInput]] = {"seed": SeedInput, "2026-04": LaterInput}


def find_fields_of_other_form(form: VideoFields, parsed: Any) -> Errors:
    """The fields that only the other form has. An empty or null field counts, too: SEE2AI knows no such field."""
    if not isinstance(parsed, dict):
        return []
    known = FORMS[form].model_fields
    others = {name for model in FORMS.values() for name in model.model_fields} - set(known)
    return [
        field_error("extra_forbidden", ["body", name], f"{name} is not accepted in this version of the action")
        for name in parsed
        if name in others
    ]


def find_rule_errors(fields: VideoInput) -> Errors:
    """Every rule that the input breaks beyond its schema, always in the same order."""
    images, videos, audios, frames = fields.images, fields.videos, fields.audios, fields.frames
    seconds = 5 if fields.duration is None else fields.duration
    rules = (
        ("prompt", not (fields.prompt or "").strip() and not images + videos + frames, "prompt is missing"),
        (
            "duration",
            seconds != ANY_DURATION and not MIN_SECONDS <= seconds <= MAX_SECONDS,
            "duration must be 4 to 15 seconds, or -1",
        ),
        (
            "last_frame_url",
            bool(fields.last_frame_url and not fields.first_frame_url),
            "last frame needs a first frame",
        ),
        (
            "first_frame_url",
            bool(frames and images + videos + audios),
            "first and last frame exclude reference images, videos and audios",
        ),
        ("audio_url", bool(audios and not images + videos), "audio needs a reference image or video"),
        ("images", len(images) > MAX_IMAGES, f"at most {MAX_IMAGES} reference images"),
        ("video_urls", len(videos) > MAX_VIDEOS, f"at most {MAX_VIDEOS} reference videos"),
        ("audio_urls", len(audios) > MAX_AUDIOS, f"at most {MAX_AUDIOS} reference audios"),
        ("references", len(images + videos + audios) > MAX_REFERENCES, f"at most {MAX_REFERENCES} references in all"),
    )
    errors = [field_error("value_error", ["body", field], message) for field, is_broken, message in rules if is_broken]
    unsafe = [url for url in images + videos + audios + frames if not _is_web_url(url)]
    return errors + [field_error("value_error", ["body", "url"], f"not an http(s) URL: {url[:80]!r}") for url in unsafe]


def _all(single: str | None, several: list[str] | None) -> list[str]:
    return ([single] if single is not None else []) + (several or [])


def _is_web_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and bool(parts.hostname)
