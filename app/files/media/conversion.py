"""Pictures that SEE2AI may not take become JPEG or PNG: upright, the first frame alone, without EXIF and GPS."""

from pathlib import Path
from typing import Any

from PIL import AvifImagePlugin, Image

from app.files.media.images import EXIF_TRANSPOSE, KINDS, ImageInfo, as_media_error, orientation, require_size, to_rgb
from app.files.media.isolation import run_isolated

CONVERTED = ("GIF", "WEBP", "AVIF", "HEIF")
JPEG_QUALITY = 92
MAX_PROFILE_BYTES = 1_000_000  # most have a few kilobytes
SOLID = 255


async def convert_image(path: Path, to: Path) -> ImageInfo:
    """Writes a GIF, WebP, AVIF or HEIC into the file `to`; raises MediaError unless it is whole, of at most 64 MP.

    A PNG where something shows through and of a GIF, whose flat colours JPEG would spoil; else a JPEG.
    """
    return ImageInfo(**await run_isolated("convert", path, to))


def convert(path: Path, to: Path) -> dict[str, Any]:
    """The work itself, in the confined process."""
    from pillow_heif import register_heif_opener  # only that process needs its libraries

    register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # each thread would take its share of the process' memory
    with as_media_error():
        picture, is_flat = _read(path)
        kind = "PNG" if is_flat or picture.mode == "RGBA" else "JPEG"
        picture.save(to, kind, quality=JPEG_QUALITY, icc_profile=picture.info.get("icc_profile"))
    mime, ext = KINDS[kind]
    return {"mime": mime, "ext": ext, "width": picture.width, "height": picture.height}


def _read(path: Path) -> tuple[Image.Image, bool]:
    """The picture upright, RGBA only where something does show through; and whether its colours are flat."""
    with Image.open(path, formats=CONVERTED) as image:
        require_size(image)
        image.load()
        require_size(image)  # HEIC may turn out larger than it said
        state, is_flat, profile = EXIF_TRANSPOSE.get(orientation(image)), image.format == "GIF", _profile(image)
        picture = to_rgb(image)
    if picture.mode == "RGBA" and picture.getchannel("A").getextrema() == (SOLID, SOLID):
        picture = picture.convert("RGB")
    if state is not None:
        picture = picture.transpose(state)
    picture.info = profile  # and nothing else of what Pillow would write: comments, EXIF, XMP, resolution
    return picture, is_flat


def _profile(image: Image.Image) -> dict[str | tuple[int, int], Any]:
    """The colour profile, which phones need for their wide colours; not that of a grey picture, which becomes RGB."""
    profile = image.info.get("icc_profile") or b""
    fits = image.mode in {"RGB", "RGBA"} and 0 < len(profile) <= MAX_PROFILE_BYTES
    return {"icc_profile": profile} if fits else {}
