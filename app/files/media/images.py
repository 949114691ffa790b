"""Inspects JPEG, PNG, WebP and GIF images (type, size, whether they decode) and makes thumbnails.

At most two images are decoded at the same time, because the largest image needs 256 MB.
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
"""The transposition that makes an image upright, by its EXIF orientation.

Pillow's `ImageOps.exif_transpose` raises for broken EXIF and decodes a whole PNG to find the orientation.
"""
ROTATED = frozenset({5, 6, 7, 8})
VP8L_SIGNATURE = 0x2F

FORMATS = {
    "JPEG": ("image/jpeg", "jpg"),
    "MPO": ("image/jpeg", "jpg"),  # a JPEG followed by further images, as phones write it
    "PNG": ("image/png", "png"),
    "WEBP": ("image/webp", "webp"),
    "GIF": ("image/gif", "gif"),
}
"""MIME type and file extension by Pillow's name of the format."""
OPENED_FORMATS = ("JPEG", "PNG", "WEBP", "GIF")

_threads = anyio.CapacityLimiter(2)


class MediaError(Exception):
    """The file is broken, incomplete or of an unsupported type. The reason is for logs."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class OversizedError(MediaError):
    """The file has too many pixels, or its duration is too long."""


@dataclass(frozen=True)
class ImageInfo:
    """An image. `ext` has no dot; width and height are in pixels, after the EXIF orientation."""

    mime: str
    ext: str
    width: int
    height: int


async def inspect_image(path: Path) -> ImageInfo:
    """Raises MediaError unless the file is a complete JPEG, PNG, WebP or GIF of at most 64 megapixels."""
    return await anyio.to_thread.run_sync(_inspect, path, limiter=_threads)


async def make_thumbnail(path: Path) -> bytes:
    """A JPEG with a long edge of at most 512 pixels, upright and on white. Raises MediaError."""
    return await anyio.to_thread.run_sync(_make_thumbnail, path, limiter=_threads)


def read_size(start: bytes) -> tuple[int, int] | None:
    """Width and height after the EXIF orientation, from an image's first bytes; None if they are not enough."""
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return _read_webp_size(start)  # Pillow needs the whole file of a WebP
    try:
        with Image.open(io.BytesIO(start), formats=OPENED_FORMATS) as image:
            return display_size(image)
    except Exception:  # see as_media_error
        return None


def _inspect(path: Path) -> ImageInfo:
    with as_media_error(), Image.open(path, formats=OPENED_FORMATS) as image:
        mime, ext = FORMATS[image.format or ""]
        require_size(image)
        width, height = display_size(image)
        image.draft(None, (1, 1))  # a JPEG decodes at an eighth of its size, which needs less memory
        image.load()
    return ImageInfo(mime, ext, width, height)


def _make_thumbnail(path: Path) -> bytes:
    box = (THUMBNAIL_EDGE, THUMBNAIL_EDGE)
    with as_media_error(), Image.open(path, formats=OPENED_FORMATS) as source:
        require_size(source)
        source_orientation = orientation(source)
        source.draft("RGB", box)
        if source.mode in {"RGB", "RGBA", "L", "LA"} and "transparency" not in source.info:
            source.thumbnail(box)  # first, because a conversion would hold the large image twice
        image = to_rgb(source)
    image.thumbnail(box)
    image = upright(image, source_orientation)
    if image.mode == "RGBA":
        background = Image.new("RGB", image.size, "white")
        background.paste(image, mask=image)
        image = background
    file = io.BytesIO()
    image.save(file, "JPEG", quality=THUMBNAIL_QUALITY)
    return file.getvalue()


@contextmanager
def as_media_error() -> Iterator[None]:
    """Turns every exception into MediaError. A hostile file can make Pillow raise any exception."""
    try:
        yield
    except MediaError:
        raise
    except Image.DecompressionBombError as error:
        raise OversizedError("too large for Pillow") from error
    except Exception as error:
        raise MediaError(f"not a readable image ({type(error).__name__})") from error


def require_size(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise OversizedError(f"too large ({image.width}x{image.height})")


def display_size(image: Image.Image) -> tuple[int, int]:
    if orientation(image) in ROTATED:
        return image.height, image.width
    return image.width, image.height


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8. It is 1 for broken EXIF, which is common in good images."""
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))  # image.getexif() would decode a whole PNG
        value = exif.get(ORIENTATION_TAG)
    except Exception:
        return 1
    return value if isinstance(value, int) else 1


def upright(image: Image.Image, exif_orientation: int) -> Image.Image:
    transposition = EXIF_TRANSPOSE.get(exif_orientation)
    return image if transposition is None else image.transpose(transposition)


def to_rgb(image: Image.Image) -> Image.Image:
    """The image as RGBA if it has transparency, else as RGB. 16-bit grey is scaled, because Pillow would clip it."""
    if image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode.startswith("I"):
        image = image.point(lambda value: value / 256, "L")
    return image.convert("RGB")


def _read_webp_size(start: bytes) -> tuple[int, int] | None:
    """The size in the first chunk (RFC 9649): extended, lossless or lossy."""
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
        return None  # too few bytes
    return None
