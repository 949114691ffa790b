"""What a file seems to be, by its first bytes: enough to choose who looks closer, never a verdict."""

import filetype

START_BYTES = 4096
"""As many of the first bytes as `sniff` can use."""

AVIF_BRANDS = frozenset({b"avif", b"avis"})
HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"})
COLLECTIVE_BRANDS = frozenset({b"mif1", b"msf1"})  # say "a picture", and leave its coding to the brands behind
RENAMED = {"image/apng": "image/png", "audio/x-wav": "audio/wav"}


def sniff(start: bytes) -> str | None:
    """The MIME type of what begins so, or None; of an MP4 that is only sound, too, it says `video/mp4`."""
    if start[4:8] == b"ftyp":  # filetype knows a few of these brands only
        return _read_brands(start)
    mime: str | None = filetype.guess_mime(start)
    return RENAMED.get(mime, mime) if mime else None


def _read_brands(start: bytes) -> str:
    """By ISO/IEC 14496-12: the file's own brand, a version, then the brands it is compatible with."""
    own = start[8:12]
    behind = {start[place : place + 4] for place in range(16, min(int.from_bytes(start[:4], "big"), len(start)), 4)}
    brands = {own} if own not in COLLECTIVE_BRANDS else behind
    if brands & AVIF_BRANDS:
        return "image/avif"
    if brands & HEIF_BRANDS or own in COLLECTIVE_BRANDS:
        return "image/heic"
    return "video/quicktime" if own == b"qt  " else "video/mp4"
