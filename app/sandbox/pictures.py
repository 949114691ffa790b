"""Draws the pictures: a gradient from the prompt's digest, the prompt itself, the word SANDBOX. Pure CPU.

`measure` gives a fast image's size, exactly of the asked ratio and about one megapixel at 1K: its sides are the ratio's
numbers times a multiple of eight; 2K has both sides doubled. The same Picture always gives the same bytes.
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
PICTURES_CACHED = 16
TEXT_SHOWN = 300
SCALES = {"1K": 1, "2K": 2}
FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}
WHITE, FAINT = (255, 255, 255), (222, 222, 222)
HANGING = "，。！？、；：）》」』”’…"
"""Punctuation that may not begin a line: it hangs over the edge instead."""
BOMB_SIDE = 60_000


Brush = ImageDraw.ImageDraw


@dataclass(frozen=True, slots=True)
class Picture:
    """What is to be drawn. `label` is the small line below the text; `output_format` a key of FORMATS."""

    text: str
    digest: str
    label: str
    size: tuple[int, int]
    output_format: str
    index: int = 0


@lru_cache(maxsize=PICTURES_CACHED)
def draw(picture: Picture) -> bytes:
    """The encoded picture. Takes tens of milliseconds: call it in a thread."""
    file = io.BytesIO()
    paint(picture).save(file, FORMATS[picture.output_format], quality=88)
    return file.getvalue()


def paint(picture: Picture) -> Image.Image:
    """The picture before it is encoded, in RGB."""
    size = picture.size
    image = _background(size, picture.digest, picture.index)
    brush = ImageDraw.Draw(image)
    unit = max(12, round(sqrt(size[0] * size[1]) / 40))
    margin = min(unit * 3, min(size) // 10)
    _write_badge(brush, size, margin, unit, picture.label)
    _write_text(brush, size, margin, unit, picture.text)
    return image


def measure(aspect_ratio: str, resolution: str) -> tuple[int, int]:
    """Width and height in pixels."""
    width, height = (int(part) for part in aspect_ratio.split(":"))
    step = max(8, round(1024 / sqrt(width * height) / 8) * 8)
    return width * step * SCALES[resolution], height * step * SCALES[resolution]


def _background(size: tuple[int, int], digest: str, index: int) -> Image.Image:
    """Nine colours of two related hues, blown up: cheap at any size, and never hard-edged."""
    seed = hashlib.sha256(f"{digest}/{index}".encode()).digest()
    hue, drift = seed[0] / 255, (seed[1] / 255 - 0.5) * 0.5
    small = Image.new("RGB", (3, 3))
    for spot in range(9):
        tint = (hue + drift * spot / 8 + seed[2 + spot] / 255 * 0.06) % 1
        red, green, blue = colorsys.hls_to_rgb(tint, 0.2 + seed[12 + spot] / 255 * 0.22, 0.6)
        small.putpixel((spot % 3, spot // 3), (round(red * 255), round(green * 255), round(blue * 255)))
    return small.resize((96, 96), Image.Resampling.BICUBIC).resize(size, Image.Resampling.BILINEAR)


def _write_badge(brush: Brush, size: tuple[int, int], margin: int, unit: int, label: str) -> None:
    width = size[0] - 2 * margin
    badge, small = _fitting(unit, "SANDBOX", width), _fitting(unit * 2 // 3, label, width)
    bottom = size[1] - margin
    brush.text((margin, bottom), label, FAINT, small, anchor="ls")
    brush.text((margin, bottom - small.size * 1.8), "SANDBOX", WHITE, badge, anchor="ls")


def _write_text(brush: Brush, size: tuple[int, int], margin: int, unit: int, text: str) -> None:
    """The text in the largest size that fits above the badge."""
    shown = text if len(text) <= TEXT_SHOWN else text[: TEXT_SHOWN - 1] + "…"
    width, height = size[0] - 2 * margin, size[1] - 2 * margin - unit * 4
    for font_size in range(unit * 3, 9, -max(1, unit // 6)):
        font = load_font(font_size)
        block = "\n".join(_wrap(shown, font, width))
        if font_size * 1.45 * (block.count("\n") + 1) <= height:
            break
    brush.multiline_text((margin, margin), block, WHITE, font, spacing=font_size * 0.3)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines no wider than `width`: broken at spaces where there are any, else between characters."""
    lines = []
    for paragraph in text.splitlines():
        line = ""
        for character in paragraph:
            if font.getlength(line + character) <= width or character in HANGING:
                line += character
                continue
            head, space, tail = line.rpartition(" ")
            breaks_word = space and character.isascii() and tail.isascii() and character != " "
            lines.append(head if breaks_word else line)
            line = (tail if breaks_word else "") + character.lstrip()
        lines.append(line)
    return lines


def _fitting(font_size: int, text: str, width: int) -> ImageFont.FreeTypeFont:
    font = load_font(font_size)
    return load_font(max(8, int(font_size * min(1.0, width / font.getlength(text)))))


def load_font(font_size: int) -> ImageFont.FreeTypeFont:
    """A fresh face each time: FreeType's faces are not to be shared between threads."""
    return ImageFont.truetype(FONT, font_size, layout_engine=ImageFont.Layout.BASIC)


def pixel_bomb() -> bytes:
    """A PNG of some seventy bytes that claims 60,000 × 60,000 pixels."""
    header = struct.pack(">IIBBBBB", BOMB_SIDE, BOMB_SIDE, 8, 6, 0, 0, 0)
    chunks = (_chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(bytes(64))), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
