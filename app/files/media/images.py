"""Inspects JPEG, PNG, WebP and GIF images (type, size, whether they decode) and makes thumbnails.

At most two images are decoded at the same time, because the largest image needs 256 MB.
"""

import io
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import anyio
from PIL import Image

from app.aio import FairLimiter, acting_user
from app.files.media.header import ROTATED, exif_orientation, read_file_size

T = TypeVar("T")

MAX_PIXELS = 64_000_000
MAX_SMALL_PIXELS = 4096 * 4096
"""A larger image is a large job: it takes seconds."""
THUMBNAIL_EDGE = 512
THUMBNAIL_QUALITY = 85
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

FORMATS = {
    "JPEG": ("image/jpeg", "jpg"),
    "MPO": ("image/jpeg", "jpg"),  # a JPEG followed by further images, as phones write it
    "PNG": ("image/png", "png"),
    "WEBP": ("image/webp", "webp"),
    "GIF": ("image/gif", "gif"),
}
"""MIME type and file extension by Pillow's name of the format."""
OPENED_FORMATS = ("JPEG", "PNG", "WEBP", "GIF")

MAX_JOBS = 2
_threads = anyio.CapacityLimiter(MAX_JOBS)


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


class MediaSlots:
    """At most MAX_JOBS jobs at a time, of which one may be large. Users take turns.

    So a small file waits for other small files at most, however many large ones are there.
    """

    def __init__(self) -> None:
        self._all = FairLimiter(MAX_JOBS)
        self._large = FairLimiter(MAX_JOBS - 1)

    @asynccontextmanager
    async def slot(self, *, is_large: bool) -> AsyncIterator[None]:
        """Holds a slot of the acting user while the block runs."""
        user = acting_user.get()
        async with AsyncExitStack() as stack:
            if is_large:
                await stack.enter_async_context(self._large.slot(user))
            await stack.enter_async_context(self._all.slot(user))
            yield


_slots = MediaSlots()


async def inspect_image(path: Path) -> ImageInfo:
    """Raises MediaError unless the file is a complete JPEG, PNG, WebP or GIF of at most 64 megapixels."""
    return await _decode(_inspect, path)


async def make_thumbnail(path: Path) -> bytes:
    """A JPEG with a long edge of at most 512 pixels, upright and on white. Raises MediaError."""
    return await _decode(_make_thumbnail, path)


async def find_max_pixels(path: Path) -> int:
    """How many pixels the image may have by its header: MAX_SMALL_PIXELS, or MAX_PIXELS for a large job.

    An image that is too large is a small job, because it is refused before it is decoded.
    """
    size = await anyio.to_thread.run_sync(read_file_size, path)
    is_large = size is None or MAX_SMALL_PIXELS < size[0] * size[1] <= MAX_PIXELS
    return MAX_PIXELS if is_large else MAX_SMALL_PIXELS


async def _decode(work: Callable[[Path, int], T], path: Path) -> T:
    with as_media_error():
        max_pixels = await find_max_pixels(path)
    async with _slots.slot(is_large=max_pixels == MAX_PIXELS):
        return await anyio.to_thread.run_sync(work, path, max_pixels, limiter=_threads)


def _inspect(path: Path, max_pixels: int) -> ImageInfo:
    with as_media_error(), Image.open(path, formats=OPENED_FORMATS) as image:
        mime, ext = FORMATS[image.format or ""]
        require_size(image.width, image.height, max_pixels)
        width, height = display_size(image)
        image.draft(None, (1, 1))  # a JPEG decodes at an eighth of its size, which needs less memory
        image.load()
    return ImageInfo(mime, ext, width, height)


def _make_thumbnail(path: Path, max_pixels: int) -> bytes:
    box = (THUMBNAIL_EDGE, THUMBNAIL_EDGE)
    with as_media_error(), Image.open(path, formats=OPENED_FORMATS) as source:
        require_size(source.width, source.height, max_pixels)
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


def require_size(width: int, height: int, max_pixels: int = MAX_PIXELS) -> None:
    """Raises OversizedError above MAX_PIXELS. Raises MediaError above `max_pixels`: the header promised less work."""
    if width * height > MAX_PIXELS:
        raise OversizedError(f"too large ({width}x{height})")
    if width * height > max_pixels:
        raise MediaError(f"larger than its header says ({width}x{height})")


def display_size(image: Image.Image) -> tuple[int, int]:
    if orientation(image) in ROTATED:
        return image.height, image.width
    return image.width, image.height


def orientation(image: Image.Image) -> int:
    return exif_orientation(image.info.get("exif", b""))  # image.getexif() would decode a whole PNG


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
