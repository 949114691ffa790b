"""Converts images that SEE2AI may not accept to JPEG or PNG: upright, the first frame only, and without EXIF."""

from pathlib import Path
from typing import Any

from PIL import AvifImagePlugin, Image

from app.files.media.images import (
    FORMATS,
    MAX_PIXELS,
    ImageInfo,
    as_media_error,
    find_max_pixels,
    orientation,
    require_size,
    to_rgb,
    upright,
)
from app.files.media.isolation import run_isolated

CONVERTED_FORMATS = ("GIF", "WEBP", "AVIF", "HEIF")
JPEG_QUALITY = 92
MAX_PROFILE_BYTES = 1_000_000  # most profiles have a few kilobytes
OPAQUE = 255


async def convert_image(path: Path, to: Path) -> ImageInfo:
    """Converts a GIF, WebP, AVIF or HEIC into the file `to`. Raises MediaError if it is broken or over 64 megapixels.

    The result is a PNG if the image has transparency or is a GIF, whose flat colours JPEG would blur. Otherwise it is
    a JPEG.
    """
    with as_media_error():
        max_pixels = await find_max_pixels(path)
    is_large = max_pixels == MAX_PIXELS
    return ImageInfo(**await run_isolated("convert", path, to, max_pixels, is_large=is_large))


def convert(path: str, to: str, max_pixels: str) -> dict[str, Any]:
    """The job of the isolated process. Returns the fields of ImageInfo."""
    from pillow_heif import register_heif_opener  # only the isolated process loads its libraries

    register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # more threads would need more of the limited memory
    with as_media_error():
        image, is_gif = _read(Path(path), int(max_pixels))
        format_name = "PNG" if is_gif or image.mode == "RGBA" else "JPEG"
        image.save(to, format_name, quality=JPEG_QUALITY, icc_profile=image.info.get("icc_profile"))
    mime, ext = FORMATS[format_name]
    return {"mime": mime, "ext": ext, "width": image.width, "height": image.height}


def _read(path: Path, max_pixels: int) -> tuple[Image.Image, bool]:
    """The decoded and upright image, and whether it is a GIF. The mode is RGBA only if a pixel is transparent."""
    with Image.open(path, formats=CONVERTED_FORMATS) as source:
        require_size(source.width, source.height, max_pixels)
        source.load()
        require_size(source.width, source.height, max_pixels)  # a HEIC may be larger than its header says
        source_orientation, is_gif, info = orientation(source), source.format == "GIF", _profile_info(source)
        image = to_rgb(source)
    if image.mode == "RGBA" and image.getchannel("A").getextrema() == (OPAQUE, OPAQUE):
        image = image.convert("RGB")
    image = upright(image, source_orientation)
    image.info = info  # Pillow would otherwise write comments, EXIF, XMP and the resolution
    return image, is_gif


def _profile_info(image: Image.Image) -> dict[str | tuple[int, int], Any]:
    """The colour profile, which wide-gamut photos need. A grey image becomes RGB, so its profile does not fit."""
    profile = image.info.get("icc_profile") or b""
    is_usable = image.mode in {"RGB", "RGBA"} and 0 < len(profile) <= MAX_PROFILE_BYTES
    return {"icc_profile": profile} if is_usable else {}
