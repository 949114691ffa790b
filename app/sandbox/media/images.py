"""Draws the images: a gradient from the prompt's digest, the prompt itself, the word SANDBOX. CPU only.

`image_size` gives a fast image's size: exactly the ratio asked for, about one megapixel at 1K. The sides are the
ratio's numbers times a multiple of eight; 2K doubles both sides. The same ImageSpec always gives the same bytes.
"""

import colorsys
import hashlib
import io
import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FONT = Path(__file__).with_name("WenQuanYiMicroHei-GB2312.ttf")
MAX_CACHED_IMAGES = 16
MAX_TEXT_LENGTH = 300
SCALES = {"1K": 1, "2K": 2}
FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}
WHITE, GREY = (255, 255, 255), (222, 222, 222)
HANGING_PUNCTUATION = "，。！？、；：）》」』”’…"
"""Punctuation that may not begin a line: it stands beyond the margin instead."""
BOMB_SIDE_PIXELS = 60_000


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """What is to be drawn. `label` is the small line below the text; `output_format` a key of FORMATS."""

    text: str
    digest: str
    label: str
    size: tuple[int, int]
    output_format: str
    index: int = 0


@lru_cache(maxsize=MAX_CACHED_IMAGES)
def draw_image(spec: ImageSpec) -> bytes:
    """The encoded image. Takes tens of milliseconds: call it in a thread."""
    file = io.BytesIO()
    paint_image(spec).save(file, FORMATS[spec.output_format], quality=88)
    return file.getvalue()


def paint_image(spec: ImageSpec) -> Image.Image:
    """The image before it is encoded, in RGB."""
    size = spec.size
    image = _background(size, spec.digest, spec.index)
    draw = ImageDraw.Draw(image)
    unit = max(12, round(sqrt(size[0] * size[1]) / 40))
    margin = min(unit * 3, min(size) // 10)
    _write_badge(draw, size, margin, unit, spec.label)
    _write_text(draw, size, margin, unit, spec.text)
    return image


def image_size(aspect_ratio: str, resolution: str) -> tuple[int, int]:
    """Width and height in pixels."""
    width, height = (int(part) for part in aspect_ratio.split(":"))
    step = max(8, round(1024 / sqrt(width * height) / 8) * 8)
    return width * step * SCALES[resolution], height * step * SCALES[resolution]


def _background(size: tuple[int, int], digest: str, index: int) -> Image.Image:
    """Nine colours of two related hues, enlarged: cheap at any size, without hard edges."""
    seed = hashlib.sha256(f"{digest}/{index}".encode()).digest()
    first_hue, hue_range = seed[0] / 255, (seed[1] / 255 - 0.5) * 0.5
    small = Image.new("RGB", (3, 3))
    for pixel in range(9):
        hue = (first_hue + hue_range * pixel / 8 + seed[2 + pixel] / 255 * 0.06) % 1
        red, green, blue = colorsys.hls_to_rgb(hue, 0.2 + seed[12 + pixel] / 255 * 0.22, 0.6)
        small.putpixel((pixel % 3, pixel // 3), (round(red * 255), round(green * 255), round(blue * 255)))
    return small.resize((96, 96), Image.Resampling.BICUBIC).resize(size, Image.Resampling.BILINEAR)


def _write_badge(draw: ImageDraw.ImageDraw, size: tuple[int, int], margin: int, unit: int, label: str) -> None:
    width = size[0] - 2 * margin
    badge, small = _fitting_font(unit, "SANDBOX", width), _fitting_font(unit * 2 // 3, label, width)
    bottom = size[1] - margin
    draw.text((margin, bottom), label, GREY, small, anchor="ls")
    draw.text((margin, bottom - small.size * 1.8), "SANDBOX", WHITE, badge, anchor="ls")


def _write_text(draw: ImageDraw.ImageDraw, size: tuple[int, int], margin: int, unit: int, text: str) -> None:
    """The text in the largest size that fits above the badge."""
    shown = text if len(text) <= MAX_TEXT_LENGTH else text[: MAX_TEXT_LENGTH - 1] + "…"
    width, height = size[0] - 2 * margin, size[1] - 2 * margin - unit * 4
    for font_size in range(unit * 3, 9, -max(1, unit // 6)):
        font = load_font(font_size)
        block = "\n".join(_wrap(shown, font, width))
        if font_size * 1.45 * (block.count("\n") + 1) <= height:
            break
    draw.multiline_text((margin, margin), block, WHITE, font, spacing=font_size * 0.3)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines no wider than `width`: broken at spaces where there are any, else between characters."""
    lines = []
    for paragraph in text.splitlines():
        line = ""
        for character in paragraph:
            if font.getlength(line + character) <= width or character in HANGING_PUNCTUATION:
                line += character
                continue
            head, space, tail = line.rpartition(" ")
            breaks_word = space and character.isascii() and tail.isascii() and character != " "
            lines.append(head if breaks_word else line)
            line = (tail if breaks_word else "") + character.lstrip()
        lines.append(line)
    return lines


def _fitting_font(font_size: int, text: str, width: int) -> ImageFont.FreeTypeFont:
    font = load_font(font_size)
    return load_font(max(8, int(font_size * min(1.0, width / font.getlength(text)))))


def load_font(font_size: int) -> ImageFont.FreeTypeFont:
    """A new font object each time, because FreeType's must not be shared between threads."""
    return ImageFont.truetype(FONT, font_size, layout_engine=ImageFont.Layout.BASIC)


def pixel_bomb() -> bytes:
    """A PNG of some seventy bytes that claims 60,000 × 60,000 pixels."""
    header = struct.pack(">IIBBBBB", BOMB_SIDE_PIXELS, BOMB_SIDE_PIXELS, 8, 6, 0, 0, 0)
    chunks = (_chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(bytes(64))), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
