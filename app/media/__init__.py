"""What strangers' files really hold, by their bytes alone; everybody else says `from app.media import …`.

Names, headers and claims are not believed. What is not whole, or too large, is a MediaError.
"""

from app.media.conversion import convert_image
from app.media.pictures import (
    MAX_PIXELS,
    ORIENTATION_TAG,
    MediaError,
    OversizedError,
    Picture,
    inspect_image,
    make_thumbnail,
    read_size,
)
from app.media.recordings import Audio, Video, inspect_audio, inspect_recording, inspect_video
from app.media.sniff import START_BYTES, sniff

__all__ = [
    "MAX_PIXELS",
    "ORIENTATION_TAG",
    "START_BYTES",
    "Audio",
    "MediaError",
    "OversizedError",
    "Picture",
    "Video",
    "convert_image",
    "inspect_audio",
    "inspect_image",
    "inspect_recording",
    "inspect_video",
    "make_thumbnail",
    "read_size",
    "sniff",
]
