"""Reads what the first bytes of a file tell: its MIME type, and the size of an image. Nothing is decoded.

Each reader looks at a bounded number of parts, so a hostile file costs little.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import filetype
from PIL import Image

START_BYTES = 4096
"""The number of bytes that `sniff` needs at most."""
MAX_HEADER_BYTES = 4_000_000
"""The metadata before the size of an image may be this long. Photos of phones and cameras have less than 1 MB."""
MAX_PARTS = 4096

AVIF_BRANDS = frozenset({b"avif", b"avis"})
HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"})
GENERIC_IMAGE_BRANDS = frozenset({b"mif1", b"msf1"})  # any codec; the compatible brands name it
MIME_ALIASES = {"image/apng": "image/png", "audio/x-wav": "audio/wav"}

ORIENTATION_TAG = 0x0112
ROTATED = frozenset({5, 6, 7, 8})
"""The EXIF orientations that exchange width and height."""
_FILL_BYTES = re.compile(rb"\xff*")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
VP8L_SIGNATURE = 0x2F
START_OF_SCAN, END_OF_IMAGE, APP1 = 0xDA, 0xD9, 0xE1
FRAME_MARKERS = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
MARKERS_WITHOUT_LENGTH = frozenset({0x00, 0x01, *range(0xD0, 0xD8)})

Size = tuple[int, int]


class _TooShort(Exception):
    """The part that is read ends after the given bytes. `size` is what is known of the image."""

    def __init__(self, size: Size | None = None) -> None:
        self.size = size


@dataclass(frozen=True)
class ImageHeader:
    """Width and height in pixels after the orientation, or None. `is_final`: more bytes would change nothing."""

    size: Size | None
    is_final: bool


def sniff(start: bytes) -> str | None:
    """The likely MIME type, or None if it is unknown. For an MP4 that holds only audio it is also `video/mp4`."""
    if start[4:8] == b"ftyp":  # filetype knows only a few of these brands
        return _mime_of_ftyp(start)
    mime: str | None = filetype.guess_mime(start)
    return MIME_ALIASES.get(mime, mime) if mime else None


def read_header(start: bytes) -> ImageHeader:
    """Reads the size of a JPEG, PNG, WebP, GIF, AVIF or HEIC from its first bytes."""
    try:
        return ImageHeader(_read_size(start), is_final=True)
    except _TooShort as error:
        return ImageHeader(error.size, is_final=False)
    except (IndexError, struct.error):
        return ImageHeader(None, is_final=False)


def read_size(start: bytes) -> Size | None:
    """Width and height after the orientation, from an image's first bytes; None if they are not enough."""
    return read_header(start).size


def read_file_size(path: Path) -> Size | None:
    """The same for a file. It reads more of the file until the size is known."""
    with path.open("rb") as file:
        start = file.read(START_BYTES)
        while not (header := read_header(start)).is_final and len(start) < MAX_HEADER_BYTES:
            more = file.read(3 * len(start))
            if not more:
                break
            start += more
    return header.size


def exif_orientation(exif: bytes) -> int:
    """The EXIF orientation, 1 to 8. It is 1 for broken EXIF, which is common in good images."""
    parsed = Image.Exif()
    try:
        parsed.load(exif)
        value = parsed.get(ORIENTATION_TAG)
    except Exception:
        return 1
    return value if isinstance(value, int) else 1


def _mime_of_ftyp(start: bytes) -> str:
    """Reads an `ftyp` box (ISO/IEC 14496-12): the major brand, a version, then the compatible brands."""
    major_brand = start[8:12]
    end = min(int.from_bytes(start[:4], "big"), len(start))
    compatible_brands = {start[offset : offset + 4] for offset in range(16, end, 4)}
    brands = compatible_brands if major_brand in GENERIC_IMAGE_BRANDS else {major_brand}
    if brands & AVIF_BRANDS:
        return "image/avif"
    if brands & HEIF_BRANDS or major_brand in GENERIC_IMAGE_BRANDS:
        return "image/heic"
    return "video/quicktime" if major_brand == b"qt  " else "video/mp4"


def _read_size(start: bytes) -> Size | None:
    if start[:3] == b"\xff\xd8\xff":
        return _read_jpeg(start)
    if start[:8] == PNG_SIGNATURE:
        return _read_png(start)
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return _read_webp(start)
    if start[:6] in {b"GIF87a", b"GIF89a"}:
        width, height = struct.unpack_from("<HH", start, 6)
        return width, height
    if start[4:8] == b"ftyp" and _mime_of_ftyp(start) in {"image/avif", "image/heic"}:
        return _read_heif(start)
    if len(start) < len(PNG_SIGNATURE) + 4:
        raise _TooShort
    return None


def _read_jpeg(data: bytes) -> Size | None:
    """Reads the segments up to the first scan (ISO/IEC 10918-1): 0xFF, a marker, and a length."""
    size, exif, offset = None, b"", 2
    for _ in range(MAX_PARTS):
        offset = data.find(b"\xff", offset)
        if offset < 0:
            raise _TooShort(_turned(size, exif))
        offset = _FILL_BYTES.match(data, offset).end()  # type: ignore[union-attr]  # it always matches
        if offset + 3 > len(data):
            raise _TooShort(_turned(size, exif))
        marker, length = data[offset], int.from_bytes(data[offset + 1 : offset + 3], "big")
        if marker in {START_OF_SCAN, END_OF_IMAGE}:
            return _turned(size, exif)
        offset += 1
        if marker in MARKERS_WITHOUT_LENGTH:
            continue
        body = data[offset + 2 : offset + length]
        if marker in FRAME_MARKERS:
            height, width = struct.unpack_from(">HH", body, 1)
            size = width, height
        if marker == APP1 and body[:6] == b"Exif\0\0" and not exif:
            exif = body
        offset += length
        if offset > len(data):
            raise _TooShort(_turned(size, exif))
    return _turned(size, exif)


def _read_png(data: bytes) -> Size | None:
    """Reads the chunks up to the image data (PNG, third edition): a length, a type, the body and a checksum."""
    size, offset = struct.unpack_from(">II", data, 16), 8
    if data[12:16] != b"IHDR":
        return None
    for _ in range(MAX_PARTS):
        if offset + 8 > len(data):
            raise _TooShort(size)
        length, kind = struct.unpack_from(">I4s", data, offset)
        end = offset + 8 + length
        if kind in {b"IDAT", b"IEND"}:
            break
        if end > len(data):
            raise _TooShort(size)
        if kind == b"eXIf":
            return _turned(size, data[offset + 8 : end])
        offset = end + 4
    return size


def _read_webp(data: bytes) -> Size | None:
    """Reads the first chunk (RFC 9649): extended, lossless or lossy."""
    kind, body = data[12:16], data[20:30]
    if len(body) < 10 and kind != b"VP8L":  # noqa: PLR2004
        raise _TooShort
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"VP8L" and body[0] == VP8L_SIGNATURE:
        (bits,) = struct.unpack_from("<I", body, 1)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", body, 6)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _read_heif(data: bytes) -> Size | None:
    """Reads the size and the rotation of the primary item of an AVIF or HEIC (ISO/IEC 23008-12)."""
    for kind, start, stop in _boxes(data, 0, 1 << 63):
        if kind == b"meta":
            found = {child: data[body:end] for child, body, end in _needed_boxes(data, start + 4, stop)}
            break
    else:
        return None
    if not found.keys() >= {b"pitm", b"iprp"}:
        return None
    primary = int.from_bytes(found[b"pitm"][4 : 8 if found[b"pitm"][0] else 6], "big")
    properties = found[b"iprp"]
    children = {kind: (start, stop) for kind, start, stop in _boxes(properties, 0, len(properties))}
    boxes = _boxes(properties, *children.get(b"ipco", (0, 0)))
    listed = [(kind, properties[start:stop]) for kind, start, stop in boxes]
    start, stop = children.get(b"ipma", (0, 0))
    size: Size | None = None
    is_rotated = False
    for index in _associated(properties[start:stop], primary):
        kind, body = listed[index - 1] if 0 < index <= len(listed) else (b"", b"")
        if kind == b"ispe":
            width, height = struct.unpack_from(">II", body, 4)
            size = width, height
        if kind == b"irot":
            is_rotated = body[0] % 2 == 1
    return size[::-1] if size and is_rotated else size


def _needed_boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """The boxes `pitm` and `iprp` of `meta`. Nothing behind them is needed."""
    needed = {b"pitm", b"iprp"}
    for kind, body, box_end in _boxes(data, start, end):
        if kind in needed:
            if box_end > len(data):
                raise _TooShort
            yield kind, body, box_end
            needed.remove(kind)
            if not needed:
                return


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """The boxes in [start, end): type, start of the body and end. A box may end behind `data`."""
    for _ in range(MAX_PARTS):
        if start + 8 > end:
            return
        if start + 8 > len(data):
            raise _TooShort
        length, kind = struct.unpack_from(">I4s", data, start)
        body = start + 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, body)
            body += 8
        stop = end if length == 0 else start + length
        if stop < body:
            return
        yield kind, body, stop
        start = stop


def _associated(ipma: bytes, item: int) -> list[int]:
    """The numbers of the properties of an item, from the box `ipma`. They count from 1."""
    version, flags = ipma[0], ipma[3]
    id_bytes, index_bytes = (4 if version else 2), (2 if flags & 1 else 1)
    offset = 8
    for _ in range(min(int.from_bytes(ipma[4:8], "big"), MAX_PARTS)):
        item_id = int.from_bytes(ipma[offset : offset + id_bytes], "big")
        count = ipma[offset + id_bytes]
        offset += id_bytes + 1
        if item_id == item:
            ends = range(offset, offset + count * index_bytes, index_bytes)
            mask = (1 << (8 * index_bytes - 1)) - 1  # the first bit says that the property is essential
            return [int.from_bytes(ipma[place : place + index_bytes], "big") & mask for place in ends]
        offset += count * index_bytes
    return []


def _turned(size: Size | None, exif: bytes) -> Size | None:
    return size[::-1] if size and exif and exif_orientation(exif) in ROTATED else size
