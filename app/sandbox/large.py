"""A clip made as large as one likes: a valid `free` box of zeros behind it, streamed and never held in memory."""

import struct
from collections.abc import AsyncIterator

from app.sandbox.trouble import CHUNK_BYTES, Stream

SHORT_BOX_BYTES = 1 << 32
SHORT_HEAD_BYTES, LONG_HEAD_BYTES = 8, 16


class Padded(Stream):
    """The clip and its padding, `size_bytes` in all; a clip that leaves no room for a box goes out as it is."""

    def __init__(self, clip: bytes, size_bytes: int, headers: dict[str, str]) -> None:
        head, zeros = _box(size_bytes - len(clip))

        async def pour() -> AsyncIterator[bytes]:
            yield clip + head
            for start in range(0, zeros, CHUNK_BYTES):
                yield bytes(min(CHUNK_BYTES, zeros - start))

        super().__init__(pour, headers | {"content-length": str(len(clip) + len(head) + zeros)})
        self.body = clip


def _box(room_bytes: int) -> tuple[bytes, int]:
    """The head of a `free` box that fills the room, and how many zeros follow it."""
    if room_bytes < SHORT_HEAD_BYTES:
        return b"", 0
    if room_bytes < SHORT_BOX_BYTES:
        return struct.pack(">I4s", room_bytes, b"free"), room_bytes - SHORT_HEAD_BYTES
    return struct.pack(">I4sQ", 1, b"free", room_bytes), room_bytes - LONG_HEAD_BYTES
