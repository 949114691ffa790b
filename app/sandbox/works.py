"""What a job makes, as bytes: a drawn picture, an encoded clip, or a file that already lies on the shelf. Pure CPU."""

from dataclasses import dataclass, replace
from pathlib import Path

from app.sandbox.clips import Clip, encode
from app.sandbox.pictures import Picture, draw

MEDIA_TYPES = {
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "png": "image/png",
    "webp": "image/webp",
    "mp4": "video/mp4",
}


@dataclass(frozen=True, slots=True)
class Stored:
    """A finished picture on the shelf; `text`, `digest` and `label` are for its false twins."""

    path: Path
    size: tuple[int, int]
    text: str
    digest: str
    label: str
    output_format: str = "jpg"


Work = Picture | Clip | Stored


def render(work: Work, index: int = 0) -> bytes:
    """The bytes of the work's `index`-th result. Takes milliseconds to seconds: call it in a thread."""
    match work:
        case Picture():
            return draw(replace(work, index=index))
        case Clip():
            return encode(replace(work, index=index))
        case Stored():
            return work.path.read_bytes()


def render_webp(work: Work) -> bytes:
    """A real WebP of the work's size: what a lying result sends in its place."""
    return draw(Picture(work.text, work.digest, work.label, work.size, "webp"))
