"""Inspects and converts media files of unknown origin. Other packages import from here only.

The bytes decide the type; file names and headers do not count. A broken, incomplete or too large file is a MediaError.
"""

from app.files.media.audio_video import AudioInfo, VideoInfo, inspect_audio, inspect_audio_video, inspect_video
from app.files.media.conversion import convert_image
from app.files.media.header import MAX_HEADER_BYTES, ORIENTATION_TAG, START_BYTES, read_header, read_size, sniff
from app.files.media.images import MAX_PIXELS, ImageInfo, MediaError, OversizedError, inspect_image, make_thumbnail

__all__ = [
    "MAX_HEADER_BYTES",
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
    "read_header",
    "read_size",
    "sniff",
]
