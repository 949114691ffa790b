import io
import struct
import time
from pathlib import Path

import pillow_heif
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from app.files import media
from app.files.media import ImageInfo, MediaError, inspect_image, make_thumbnail, read_header, read_size
from app.files.media.header import read_file_size
from tests.support.media_files import png_claiming

SIZE = (300, 200)
UPRIGHT_ALREADY, ON_ITS_SIDE = 1, 6


def draw(kind: str, size: tuple[int, int] = SIZE, mode: str = "RGB", **options: object) -> bytes:
    """Noise, because it has many bytes, so that truncation is noticed."""
    file = io.BytesIO()
    Image.effect_noise(size, 80).convert(mode).save(file, kind, **options)
    return file.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[media.ORIENTATION_TAG] = orientation
    return exif.tobytes()


KINDS = [
    ("JPEG", "RGB", {}, ImageInfo("image/jpeg", "jpg", *SIZE)),
    ("JPEG", "CMYK", {"progressive": True}, ImageInfo("image/jpeg", "jpg", *SIZE)),
    ("PNG", "RGBA", {}, ImageInfo("image/png", "png", *SIZE)),
    ("PNG", "1", {}, ImageInfo("image/png", "png", *SIZE)),
    ("GIF", "P", {}, ImageInfo("image/gif", "gif", *SIZE)),
    ("WEBP", "RGB", {}, ImageInfo("image/webp", "webp", *SIZE)),
    ("WEBP", "RGB", {"lossless": True}, ImageInfo("image/webp", "webp", *SIZE)),
    ("WEBP", "RGB", {"exif": turned(UPRIGHT_ALREADY)}, ImageInfo("image/webp", "webp", *SIZE)),
]
each_kind = pytest.mark.parametrize(("kind", "mode", "options", "image"), KINDS)


@pytest.mark.anyio
@each_kind
async def test_an_image_is_recognized_by_its_bytes(
    tmp_path: Path, kind: str, mode: str, options: dict[str, object], image: ImageInfo
) -> None:
    path = tmp_path / "video.mp4"
    path.write_bytes(draw(kind, mode=mode, **options))
    assert await inspect_image(path) == image


@pytest.mark.anyio
@each_kind
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.99])
async def test_a_truncated_image_fails(
    tmp_path: Path, kind: str, mode: str, options: dict[str, object], image: ImageInfo, kept: float
) -> None:
    whole = draw(kind, mode=mode, **options)
    path = tmp_path / "cut"
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(MediaError):
        await inspect_image(path)


@each_kind
def test_the_size_is_read_from_the_first_bytes(
    kind: str, mode: str, options: dict[str, object], image: ImageInfo
) -> None:
    assert read_size(draw(kind, mode=mode, **options)[:4096]) == SIZE


@pytest.mark.anyio
@pytest.mark.parametrize(
    "content",
    [b"<html>404</html>", b'<svg xmlns="http://www.w3.org/2000/svg"/>', b"%PDF-1.7", b"\xff\xd8\xff"],
)
async def test_a_file_that_is_no_image_fails(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with pytest.raises(MediaError):
        await inspect_image(path)
    with pytest.raises(MediaError):
        await make_thumbnail(path)
    assert read_size(content) is None


@pytest.mark.anyio
async def test_a_phones_jpeg_with_a_second_image_after_it_is_a_jpeg(tmp_path: Path) -> None:
    path = tmp_path / "phone.jpg"
    image = Image.effect_noise(SIZE, 80).convert("RGB")
    image.save(path, "MPO", save_all=True, append_images=[image.resize((30, 20))])
    assert await inspect_image(path) == ImageInfo("image/jpeg", "jpg", *SIZE)


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["BMP", "TIFF", "ICO", "PPM"])
async def test_other_kinds_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(draw(kind))
    with pytest.raises(MediaError):
        await inspect_image(path)


@pytest.mark.anyio
@pytest.mark.parametrize("size", [(8001, 8000), (12_000, 12_000), (60_000, 60_000)])
async def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_claiming(*size))
    with pytest.raises(MediaError, match=r"too large|Decompression"):
        await inspect_image(path)
    with pytest.raises(MediaError, match=r"too large|Decompression"):
        await make_thumbnail(path)


@pytest.mark.anyio
async def test_a_flipped_bit_in_a_png_fails(tmp_path: Path) -> None:
    damaged = bytearray(draw("PNG"))
    damaged[len(damaged) // 2] ^= 1
    path = tmp_path / "damaged.png"
    path.write_bytes(damaged)
    with pytest.raises(MediaError):
        await inspect_image(path)


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
async def test_the_size_follows_the_orientation(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "phone"
    path.write_bytes(draw(kind, exif=turned(ON_ITS_SIDE)))
    image = await inspect_image(path)
    assert (image.width, image.height) == (200, 300)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_size_in_the_first_bytes_follows_the_orientation(kind: str) -> None:
    assert read_size(draw(kind, exif=turned(ON_ITS_SIDE))[:4096]) == (200, 300)


def with_metadata(kind: str, size_bytes: int) -> bytes:
    """An image of SIZE that stands on its side, behind so many bytes of metadata."""
    whole = draw(kind, exif=turned(ON_ITS_SIDE)) if kind == "JPEG" else b""
    if kind == "JPEG":
        segment = b"\xff\xe2" + struct.pack(">H", 60_002) + bytes(60_000)
        return whole[:2] + segment * (size_bytes // len(segment) + 1) + whole[2:]
    if kind == "PNG":
        text = PngInfo()
        text.add_text("Comment", "x" * size_bytes)
        return draw(kind, pnginfo=text, exif=turned(ON_ITS_SIDE))
    pillow_heif.register_heif_opener()
    return draw(kind, SIZE, exif=turned(ON_ITS_SIDE), icc_profile=bytes(size_bytes))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "AVIF", "HEIF"])
@pytest.mark.parametrize("size_bytes", [100, 100_000, 1_500_000])
def test_the_size_is_found_behind_long_metadata(tmp_path: Path, kind: str, size_bytes: int) -> None:
    path = tmp_path / "photo"
    path.write_bytes(with_metadata(kind, size_bytes))
    assert read_file_size(path) == SIZE[::-1]
    early = read_header(path.read_bytes()[:4096])
    if size_bytes > 4096:
        assert not early.is_final
        assert early.size == (SIZE if kind == "PNG" else None)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "AVIF", "HEIF"])
def test_a_part_of_a_header_gives_no_wrong_size(kind: str) -> None:
    pillow_heif.register_heif_opener()
    whole = draw(kind)
    sizes = [read_header(whole[:length]) for length in range(min(len(whole), 1500))]
    assert {one.size for one in sizes} == {None, SIZE}
    assert {one.size for one in sizes if one.is_final} == {SIZE}


@pytest.mark.parametrize(
    "hostile",
    [
        b"\xff\xd8\xff" + b"\xff" * 4_000_000,
        b"\xff\xd8" + b"\xff\xfe\x00\x02" * 1_000_000,
        b"\xff\xd8\xff" + b"\xff\x00" * 2_000_000,
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 300, 200) + bytes(4_000_000),
        b"\0\0\0\x14ftypavif\0\0\0\0avif" + b"\0\0\0\x08free" * 500_000,
        b"\0\0\0\x14ftypavif\0\0\0\0avif\0\0\0\0meta\0\0\0\0" + b"\0\0\0\x08free" * 500_000,
    ],
)
def test_a_hostile_header_costs_little(hostile: bytes) -> None:
    began = time.process_time()
    assert read_size(hostile) in {None, SIZE}
    assert time.process_time() - began < 0.5


@pytest.mark.anyio
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
async def test_an_image_with_broken_exif_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(draw("JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"))
    assert (await inspect_image(path)).width == 300
    assert await make_thumbnail(path)


@pytest.mark.anyio
@pytest.mark.parametrize("orientation", range(1, 9))
async def test_a_thumbnail_is_upright(tmp_path: Path, orientation: int) -> None:
    """The corner that is red on screen must be red in the thumbnail. PIL's own transposition is the reference."""
    image = Image.new("RGB", (1200, 800), "blue")
    image.paste("red", (0, 0, 600, 400))
    path = tmp_path / "phone.png"
    image.save(path, exif=turned(orientation))
    with Image.open(path) as stored:
        wanted = ImageOps.exif_transpose(stored)
    thumbnail = Image.open(io.BytesIO(await make_thumbnail(path)))
    assert thumbnail.format == "JPEG"
    assert thumbnail.size == tuple(round(edge * 512 / 1200) for edge in wanted.size)
    for x in (0.25, 0.75):
        for y in (0.25, 0.75):
            shown = thumbnail.getpixel((int(thumbnail.width * x), int(thumbnail.height * y)))
            meant = wanted.getpixel((int(wanted.width * x), int(wanted.height * y)))
            assert isinstance(shown, tuple)
            assert isinstance(meant, tuple)
            assert all(abs(a - b) < 12 for a, b in zip(shown, meant, strict=True))
    assert not thumbnail.getexif()


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
async def test_transparent_pixels_become_white(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "clear"
    Image.new("RGBA", (900, 600), (0, 0, 0, 0)).save(path, kind)
    thumbnail = Image.open(io.BytesIO(await make_thumbnail(path)))
    assert thumbnail.size == (512, 341)
    assert thumbnail.getpixel((100, 100)) == (255, 255, 255)


@pytest.mark.anyio
async def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    path = tmp_path / "grey.png"
    Image.new("I;16", (64, 64), 32768).save(path)
    thumbnail = Image.open(io.BytesIO(await make_thumbnail(path)))
    assert thumbnail.getpixel((5, 5)) == (128, 128, 128)


@pytest.mark.anyio
async def test_a_small_image_is_not_enlarged(tmp_path: Path) -> None:
    path = tmp_path / "small.png"
    path.write_bytes(draw("PNG", (40, 30)))
    assert Image.open(io.BytesIO(await make_thumbnail(path))).size == (40, 30)
