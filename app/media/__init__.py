"""What strangers' files really hold, by their bytes alone; everybody else says `from app.media import …`.

Names, headers and claims are not believed. What is not whole, or too large, is a MediaError.
"""

from app.media.conversion import convert_image
from app.media.pictures import (
    MAX_PIXELS,
    ORIENTATION_TAG,
    ImageInfo,
    MediaError,
    OversizedError,
    inspect_image,
    make_thumbnail,
    read_size,
)
from app.media.recordings import AudioInfo, VideoInfo, inspect_audio, inspect_audio_video, inspect_video
from app.media.sniff import START_BYTES, sniff

__all__ = [
    "MAX_PIXELS",
    "ORIENTATION_TAG",
    "START_BYTES",
    "AudioInfo",
    "ImageInfo",
    "MediaError",
    "OversizedError",
    "VideoInfo",
    "convert_image",
    "inspect_audio",
    "inspect_audio_video",
    "inspect_image",
    "inspect_video",
    "make_thumbnail",
    "read_size",
    "sniff",
]
