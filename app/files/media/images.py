"""JPEG, PNG, WebP and GIF: kind, size, whether they decode; and a thumbnail.

All Pillow work runs in few threads at a time, because a picture of the largest size takes 256 MB decoded.
"""

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
from PIL import Image

MAX_PIXELS = 64_000_000
THUMBNAIL_EDGE = 512
THUMBNAIL_QUALITY = 85
ORIENTATION_TAG = 0x0112
EXIF_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture of each EXIF orientation upright."""
ROTATED = frozenset({5, 6, 7, 8})
VP8L_SIGNATURE = 0x2F

KINDS = {
    "JPEG": ("image/jpeg", "jpg"),
    "MPO": ("image/jpeg", "jpg"),  # a JPEG with further pictures behind it, as phones write them
    "PNG": ("image/png", "png"),
    "WEBP": ("image/webp", "webp"),
    "GIF": ("image/gif", "gif"),
}
READERS = ("JPEG", "PNG", "WEBP", "GIF")

_threads = anyio.CapacityLimiter(2)


class MediaError(Exception):
    """Not a file we keep; the reason is for logs."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class OversizedError(MediaError):
    """Of a kind we keep, and too large: in pixels or, of a recording, in hours."""


@dataclass(frozen=True)
class ImageInfo:
    """`ext` has no dot; width and height are as shown, that is after the EXIF orientation."""

    mime: str
    ext: str
    width: int
    height: int


async def inspect_image(path: Path) -> ImageInfo:
    """What the file holds; raises MediaError unless it is a whole JPEG, PNG, WebP or GIF of at most 64 MP."""
    return await anyio.to_thread.run_sync(_inspect, path, limiter=_threads)


async def make_thumbnail(path: Path) -> bytes:
    """A JPEG of at most 512 pixels along its long edge, upright, on white; raises MediaError."""
    return await anyio.to_thread.run_sync(_make_thumbnail, path, limiter=_threads)


def read_size(start: bytes) -> tuple[int, int] | None:
    """Width and height as shown, from an image's first bytes; None where these do not tell."""
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return _read_webp_size(start)  # Pillow wants the whole file for this one
    try:
        with Image.open(io.BytesIO(start), formats=READERS) as image:
            return display_size(image)
    except Exception:  # as below
        return None


def _inspect(path: Path) -> ImageInfo:
    with as_media_error(), Image.open(path, formats=READERS) as image:
        mime, ext = KINDS[image.format or ""]
        require_size(image)
        width, height = display_size(image)
        image.draft(None, (1, 1))  # a JPEG then decodes to an eighth of its size: all is read, less is held
        image.load()
    return ImageInfo(mime, ext, width, height)


def _make_thumbnail(path: Path) -> bytes:
    box = (THUMBNAIL_EDGE, THUMBNAIL_EDGE)
    with as_media_error(), Image.open(path, formats=READERS) as image:
        require_size(image)
        state = EXIF_TRANSPOSE.get(orientation(image))
        image.draft("RGB", box)
        if image.mode in {"RGB", "RGBA", "L", "LA"} and "transparency" not in image.info:
            image.thumbnail(box)  # at once: converting a large picture first would hold it twice
        picture = to_rgb(image)
    picture.thumbnail(box)
    if state is not None:
        picture = picture.transpose(state)
    if picture.mode == "RGBA":
        paper = Image.new("RGB", picture.size, "white")
        paper.paste(picture, mask=picture)
        picture = paper
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=THUMBNAIL_QUALITY)
    return file.getvalue()


@contextmanager
def as_media_error() -> Iterator[None]:
    """Pillow's readers raise whatever a hostile file drives them to: OSError, SyntaxError, struct.error, …"""
    try:
        yield
    except MediaError:
        raise
    except Image.DecompressionBombError as error:
        raise OversizedError("too large for Pillow") from error
    except Exception as error:
        raise MediaError(f"not a readable picture ({type(error).__name__})") from error


def require_size(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise OversizedError(f"too large ({image.width}x{image.height})")


def display_size(image: Image.Image) -> tuple[int, int]:
    if orientation(image) in ROTATED:
        return image.height, image.width
    return image.width, image.height


def orientation(image: Image.Image) -> int:
    """1 to 8. Broken EXIF is common in good pictures and spoils none of them."""
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))  # image.getexif() would decode a whole PNG, however large
        value = exif.get(ORIENTATION_TAG)
    except Exception:
        return 1
    return value if isinstance(value, int) else 1


def to_rgb(image: Image.Image) -> Image.Image:
    """RGBA where something shows through, else RGB. Sixteen-bit greys are scaled: Pillow would clip them."""
    if image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode.startswith("I"):
        image = image.point(lambda value: value / 256, "L")
    return image.convert("RGB")


def _read_webp_size(start: bytes) -> tuple[int, int] | None:
    """From the first chunk, by RFC 9649: lossy, lossless or extended."""
    kind, body = start[12:16], start[20:30]
    try:
        if kind == b"VP8X":
            return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
        if kind == b"VP8L" and body[0] == VP8L_SIGNATURE:
            (bits,) = struct.unpack_from("<I", body, 1)
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        if kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
            width, height = struct.unpack_from("<HH", body, 6)
            return width & 0x3FFF, height & 0x3FFF
    except (IndexError, struct.error):
        return None  # the start was cut before the size: as good as no WebP
    return None
