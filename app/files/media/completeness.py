"""Whether the outermost parts of a film or sound end where the file does: what was cut on its way is told by that."""

import os
import struct
from typing import BinaryIO

from app.files.media.images import MediaError

ISO_BOXES = frozenset(
    {b"ftyp", b"styp", b"moov", b"mdat", b"moof", b"mfra", b"sidx", b"free", b"skip", b"wide", b"meta", b"uuid"}
)
EBML_SEGMENT = 0x18538067
MAX_EBML_HEADER_BYTES = 4096
ENDLESS_WAV = frozenset({0, 0xFFFFFFFF})  # written by recorders that did not know the length when they began


def require_complete(file: BinaryIO, mime: str) -> None:
    """Raises MediaError for an MP4, MOV, WebM or WAV that promises more bytes than the file has."""
    size_bytes = os.fstat(file.fileno()).st_size
    if mime in {"video/mp4", "video/quicktime"}:
        end = _end_of_boxes(file, size_bytes)
    elif mime == "video/webm":
        end = _end_of_segment(file)
    elif mime == "audio/wav":
        end = _end_of_riff(file)
    else:
        return
    if end > size_bytes:
        raise MediaError(f"cut: {size_bytes} of {end} bytes")


def _end_of_boxes(file: BinaryIO, size_bytes: int) -> int:
    """ISO/IEC 14496-12: length and kind, where 1 announces a longer length and 0 means "to the end"."""
    place = 0
    while place + 8 <= size_bytes:
        file.seek(place)
        head = file.read(16)
        length, kind = struct.unpack_from(">I4s", head)
        if kind not in ISO_BOXES or length == 0:  # behind a film, cameras leave things of their own
            return place
        if length == 1 and len(head) == 16:  # noqa: PLR2004
            (length,) = struct.unpack_from(">Q", head, 8)
        if length < 8:  # noqa: PLR2004
            raise MediaError("a box of no length")
        place += length
    return place


def _end_of_segment(file: BinaryIO) -> int:
    """RFC 8794 and 9559: a header, then one segment, whose length may be unknown in a live recording."""
    file.seek(0)
    start = file.read(MAX_EBML_HEADER_BYTES)
    try:
        length, place = _read_length(start, 4)
        place += length or 0
        if int.from_bytes(start[place : place + 4], "big") != EBML_SEGMENT:
            raise MediaError("no segment where it should begin")
        length, place = _read_length(start, place + 4)
    except IndexError:
        raise MediaError("no segment in it") from None
    return place if length is None else place + length


def _read_length(data: bytes, place: int) -> tuple[int | None, int]:
    """A length whose leading zero bits tell how many bytes it has, and where it ends; all ones mean unknown."""
    count = 9 - data[place].bit_length()
    value = int.from_bytes(data[place : place + count], "big") & ((1 << 7 * count) - 1)
    return (None if value == (1 << 7 * count) - 1 else value), place + count


def _end_of_riff(file: BinaryIO) -> int:
    file.seek(4)
    length = int.from_bytes(file.read(4), "little")
    return 0 if length in ENDLESS_WAV else 8 + length
