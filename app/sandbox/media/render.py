"""What a job produces, as bytes: a drawn image, an encoded video, or a stored file. CPU only."""

from dataclasses import dataclass, replace
from pathlib import Path

from app.sandbox.media.images import ImageSpec, draw_image
from app.sandbox.media.videos import VideoSpec, encode_video

MEDIA_TYPES = {
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "png": "image/png",
    "webp": "image/webp",
    "mp4": "video/mp4",
}


@dataclass(frozen=True, slots=True)
class StoredImage:
    """A finished image in the file store. `text`, `digest` and `label` are for the WebP that a fault sends instead."""

    path: Path
    size: tuple[int, int]
    text: str
    digest: str
    label: str
    output_format: str = "jpg"


MediaSpec = ImageSpec | VideoSpec | StoredImage


def render(media: MediaSpec, index: int = 0) -> bytes:
    """The bytes of the `index`-th result. Takes milliseconds to seconds: call it in a thread."""
    match media:
        case ImageSpec():
            return draw_image(replace(media, index=index))
        case VideoSpec():
            return encode_video(replace(media, index=index))
        case StoredImage():
            return media.path.read_bytes()


def render_webp(media: MediaSpec) -> bytes:
    """A real WebP of the same size, which the fault `webp` sends instead of the result."""
    return draw_image(ImageSpec(media.text, media.digest, media.label, media.size, "webp"))
