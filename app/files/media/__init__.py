"""What strangers' files really hold, by their bytes alone; everybody else says `from app.files.media import …`.

Names, headers and claims are not believed. What is not whole, or too large, is a MediaError.
"""

from app.files.media.audio_video import AudioInfo, VideoInfo, inspect_audio, inspect_audio_video, inspect_video
from app.files.media.conversion import convert_image
from app.files.media.images import (
    MAX_PIXELS,
    ORIENTATION_TAG,
    ImageInfo,
    MediaError,
    OversizedError,
    inspect_image,
    make_thumbnail,
    read_size,
)
from app.files.media.sniff import START_BYTES, sniff

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
