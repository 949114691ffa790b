"""Guesses the MIME type of a file from its first bytes, to choose the module that inspects the file."""

import filetype

START_BYTES = 4096
"""The number of bytes that `sniff` needs at most."""

AVIF_BRANDS = frozenset({b"avif", b"avis"})
HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"})
GENERIC_IMAGE_BRANDS = frozenset({b"mif1", b"msf1"})  # any codec; the compatible brands name it
MIME_ALIASES = {"image/apng": "image/png", "audio/x-wav": "audio/wav"}


def sniff(start: bytes) -> str | None:
    """The likely MIME type, or None if it is unknown. For an MP4 that holds only audio it is also `video/mp4`."""
    if start[4:8] == b"ftyp":  # filetype knows only a few of these brands
        return _mime_of_ftyp(start)
    mime: str | None = filetype.guess_mime(start)
    return MIME_ALIASES.get(mime, mime) if mime else None


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
