import io
import struct
from pathlib import Path
from typing import Any

import pillow_heif
import pytest
from PIL import Image, ImageCms, ImageOps

from app.files import media
from app.files.media import ImageInfo, MediaError, OversizedError, convert_image, sniff
from tests.support.media_files import audio, image, video
from tests.support.run import full

pytestmark = pytest.mark.anyio
SIZE = (60, 40)
GPS = 0x8825
OPAQUE = [("WEBP", {}), ("WEBP", {"lossless": True}), ("AVIF", {}), ("HEIF", {}), ("HEIF", {"mode": "L"})]
CLEAR = [("WEBP", {"lossless": True}), ("AVIF", {}), ("HEIF", {})]


async def convert(folder: Path, content: bytes) -> tuple[ImageInfo, Image.Image]:
    sent, made = folder / "film.mp4", folder / "made"
    sent.write_bytes(content)
    found = await convert_image(sent, made)
    shown = Image.open(made)
    shown.load()
    assert shown.size == (found.width, found.height)
    assert shown.get_format_mimetype() == found.mime
    return found, shown


@pytest.mark.parametrize(("kind", "options"), OPAQUE)
async def test_an_opaque_image_becomes_a_jpeg(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    found, shown = await convert(tmp_path, image(kind, **options))
    assert found == ImageInfo("image/jpeg", "jpg", *SIZE)
    assert shown.mode == "RGB"


@pytest.mark.parametrize(("kind", "options"), CLEAR)
async def test_transparent_pixels_stay_transparent_in_a_png(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    found, shown = await convert(tmp_path, image(kind, mode="RGBA", clear=True, **options))
    assert found == ImageInfo("image/png", "png", *SIZE)
    assert shown.getpixel((0, 0))[3] > 250
    assert shown.getpixel((SIZE[0] - 1, SIZE[1] - 1))[3] < 100


async def test_an_opaque_alpha_channel_is_dropped(tmp_path: Path) -> None:
    found, _ = await convert(tmp_path, image("WEBP", mode="RGBA"))
    assert found.mime == "image/jpeg"


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "AVIF"])
async def test_of_several_frames_the_first_is_used(tmp_path: Path, kind: str) -> None:
    file = io.BytesIO()
    first, *others = (Image.new("RGB", SIZE, colour) for colour in ("red", "blue", "green"))
    first.save(file, kind, save_all=True, append_images=others, duration=100)
    found, shown = await convert(tmp_path, file.getvalue())
    assert found.mime == ("image/png" if kind == "GIF" else "image/jpeg")
    red, green, blue = shown.convert("RGB").getpixel((5, 5))
    assert (red > 240, green < 20, blue < 20) == (True, True, True)


async def test_a_gif_keeps_its_transparency(tmp_path: Path) -> None:
    content = image("GIF", mode="RGBA", clear=True)
    found, shown = await convert(tmp_path, content)
    assert found == ImageInfo("image/png", "png", *SIZE)
    assert shown.getpixel((SIZE[0] - 1, SIZE[1] - 1))[3] == 0


@pytest.mark.parametrize("kind", ["WEBP", "AVIF", "HEIF"])
@pytest.mark.parametrize("orientation", [2, 6, *full(1, 3, 4, 5, 7, 8)])
async def test_it_is_upright_and_has_no_metadata(tmp_path: Path, kind: str, orientation: int) -> None:
    """Pillow's own transposition is the reference for the corners. EXIF with the location is removed."""
    exif = Image.Exif()
    exif[media.ORIENTATION_TAG] = orientation
    exif[0x010F] = "planted-maker"
    exif.get_ifd(GPS).update({1: "N", 2: (48.0, 51.0, 30.0)})
    content = image(kind, exif=exif.tobytes(), xmp=b"<x:xmpmeta>planted-xmp</x:xmpmeta>")
    assert b"planted" in content
    with Image.open(io.BytesIO(content)) as sent:
        wanted = ImageOps.exif_transpose(sent).convert("RGB")
    found, shown = await convert(tmp_path, content)
    assert (found.width, found.height) == wanted.size == (SIZE if orientation < 5 else SIZE[::-1])
    for x in (5, wanted.width - 6):
        for y in (5, wanted.height - 6):
            pairs = zip(shown.getpixel((x, y)), wanted.getpixel((x, y)), strict=True)
            assert all(abs(a - b) < 30 for a, b in pairs)
    assert not shown.getexif()
    assert b"planted" not in (tmp_path / "made").read_bytes()


@pytest.mark.parametrize("kind", ["WEBP", "AVIF", "HEIF"])
async def test_the_colour_profile_is_kept(tmp_path: Path, kind: str) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    _, shown = await convert(tmp_path, image(kind, icc_profile=profile))
    assert shown.info["icc_profile"] == profile


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "AVIF", "HEIF"])
@pytest.mark.parametrize("kept", [0.0, 0.9, *full(0.1, 0.5)])
async def test_a_truncated_image_fails(tmp_path: Path, kind: str, kept: float) -> None:
    pillow_heif.register_heif_opener()
    file = io.BytesIO()
    Image.effect_noise((300, 200), 80).convert("RGB").save(file, kind)
    (tmp_path / "cut").write_bytes(file.getvalue()[: int(len(file.getvalue()) * kept)])
    with pytest.raises(MediaError):
        await convert_image(tmp_path / "cut", tmp_path / "made")


def reserved(kind: str, width: int, height: int) -> bytes:
    """A small picture whose header claims a large one."""
    small = image(kind, (64, 64))  # HEVC would give another size, because of its blocks
    if kind == "GIF":
        return small[:6] + struct.pack("<HH", width, height) + small[10:]
    if kind == "WEBP":
        return small[:26] + struct.pack("<HH", width, height) + small[30:]
    place = small.index(b"ispe") + 8
    return small[:place] + struct.pack(">II", width, height) + small[place + 8 :]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "AVIF", "HEIF"])
@pytest.mark.parametrize("size", [(8001, 8000), *full(((16_000, 16_000),))])
async def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path, kind: str, size: tuple[int, int]) -> None:
    (tmp_path / "bomb").write_bytes(reserved(kind, *size))
    with pytest.raises(OversizedError):
        await convert_image(tmp_path / "bomb", tmp_path / "made")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP"])
async def test_other_kinds_are_not_converted(tmp_path: Path, kind: str) -> None:
    (tmp_path / "sent").write_bytes(image(kind))
    with pytest.raises(MediaError):
        await convert_image(tmp_path / "sent", tmp_path / "made")


@pytest.mark.parametrize(
    ("content", "mime"),
    [
        (image("JPEG"), "image/jpeg"),
        (image("PNG"), "image/png"),
        (image("GIF"), "image/gif"),
        (image("WEBP"), "image/webp"),
        (image("AVIF"), "image/avif"),
        (image("HEIF"), "image/heic"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "image/avif"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heicmiaf", "image/heic"),
        (b"\0\0\0\x18ftypMSNV\0\0\0\0MSNVmp42", "video/mp4"),
        (video("mp4"), "video/mp4"),
        (video("mov"), "video/quicktime"),
        (video("webm"), "video/webm"),
        (video("webm", container="matroska"), "video/x-matroska"),
        (audio("mp3"), "audio/mpeg"),
        (audio("wav"), "audio/wav"),
        (audio("aac"), "audio/aac"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", None),
        (b"<!DOCTYPE html><script>", None),
        (b"#EXTM3U\n", None),
        (b"ffconcat version 1.0\n", None),
        (b"", None),
    ],
)
def test_the_kind_by_the_first_bytes(content: bytes, mime: str | None) -> None:
    assert sniff(content[: media.START_BYTES]) == mime
