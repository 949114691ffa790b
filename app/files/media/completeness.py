"""Detects truncated video and audio files: the outermost parts of the container must end within the file."""

import os
import struct
from typing import BinaryIO

from app.files.media.images import MediaError

ISO_BOXES = frozenset(
    {b"ftyp", b"styp", b"moov", b"mdat", b"moof", b"mfra", b"sidx", b"free", b"skip", b"wide", b"meta", b"uuid"}
)
EBML_SEGMENT = 0x18538067
MAX_EBML_HEADER_BYTES = 4096
UNKNOWN_RIFF_LENGTHS = frozenset({0, 0xFFFFFFFF})  # recorders write these before they know the length


def require_complete(file: BinaryIO, mime: str) -> None:
    """Raises MediaError if an MP4, MOV, WebM or WAV declares more bytes than the file has."""
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
        raise MediaError(f"truncated: {size_bytes} of {end} bytes")


def _end_of_boxes(file: BinaryIO, size_bytes: int) -> int:
    """The end of an MP4 or MOV (ISO/IEC 14496-12): boxes of a 4-byte length and a 4-byte type.

    Length 1 means that an 8-byte length follows; length 0 means "to the end of the file".
    """
    offset = 0
    while offset + 8 <= size_bytes:
        file.seek(offset)
        header = file.read(16)
        length, box_type = struct.unpack_from(">I4s", header)
        if box_type not in ISO_BOXES or length == 0:  # cameras append data of their own after the last box
            return offset
        if length == 1 and len(header) == 16:  # noqa: PLR2004
            (length,) = struct.unpack_from(">Q", header, 8)
        if length < 8:  # noqa: PLR2004
            raise MediaError("a box without length")
        offset += length
    return offset


def _end_of_segment(file: BinaryIO) -> int:
    """The end of a WebM (RFC 8794, RFC 9559): a header, then one segment. A live recording may omit its length."""
    file.seek(0)
    start = file.read(MAX_EBML_HEADER_BYTES)
    try:
        length, offset = _read_length(start, 4)
        offset += length or 0
        if int.from_bytes(start[offset : offset + 4], "big") != EBML_SEGMENT:
            raise MediaError("no segment after the header")
        length, offset = _read_length(start, offset + 4)
    except IndexError:
        raise MediaError("no segment") from None
    return offset if length is None else offset + length


def _read_length(data: bytes, offset: int) -> tuple[int | None, int]:
    """An EBML length and the offset after it. Its leading zero bits give its own size; all ones mean unknown."""
    size = 9 - data[offset].bit_length()
    unknown = (1 << 7 * size) - 1
    length = int.from_bytes(data[offset : offset + size], "big") & unknown
    return (None if length == unknown else length), offset + size


def _end_of_riff(file: BinaryIO) -> int:
    file.seek(4)
    length = int.from_bytes(file.read(4), "little")
    return 0 if length in UNKNOWN_RIFF_LENGTHS else 8 + length
