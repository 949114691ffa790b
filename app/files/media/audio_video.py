"""Inspects videos (MP4, MOV, WebM) and audio files (MP3, WAV, M4A, AAC): type, size, duration and completeness.

The first frame is decoded, and the packets are counted. An MP3 or AAC declares no length, so it is never truncated.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from app.files.media.completeness import require_complete
from app.files.media.header import START_BYTES, sniff
from app.files.media.images import MAX_PIXELS, MediaError, OversizedError
from app.files.media.isolation import run_isolated

if TYPE_CHECKING:  # only the isolated process loads it
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.video.stream import VideoStream

MAX_DURATION_SECONDS = 4 * 3600
MAX_EDGE = 8192
DEMUXERS = {
    "video/mp4": "mov",
    "video/quicktime": "mov",
    "video/webm": "matroska",
    "audio/mpeg": "mp3",
    "audio/wav": "wav",
    "audio/aac": "aac",
}
"""The demuxer is fixed per type, because some other demuxers open further files or network addresses."""
EXTENSIONS = {
    "video/mp4": "mp4",
    "video/quicktime": "mov",
    "video/webm": "webm",
    "audio/mpeg": "mp3",
    "audio/wav": "wav",
    "audio/aac": "aac",
    "audio/mp4": "m4a",
}
VIDEO_CODECS = frozenset({"h264", "hevc", "av1", "libdav1d", "vp8", "vp9", "mpeg4"})
AUDIO_CODECS = frozenset({"aac", "alac", "mp3", "mp3float", "opus", "libopus", "vorbis"})
PCM = frozenset({"pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_s16be", "pcm_s24be"})
CODECS = VIDEO_CODECS | AUDIO_CODECS | PCM
DURATION_TOLERANCE_SECONDS = 1.0
MIN_FRAME_RATIO = 0.9  # of the declared frames, because QuickTime also counts empty frames


@dataclass(frozen=True)
class VideoInfo:
    """A video. `ext` has no dot; width and height are in pixels, after the rotation in the metadata."""

    mime: str
    ext: str
    width: int
    height: int
    duration_seconds: float


@dataclass(frozen=True)
class AudioInfo:
    """An audio file. `ext` has no dot."""

    mime: str
    ext: str
    duration_seconds: float


async def inspect_video(path: Path) -> VideoInfo:
    """Raises MediaError unless the file is a complete MP4, MOV or WebM of at most 4 hours and 8192 pixels per side."""
    info = await inspect_audio_video(path)
    if not isinstance(info, VideoInfo):
        raise MediaError("no video stream")
    return info


async def inspect_audio(path: Path) -> AudioInfo:
    """Raises MediaError unless the file is a complete MP3, WAV, M4A or AAC of at most 4 hours."""
    info = await inspect_audio_video(path)
    if not isinstance(info, AudioInfo):
        raise MediaError("a video, not an audio file")
    return info


async def inspect_audio_video(path: Path) -> VideoInfo | AudioInfo:
    """Inspects either kind, because only the streams of an MP4 tell whether it is a video. Raises MediaError."""
    result = await run_isolated("probe", path, is_large=True)  # 700 bytes of an MP4 may promise millions of packets
    return VideoInfo(**result) if "width" in result else AudioInfo(**result)


def probe(path: Path | str) -> dict[str, Any]:
    """The job of the isolated process. Returns the fields of VideoInfo or AudioInfo."""
    import av  # only the isolated process loads its libraries

    with Path(path).open("rb") as file:
        mime = sniff(file.read(START_BYTES)) or ""
        if mime not in DEMUXERS:
            raise MediaError("neither video nor audio")
        require_complete(file, mime)
        file.seek(0)
        try:
            with av.open(file, "r", DEMUXERS[mime], **OPEN_OPTIONS) as container:
                return asdict(_read(container, mime))
        except MediaError:
            raise
        except Exception as error:  # a hostile file can make the decoders raise any exception
            raise MediaError(f"not a readable video or audio file ({type(error).__name__})") from error


def _reject_open(*_: object) -> NoReturn:
    """Refuses to open further files and network addresses that the media file names."""
    raise MediaError("refers to another file")


OPEN_OPTIONS: dict[str, Any] = {
    "container_options": {
        "codec_whitelist": ",".join(sorted(CODECS)),
        "ignore_editlist": "1",  # edit lists would hide frames from the count
    },
    "io_open": _reject_open,
    "metadata_errors": "replace",  # old MP3s have titles in GBK
}


def _read(container: "InputContainer", mime: str) -> VideoInfo | AudioInfo:
    from av.stream import Disposition
    from av.video.frame import VideoFrame

    video = next((s for s in container.streams.video if not s.disposition & Disposition.attached_pic), None)
    stream = video or next(iter(container.streams.audio), None)
    if stream is None or (video is None and mime == "video/webm"):
        raise MediaError("no video or audio stream")
    if stream.codec_context.name not in CODECS:
        raise MediaError(f"unsupported codec ({stream.codec_context.name})")
    if video is not None:
        _require_size(video.codec_context.width, video.codec_context.height)
    seconds, first_frame = _measure(container, stream)
    declared_seconds = (container.duration or 0) / 1_000_000
    tolerance = max(DURATION_TOLERANCE_SECONDS, declared_seconds * (1 - MIN_FRAME_RATIO))
    if mime == "video/webm" and seconds < declared_seconds - tolerance:
        raise MediaError(f"truncated: {seconds:.1f} of {declared_seconds:.1f} s")
    if not isinstance(first_frame, VideoFrame):
        audio_mime = "audio/mp4" if DEMUXERS[mime] == "mov" else mime
        return AudioInfo(audio_mime, EXTENSIONS[audio_mime], round(seconds, 3))
    _require_size(first_frame.width, first_frame.height)
    width, height = first_frame.width, first_frame.height
    if first_frame.rotation % 180 != 0:
        width, height = height, width
    return VideoInfo(mime, EXTENSIONS[mime], width, height, round(seconds, 3))


def _require_size(width: int, height: int) -> None:
    if max(width, height) > MAX_EDGE or width * height > MAX_PIXELS:
        raise OversizedError(f"too large ({width}x{height})")


def _measure(container: "InputContainer", stream: "VideoStream | AudioStream") -> tuple[float, object]:
    """The stream's duration in seconds and its first frame. Reads all packets, one at a time."""
    stream.codec_context.thread_count = 1  # more threads would need more of the limited memory
    time_base = float(stream.time_base or 0)
    first_frame, packets, start, end = None, 0, math.inf, 0.0
    for packet in container.demux(stream):
        if first_frame is None:
            first_frame = next(iter(packet.decode()), None)
        timestamp = packet.dts if packet.pts is None else packet.pts
        if not packet.size or timestamp is None:  # the last packet is empty and only flushes the decoder
            continue
        packets += 1
        start = min(start, timestamp * time_base)
        end = max(end, (timestamp + (packet.duration or 0)) * time_base)
        if end - start > MAX_DURATION_SECONDS:
            raise OversizedError(f"too long ({end - start:.0f} s)")
    if first_frame is None:
        raise MediaError("no frame decodes")
    if stream.type == "video" and packets < stream.frames * MIN_FRAME_RATIO:
        raise MediaError(f"truncated: {packets} of {stream.frames} frames")
    return end - start, first_frame
