"""A video padded to any size: a valid `free` box of zeros follows it, streamed and never held in memory."""

import struct
from collections.abc import AsyncIterator

from app.sandbox.faults.misbehaviour import CHUNK_BYTES, StreamedResponse

MAX_SHORT_BOX_BYTES = (1 << 32) - 1
SHORT_HEADER_BYTES, LONG_HEADER_BYTES = 8, 16


class PaddedVideo(StreamedResponse):
    """The video and its padding, `size_bytes` in all. Without room for a box the video goes out as it is."""

    def __init__(self, video: bytes, size_bytes: int, headers: dict[str, str]) -> None:
        box_header, zeros = _free_box(size_bytes - len(video))

        async def chunks() -> AsyncIterator[bytes]:
            yield video + box_header
            for start in range(0, zeros, CHUNK_BYTES):
                yield bytes(min(CHUNK_BYTES, zeros - start))

        super().__init__(chunks, headers | {"content-length": str(len(video) + len(box_header) + zeros)})
        self.body = video


def _free_box(size_bytes: int) -> tuple[bytes, int]:
    """The header of a `free` box of this size, and how many zeros follow it."""
    if size_bytes < SHORT_HEADER_BYTES:
        return b"", 0
    if size_bytes <= MAX_SHORT_BOX_BYTES:
        return struct.pack(">I4s", size_bytes, b"free"), size_bytes - SHORT_HEADER_BYTES
    return struct.pack(">I4sQ", 1, b"free", size_bytes), size_bytes - LONG_HEADER_BYTES
